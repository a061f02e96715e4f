"""`python -m bench` prints one table of ratios to peers; `pytest bench --benchmark-enable` times ours alone."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "python_tests"))  # cases.py
