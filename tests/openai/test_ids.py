"""Ids are unique among threads and processes, and have one format."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from thrifty.openai.ids import new_id


def test_ids_have_one_format() -> None:
    assert re.fullmatch(r"[0-9a-f]{28}", new_id())


def test_ids_are_unique_among_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: new_id(), range(20_000)))
    assert len(set(ids)) == 20_000


def test_ids_of_another_process_begin_differently() -> None:
    code = "from thrifty.openai.ids import new_id; print(new_id())"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    other = output.stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{28}", other)
    assert other[:18] != new_id()[:18]
