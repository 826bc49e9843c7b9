"""Recipes: defaults, short forms, and faults with their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from thrifty.curate.recipe import load_recipe, parse_recipe, write_recipe
from thrifty.errors import SpecError


def load(path: Path, text: str) -> object:
    (path / "recipe.yaml").write_text(text)
    return load_recipe(path / "recipe.yaml")


def test_short_forms_and_defaults() -> None:
    recipe = parse_recipe({
        "sources": [{"path": "a.jsonl"}], "redact": False, "split": 0.2, "balance": "source",
        "deduplicate": {"near": 0.7}, "decontaminate": "drop",
    })  # fmt: skip
    assert (recipe.kind, recipe.redact, recipe.split.test) == ("sft", None, 0.2)
    assert recipe.deduplicate.near is not None
    assert recipe.deduplicate.near.similarity == 0.7
    assert recipe.decontaminate is not None
    assert recipe.decontaminate.leaks == "drop"
    assert parse_recipe({"sources": [{"path": "a"}], "decontaminate": False}).decontaminate is None


def test_a_written_recipe_is_the_same(tmp_path: Path) -> None:
    recipe = parse_recipe({"sources": [{"path": "a.jsonl", "weight": 2}], "redact": False})
    assert load(tmp_path, write_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sources:\n  - path: a\ndeduplicat: {}\n", "line 3, deduplicat: is not a known key; did you mean 'deduplicate'?"),
        ("sources:\n  - path: a\n    wieght: 2\n", "line 3, sources.0.wieght: is not a known key; did you mean 'weight'?"),
        ("sources:\n  - path: a\nclean:\n  language: en\n", "line 4, clean.language: is not a known key; did you mean 'languages'?"),
        ("kind: sftt\nsources: [{path: a}]\n", "line 1, kind: 'sftt' is not a choice; did you mean 'sft'?"),
        ("sources:\n  - set: alpacka\n", "line 2, sources.0: 'alpacka' is not a set; did you mean 'alpaca'?"),
        ("sources:\n  - {path: a, log: chat}\n", "one of 'path', 'set' and 'log'"),
        ("sources: []\n", "line 1, sources:"),
        ("kind: sft\n", "sources: is missing"),
        ("sources: [{path: a}, {path: b/a.csv, name: a}]\n", "two sources are called 'a'"),
        ("sources: [{path: a, weight: 1}, {path: b}]\n", "every source has a 'weight' or none has"),
        ("sources: [{path: a}]\npack: 100\n", "'pack' counts tokens"),
        ("sources: [{path: a}]\nmix: tokens\nlength: {tokenizer: m}\n", "no source has a 'weight'"),
        ("sources: [{path: a}]\nclean: {html: true}\n", "rows of text, and the kind is sft"),
        ("sources: [{path: a}]\nsplit: {stratify: label}\n", "only rows of the kind kto have a label"),
        ("sources: [{path: a}]\nsplit: 2\n", "line 2, split.test: input should be less than"),
        ("sources: [{set: boolq}]\n", "holds questions to judge by"),
    ],
)  # fmt: skip
def test_faults_are_said_with_their_lines(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    assert said in str(caught.value)
