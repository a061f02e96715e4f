"""What one update did: the report, its statistics, its verdict."""
