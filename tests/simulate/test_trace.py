"""Traces of every form are read as a stream, and what is wrong with them is told with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.errors import SimulationError
from thrifty.simulate.trace import TraceFaults, TraceOptions, TraceRequest, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""


def read(path: Path, **options: float) -> tuple[list[TraceRequest], TraceFaults]:
    faults = TraceFaults()
    return list(read_trace(path, TraceOptions(**options), faults)), faults  # type: ignore[arg-type]


def write(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_azures_form(tmp_path: Path) -> None:
    requests, faults = read(write(tmp_path, AZURE))
    assert [(r.prompt_tokens, r.answer_tokens) for r in requests] == [(374, 44), (396, 109)]
    assert requests[0].at_s == 0
    assert requests[1].at_s == pytest.approx(4.314579, abs=1e-6)
    assert faults.count == 0


def test_a_gzipped_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(AZURE.encode()))
    assert read(path) == read(write(tmp_path, AZURE))


def test_mooncakes_form_tells_conversations_by_their_beginnings(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 500, "input_length": 1030, "output_length": 5, "hash_ids": [0, 3, 4]},
        {"timestamp": 900, "input_length": 1800, "output_length": 5, "hash_ids": [0, 1, 5, 6]},
    ]
    requests, _ = read(write(tmp_path, "\n".join(json.dumps(row) for row in rows)))
    first, other, next_turn = requests
    # The last block of each is not whole.
    assert [r.blocks for r in requests] == [(0, 1), (0, 3), (0, 1, 5)]
    assert first.conversation == next_turn.conversation != other.conversation
    assert next_turn.at_s == pytest.approx(0.9)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_request_log_has_conversations_and_tenants(tmp_path: Path, form: str) -> None:
    rows = [
        {"at_s": 10.0, "prompt_tokens": 130, "completion_tokens": 7, "conversation_id": "c",
         "tenant": "a"},
        {"at_s": 12.5, "prompt_tokens": 200, "completion_tokens": 7, "conversation_id": "c",
         "tenant": "a"},
        {"at_s": 13.0, "prompt_tokens": 200, "completion_tokens": 7, "conversation_id": "",
         "tenant": "b"},
    ]  # fmt: skip
    if form == "csv":
        text = "\n".join([",".join(rows[0]), *(",".join(map(str, r.values())) for r in rows)])
    else:
        text = "\n".join(json.dumps(row) for row in rows)
    (first, second, alone), faults = read(write(tmp_path, text))
    assert faults.count == 0
    assert second.at_s == 2.5
    assert second.blocks[:2] == first.blocks
    assert len(second.blocks) == 3
    assert alone.blocks == ()
    assert alone.tenant == "b"


def test_a_trace_for_thrifty_bench_is_read_too(tmp_path: Path) -> None:
    path = write(tmp_path, '{"at_s": 1, "prompt_tokens": 9, "max_tokens": 4}\n')
    assert read(path)[0] == [TraceRequest(0.0, 9, 4)]


def test_bad_rows_are_skipped_counted_and_told_with_their_line(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6,374,44\n"
        "yesterday,374,44\n"
        "2023-11-16 18:15:47.0,-3,44\n"
        "2023-11-16 18:15:47.0,3,nan\n"
        "2023-11-16 18:15:47.0,3\n"
        '2023-11-16 18:15:47.0,3,"\n'
        "\n"
        "2023-11-16 18:15:48.0,12,3\n"
    )
    requests, faults = read(write(tmp_path, text))
    assert len(requests) == 2
    assert faults.count == 5
    assert [line.partition(":")[0] for line in faults.shown] == [f"line {n}" for n in range(3, 8)]
    assert "ContextTokens is not a whole number from 1 to" in faults.shown[1]


def test_json_rows_of_every_wrong_kind(tmp_path: Path) -> None:
    good = {"timestamp": 1, "input_length": 600, "output_length": 5, "hash_ids": [1]}
    wrong = [
        "{", "[]", json.dumps({**good, "timestamp": "now"}), json.dumps({**good, "hash_ids": "x"}),
        json.dumps({**good, "output_length": None}), json.dumps({"at_s": 1}),
        json.dumps({**good, "input_length": 10**9}), json.dumps({**good, "timestamp": 1e400}),
    ]  # fmt: skip
    requests, faults = read(write(tmp_path, "\n".join([json.dumps(good), *wrong])))
    assert (len(requests), faults.count) == (1, len(wrong))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "has no known form"),
        ("GGUF\0\r\0\n1,2\n", "has no known form"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no request"),
        ("{}\n", "1 rows cannot be used .line 1: at_s is missing"),
    ],
)
def test_files_that_hold_no_request_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        read(write(tmp_path, text))


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    path.write_bytes(gzip.compress(AZURE.encode() * 5000)[:-200])
    with pytest.raises(SimulationError, match="is damaged"):
        read(path)
    with pytest.raises(SimulationError, match="cannot be read: No such file"):
        read(tmp_path / "nothing")


def test_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    row = '{"at_s": 1, "prompt_tokens": 9, "max_tokens": 4}\n'
    path.write_text(row + "x" * 3_500_000 + "\n" + row)
    requests, faults = read(path)
    assert (len(requests), faults.count) == (2, 1)
    assert faults.shown == ["line 2: it has more than 1000000 bytes"]


def test_lengths_and_times_are_scaled_and_cut(tmp_path: Path) -> None:
    rows = [{"at_s": at, "prompt_tokens": 100, "output_tokens": 10} for at in range(100)]
    path = write(tmp_path, "\n".join(json.dumps(row) for row in rows))
    stretch, _ = read(path, speed=2.0, tokens=0.5, skip_s=10, length_s=20)
    assert len(stretch) == 20
    assert (stretch[0].at_s, stretch[-1].at_s) == (0.0, 9.5)
    assert (stretch[0].prompt_tokens, stretch[0].answer_tokens) == (50, 5)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.2, 4.0), seed=st.integers(0, 5))
def test_copies_keep_order_and_number(
    tmp_path_factory: pytest.TempPathFactory, scale: float, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows"
    if not path.exists():
        rows = [{"at_s": n / 3, "prompt_tokens": 9, "output_tokens": 3} for n in range(600)]
        path.write_text("\n".join(json.dumps(row) for row in rows))
    requests, _ = read(path, scale=scale, seed=seed)
    times = [request.at_s for request in requests]
    assert times == sorted(times)
    assert len(requests) == pytest.approx(600 * scale, rel=0.2)
    assert requests == read(path, scale=scale, seed=seed)[0]


def test_rows_slightly_out_of_order_are_sorted(tmp_path: Path) -> None:
    rows = [{"at_s": n ^ 3, "prompt_tokens": 9, "output_tokens": 3} for n in range(64)]
    requests, faults = read(write(tmp_path, "\n".join(json.dumps(row) for row in rows)))
    assert [request.at_s for request in requests] == list(range(64))
    assert faults.count == 0
