"""`python -m thrifty.observe.recorder SOCKET-FD SETTINGS` runs the recorder; SETTINGS is JSON."""

from __future__ import annotations

import sys

import msgspec

from thrifty.observe.recorder.process import run_recorder
from thrifty.observe.settings import RecorderSettings


def main() -> int:
    """Record until told to stop."""
    settings = msgspec.json.decode(sys.argv[2].encode(), type=RecorderSettings)
    return run_recorder(settings, int(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
