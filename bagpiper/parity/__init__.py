"""Training, decoding, merging and exporting compared: they compute the same."""
