"""Adaptors: encoder states -> LLM embeddings."""
