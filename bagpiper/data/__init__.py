"""Manifests, audio files, caches, packing and the LightningDataModule."""
