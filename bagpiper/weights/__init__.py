"""Weights on the disk: safetensors without holding them in memory, and model folders."""
