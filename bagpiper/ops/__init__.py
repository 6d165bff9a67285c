"""Numerical pieces: attention for packs, cross-entropy."""
