"""Scorers of the soundscapes corpus: facts parsed from text, facts measured in audio, and their comparison.

Import from the modules: :mod:`.parse` (text), :mod:`.analyse` (waveform), :mod:`.score`.
"""
