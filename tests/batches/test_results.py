"""Result files: the complete records are recovered after a crash, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.batches.lines import make_answer_record
from thrifty.batches.results import ResultFile, Tokens, read_tokens

PREFIX = "batch_req_x_"


def record(number: int, prefix: str = PREFIX) -> bytes:
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    body = json.dumps({"text": "ä" * (number % 5), "usage": usage}).encode()
    return make_answer_record(f"{prefix}{number}", f"c{number}", 200, "req", body)


def numbers_in(path: Path) -> list[int]:
    file = ResultFile(path)
    try:
        return file.recover(PREFIX)[0]
    finally:
        file.close()


@given(groups=st.lists(st.integers(1, 4), max_size=5), cut=st.integers(0, 4000))
def test_complete_records_survive_truncation(
    tmp_path_factory: Any, groups: list[int], cut: int
) -> None:
    path: Path = tmp_path_factory.mktemp("results") / "r"
    file, number, ends = ResultFile(path), 0, [0]
    for size in groups:
        records = [record(number + i) for i in range(size)]
        file.append(records)
        ends += [ends[-1] + sum(map(len, records[: i + 1])) for i in range(size)]
        number += size
    file.close()
    whole = path.stat().st_size
    os.truncate(path, min(cut, whole))
    found = numbers_in(path)
    assert found == list(range(sum(1 for end in ends[1:] if end <= cut)))
    # Records appended afterwards follow complete records.
    file = ResultFile(path)
    file.recover(PREFIX)
    file.append([record(900)])
    file.close()
    assert numbers_in(path) == [*found, 900]


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 512, b"\0" * 100 + b"\n", b"garbage\n", b'{"id": 5}\n', b'{"id":"batch_req_y_1"}\n', b"[]\n",
     b'{"id":"batch_req_x_1","response":{"body":\n', record(9)[:-1], b"\xff\n"],
)  # fmt: skip
def test_an_invalid_tail_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "r"
    path.write_bytes(record(1) + record(2) + tail)
    assert numbers_in(path) == [1, 2]
    assert path.read_bytes() == record(1) + record(2)


def test_tokens_are_counted_again(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "r")
    file.append([record(1), record(2)])
    assert file.recover(PREFIX) == ([1, 2], Tokens(6, 4, 2))
    file.close()


@pytest.mark.parametrize("usage", [None, 5, {"prompt_tokens": "many"}, {"prompt_tokens": None}, []])
def test_invalid_counts_count_as_zero(usage: Any) -> None:
    assert read_tokens(json.dumps({"usage": usage}).encode()) == Tokens()


@pytest.mark.parametrize("body", [b"", b"text", b"[1]", b'{"a": }', b'{"a": "\xff"}'])
def test_a_body_that_is_no_json_object_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        read_tokens(body)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes simulates a full disk; it needs a process of its own."""
    code = (
        "import sys, resource, signal\n"
        "from pathlib import Path\n"
        "from tests.batches.test_results import record, ResultFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = ResultFile(Path(sys.argv[1]))\n"
        "file.append([record(1)])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2 * len(record(1)), resource.RLIM_INFINITY))\n"
        "try:\n"
        "    file.append([record(i) for i in range(2, 9)])\n"
        "except OSError as error:\n"
        "    print('full', error.errno)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "file.append([record(2)])\n"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r")],
        capture_output=True, text=True, cwd=root, check=False,
    )  # fmt: skip
    assert "full" in result.stdout, result.stderr
    assert numbers_in(tmp_path / "r") == [1, 2]
