"""The command line: one file per group of verbs; torch is imported only by verbs that need it."""
