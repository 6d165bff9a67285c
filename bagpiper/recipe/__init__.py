"""Recipes: YAML to typed settings with all mistakes at once, the registry of parts, runs that start from a model."""
