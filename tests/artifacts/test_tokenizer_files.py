"""Tokenizers of checkpoints as files: which chat templates they get."""

from __future__ import annotations

from pathlib import Path

from tests.artifacts.models import Llama
from tests.artifacts.vocabulary import make_gpt2_metadata
from thrifty.artifacts import Store
from thrifty.artifacts.chat_templates import FILE, read_chat_templates
from thrifty.artifacts.sources import fetch_model
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.evaluate.open_model import has_chat_template


def test_a_template_beside_a_gguf_takes_the_place_of_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    found = {}
    for name, own, beside in (
        ("none", None, None), ("own", "own", None), ("beside", None, "beside"), ("both", "own", "beside"),
    ):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        extra = make_gpt2_metadata(400, "smollm")
        if own is not None:
            extra["tokenizer.chat_template"] = own
        if beside is not None:
            (folder / FILE).write_text(beside)
        Llama(kind="llama", vocab=400, context=64, inner=64).write_gguf(
            folder / "m.gguf", extra=extra
        )
        _, artifact = fetch_model(store, str(folder))
        target = tmp_path / f"{name}-written"
        target.mkdir()
        write_tokenizer(store.folder_of(artifact.id), target, artifact)
        found[name] = read_chat_templates(target).get("default")
        assert has_chat_template(store, artifact) == (name != "none")
    assert found == {"none": None, "own": "own", "beside": "beside", "both": "beside"}
