"""`python -m bench` prints one table of ratios to peers; `pytest bench --benchmark-enable` times ours alone."""
