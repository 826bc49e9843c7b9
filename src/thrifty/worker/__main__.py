"""`python -m thrifty.worker SETTINGS` runs one gateway worker; SETTINGS is JSON."""

from __future__ import annotations

import sys

import msgspec

from thrifty.worker.process import run_worker
from thrifty.worker.settings import GatewaySettings


def main() -> int:
    """Serve until told to stop."""
    return run_worker(msgspec.json.decode(sys.argv[1].encode(), type=GatewaySettings))


if __name__ == "__main__":
    sys.exit(main())
