"""What `pytest benchmarks/` measures: the cells, the rows of each, and the numbers of a row."""
