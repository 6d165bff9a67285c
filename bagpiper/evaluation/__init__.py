"""Metrics, probes and their tables."""
