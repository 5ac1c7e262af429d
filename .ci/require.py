"""Exits with one sentence where this interpreter lacks one of the packages named as arguments."""

import sys
from importlib.util import find_spec

if sys.version_info < (3, 10):  # noqa: UP036 (an older one is what this is for)
    sys.exit(f"fused_bn needs Python 3.10 or newer, but {sys.executable} is {sys.version.split()[0]}")

missing = [name for name in sys.argv[1:] if find_spec(name) is None]
if missing:
    sys.exit(
        f"{sys.executable} lacks {', '.join(missing)}: install what is missing there, "
        "or run make without VENV= and let it set up its own .venv"
    )
