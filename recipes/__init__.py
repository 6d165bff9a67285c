"""The shipped recipes (imported as bagpiper.recipes)."""
