"""Names and ids of models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.artifacts import FileEntry
from thrifty.artifacts.artifact import compute_id, parse_label, to_name
from thrifty.errors import ArtifactError

ENTRIES = st.lists(
    st.builds(
        FileEntry, st.text(min_size=1, max_size=8), st.text("0123456789abcdef", max_size=8),
        st.integers(0, 9),
    ),
    max_size=6, unique_by=lambda entry: entry.path,
)  # fmt: skip


@pytest.mark.slow
@given(st.text())
def test_every_text_becomes_a_valid_name(text: str) -> None:
    name = to_name(text)
    assert parse_label(name) == (name, None)
    assert to_name(name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [("Llama-3.1-8B", "llama-3.1-8b"), ("My Model!", "my-model"), ("--x--", "x"), ("", "model"),
     ("日本", "model"), ("a/b", "a-b"), ("x" * 200, "x" * 80)],
)  # fmt: skip
def test_names_stay_recognisable(text: str, name: str) -> None:
    assert to_name(text) == name


def test_labels_are_a_name_and_a_version() -> None:
    assert parse_label("tiny") == ("tiny", None)
    assert parse_label("tiny@v12") == ("tiny", 12)
    with pytest.raises(ArtifactError, match="no valid version; write tiny@v1"):
        parse_label("tiny@latest")


@given(ENTRIES, st.randoms())
def test_id_does_not_depend_on_the_order_of_files(entries: list[FileEntry], random: object) -> None:
    shuffled = sorted(entries, key=lambda entry: hash((entry.path, id(random))))
    assert compute_id(tuple(shuffled)) == compute_id(tuple(entries))
    assert len(compute_id(tuple(entries))) == 24


@given(ENTRIES, ENTRIES)
def test_ids_of_different_files_differ(one: list[FileEntry], two: list[FileEntry]) -> None:
    same = {(e.path, e.sha256) for e in one} == {(e.path, e.sha256) for e in two}
    assert (compute_id(tuple(one)) == compute_id(tuple(two))) is same
