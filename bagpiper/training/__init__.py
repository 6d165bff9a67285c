"""The run: stages, optimizers, precision, checkpoints."""
