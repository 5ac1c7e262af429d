__version__ = "0.1.0"

TESTED_TORCH = ("2.8.0", "2.15.0")
"""The oldest and the newest torch that passed the core tests; pyproject.toml asks for the oldest."""
