"""Codecs: waveform <-> codes."""
