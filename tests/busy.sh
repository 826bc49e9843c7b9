#!/bin/sh
# Run a command beside two busy loops: sh tests/busy.sh python -m pytest -q tests/gateway
#
# The loops end with this script, however it ends: each watches that its parent is still there, and
# each gives up by itself after BUSY_LIMIT_S (default 7200).
set -u

busy() {
  exec "${PYTHON:-python3}" -c '
import os, sys, time
parent, end_s = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while os.getppid() == parent and time.monotonic() < end_s:
    for _ in range(1_000_000):
        pass
' "$$" "${BUSY_LIMIT_S:-7200}"
}

busy & first=$!
busy & second=$!
trap 'kill "$first" "$second" 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$@"
