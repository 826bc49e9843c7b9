"""The command line: one file for each group of commands, and no logic of its own.

A command parses, calls one service, and prints. Where it can print JSON, stdout carries that
alone; progress and messages go to stderr. The files are imported when their command runs, so that
`thrifty --help` answers at once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Thrifty's errors become one message and an exit status."""
    from thrifty.cli.app import app
    from thrifty.errors import ThriftyError

    try:
        app()
    except ThriftyError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
