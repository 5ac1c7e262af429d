"""`python -m benchmarks.report`: one HTML page and its pictures from what benchmarks/history/ holds."""
