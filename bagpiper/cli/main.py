"""The command ``bagpiper``.

Each file of this folder holds a group of verbs and adds them in ``add_verbs``. At its top level it imports nothing
heavy, so that ``--help`` and ``check`` do not pay for torch: what a verb needs is imported inside the verb.
"""

from __future__ import annotations

import errno
import sys

import typer

from bagpiper import __version__
from bagpiper.cli import convert, data, recipes, train, use
from bagpiper.errors import Diverged, UserError, brief, printable
from bagpiper.redact import redact

_DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP)
USER_ERROR, FAILURE = 2, 1
_HELP = "Audio-language models that hear and speak through rich captions."


def build_app() -> typer.Typer:
    """The command line with every verb."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # help in colour would cost 0.1 s of imports, as much as all the rest
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=_HELP)(_options)
    for group in (recipes, train, use, data, convert):
        group.add_verbs(app)
    return app


def main() -> None:
    """Run a verb: a user's mistake prints one message and exits with 2, anything else keeps its traceback."""
    try:
        build_app()(prog_name="bagpiper")
    except UserError as error:
        _refuse(str(error))
    except Diverged as error:
        _refuse(str(error), FAILURE)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _refuse(f"{error.strerror}: {brief(error.filename)}" if error.filename else str(error))


def _refuse(message: str, status: int = USER_ERROR) -> None:
    print(f"error: {printable(redact(message))}", file=sys.stderr)
    sys.exit(status)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Options before the verb."""


if __name__ == "__main__":
    main()
