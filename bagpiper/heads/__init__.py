"""Heads: LLM hidden states -> distributions over the streams, and the loss."""
