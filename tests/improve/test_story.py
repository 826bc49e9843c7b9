"""A version's story: where what it learned from is."""

from __future__ import annotations

from pathlib import Path

from tests.artifacts.models import Llama
from thrifty.artifacts import Lineage, Store
from thrifty.home import Home
from thrifty.improve.story import tell_story


def test_a_file_of_rows_is_here_until_it_is_gone(home: Home, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    store = Store(home.models)
    folder = Llama().write_safetensors(tmp_path / "model")
    recipe = {"step": "train", "data": "rows.jsonl"}
    figures = {"data_paths": [str(rows)], "rows": {"learned": 1}}
    store.add(folder, "m", Lineage(recipe=recipe, figures=figures))

    def is_here() -> bool:
        (data,) = tell_story(store, home, None, "m")["data"]
        return bool(data["here"])

    assert is_here()
    rows.unlink()
    assert not is_here()
