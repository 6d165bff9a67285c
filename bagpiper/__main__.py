"""``python -m bagpiper``: the command line."""

from bagpiper.cli.main import main

main()
