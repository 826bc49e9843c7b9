"""Records are signed, say when they were changed, and have the same digest for the same inputs."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from thrifty.artifacts import Store
from thrifty.errors import ThriftyError
from thrifty.evaluate.gate_record import verify_record, write_record
from thrifty.evaluate.windows import digest_file
from thrifty.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Store:
    return Store(home.models)


def make(folder: Path, **changes: Any) -> dict[str, Any]:
    path = folder / "own.jsonl"
    if not path.exists():
        path.write_text('{"question": "Who?"}\n')
    return {
        "version": 1, "verdict": "pass", "message": "x@v2 passes", "made": "2026-01-01",
        "models": {"candidate": {"name": "x@v2", "artifact": "a" * 64}, "base": None},
        "sets": [{"name": "own", "path": str(path), "sha256": digest_file(path)},
                 {"name": "twenty", "sha256": "0" * 64}],
        "speed": {}, **changes,
    }  # fmt: skip


def test_a_record_is_valid_until_it_is_changed(home: Home, store: Store, tmp_path: Path) -> None:
    path = write_record(home, make(tmp_path))
    found = verify_record(home, store, path)
    assert not found.faults
    assert found.notes == ["the candidate, x@v2, is not stored here any more"]
    for name, value in (("verdict", "fail"), ("made", "2027-01-01"), ("speed", {"a": 1})):
        changed = {**json.loads(path.read_text()), name: value}
        other = tmp_path / "changed.json"
        other.write_text(json.dumps(changed))
        faults = verify_record(home, store, other).faults
        assert any("signature does not match" in fault for fault in faults)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((home.gates / "signing.key").stat().st_mode) == 0o600


def test_the_digest_is_that_of_the_inputs(home: Home, tmp_path: Path) -> None:
    first = write_record(home, make(tmp_path))
    again = write_record(home, make(tmp_path, made="2027-02-02", speed={"tokens": 3}))
    assert again == first
    assert write_record(home, make(tmp_path, verdict="fail")) != first
    elsewhere = write_record(Home(tmp_path / "other"), make(tmp_path))
    assert elsewhere.name == first.name, "another home comes to the same digest"


def test_foreign_keys_and_changed_sets_are_faults(home: Home, store: Store, tmp_path: Path) -> None:
    path = write_record(home, make(tmp_path))
    other = Home(tmp_path / "other")
    write_record(other, make(tmp_path))
    (fault,) = verify_record(other, store, path).faults
    assert "not that of this home" in fault
    (tmp_path / "own.jsonl").write_text("changed")
    (fault,) = verify_record(home, store, path).faults
    assert "own" in fault
    assert "has changed since" in fault
    (tmp_path / "own.jsonl").unlink()
    assert any("not here any more" in note for note in verify_record(home, store, path).notes)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"signature": 3}', "\x00", "[" * 99_999])
def test_what_is_no_record_is_told(home: Home, store: Store, tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ThriftyError, match="not the record of a gate"):
        verify_record(home, store, path)
    with pytest.raises(ThriftyError, match="cannot be read"):
        verify_record(home, store, tmp_path / "none.json")


def test_a_damaged_key_is_told(home: Home, tmp_path: Path) -> None:
    home.gates.mkdir(parents=True)
    (home.gates / "signing.key").write_bytes(b"short")
    with pytest.raises(ThriftyError, match="is damaged"):
        write_record(home, make(tmp_path))
