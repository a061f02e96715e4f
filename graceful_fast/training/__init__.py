"""Training of successors: objectives in plain torch, one loop, resumable results, recipes that measure them."""
