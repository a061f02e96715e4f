"""Build facts of graceful_fast, and the loader of its op library."""

version: str
compiler: str
cuda_built: bool

def load(path: str) -> str:
    """Load the op library at `path` and return the name of the instruction set in use."""
