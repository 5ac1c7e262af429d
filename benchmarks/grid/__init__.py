"""What `pytest benchmarks/` measures: the cells, the rows that compete in each, and the numbers of a row."""
