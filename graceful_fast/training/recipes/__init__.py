"""Recipes: an experiment each, on real data that fits a laptop, with results that can be resumed."""
