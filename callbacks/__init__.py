"""Lightning callbacks of the toolkit (imported as bagpiper.callbacks)."""
