"""The command line: one file for each group of commands, and no logic of its own.

A command parses, calls one service, and prints. Where it can print JSON, stdout carries that
alone; progress and messages go to stderr. The files are imported when their command runs, so that
`thrifty --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys

_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def main() -> None:
    """Run the command line; Thrifty's errors, and those of the operating system, become one message
    and an exit status.
    """
    from thrifty.cli.app import app
    from thrifty.errors import ThriftyError

    try:
        app()
    except ThriftyError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        print(f"Error: {describe_os_error(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def describe_os_error(error: OSError) -> str:
    """An error of the operating system in one line: the file, the reason, and the next step."""
    files = " -> ".join(os.fsdecode(one) for one in (error.filename, error.filename2) if one)
    reason = error.strerror or str(error) or type(error).__name__
    step = ""
    if error.errno in _NOT_OURS:
        step = "; use the account that owns it, or set THRIFTY_HOME to a folder you can write to"
    elif error.errno in _FULL:
        step = "; free some space (thrifty models gc), or set THRIFTY_HOME to a larger disk"
    return " ".join(f"{files}: {reason}{step}".removeprefix(": ").split())
