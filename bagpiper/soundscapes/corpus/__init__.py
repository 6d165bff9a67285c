"""The quickstart corpus: short synthetic soundscapes with rich captions and known facts.

Import from the modules: :mod:`.facts` (what a scene is), :mod:`.sampling`, :mod:`.render`, :mod:`.captions`,
:mod:`.corpus`.
"""
