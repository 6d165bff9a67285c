"""Synthetic soundscapes with known facts: ``corpus`` makes them, ``scoring`` finds the facts again."""
