"""Everything to be known of one GPU in one command: build, tests, sanitizers, determinism, graphs, speed."""
