"""Encoders: waveform -> states."""
