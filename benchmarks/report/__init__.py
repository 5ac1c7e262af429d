"""`python -m benchmarks.report`: makes one HTML page and its pictures from benchmarks/history/."""
