"""The model's language: ids, codebook patterns, conversations. Pure functions on numpy."""
