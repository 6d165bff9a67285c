"""Errors that are the user's to mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave: the message says what, where and how to mend it.

    The command line prints the message alone and exits with 2; other exceptions keep their traceback and exit with 1.
    """
