"""What one update did: the report and its statistics."""
