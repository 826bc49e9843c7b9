"""Versions in a spec: what each one is, what it takes from its deployment, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.spec.test_load import faults, load

TWO = """\
name: chat
model: smol
engine: {kind: echo, ttft: 5ms}
replicas: 2
versions:
  - label: a
    weight: 90
  - label: b
    engine: {kind: echo, tpot: 1ms}
    replicas: 1
    weight: 10
    prices: {output: 2}
  - label: c
    model: smol@v2
    engine: openvino
    compress: int4
    weight: 0
    shadow: 0.2
gateway: {workers: 2}
"""


def test_what_stands_beside_the_versions_holds_for_each_that_does_not_say_otherwise(
    tmp_path: Path,
) -> None:
    loaded = load(tmp_path, TWO)
    a, b, c = loaded.versions()
    assert [(v.label, v.weight, v.shadow, v.index) for v in (a, b, c)] == [
        ("a", 90.0, 0.0, 0), ("b", 10.0, 0.0, 1), ("c", 0.0, 0.2, 2),
    ]  # fmt: skip
    specs = [version.loaded.spec for version in (a, b, c)]
    assert [spec.model for spec in specs] == ["smol", "smol", "smol@v2"]
    assert [spec.replicas.count for spec in specs] == [2, 1, 2]
    assert specs[0].engine.options == {"ttft": "5ms"}
    assert specs[1].engine.options == {"ttft": "5ms", "tpot": "1ms"}, "the same engine's options"
    assert (specs[2].engine.kind, specs[2].engine.options) == ("openvino", {})
    assert [spec.compress.quantize.scheme for spec in specs] == ["auto", "auto", "int4"]
    assert specs[1].prices.output == 2
    assert {spec.name for spec in specs} == {"chat"}
    assert all(spec.versions == () and spec.gateway.workers == 2 for spec in specs)


def test_a_spec_without_a_list_has_one_version(tmp_path: Path) -> None:
    for text in ("engine: echo", "engine: echo\nversions:\n", "engine: echo\nversions: []\n"):
        loaded = load(tmp_path, text)
        (version,) = loaded.versions()
        assert (version.label, version.weight, version.shadow, version.index) == (None, 1, 0, None)
        assert version.loaded is loaded
        assert not [path for path, _, _ in loaded.explain() if path.startswith("versions")]


def test_the_explanation_shows_each_version_with_its_lines(tmp_path: Path) -> None:
    rows = {path: (value, origin) for path, value, origin in load(tmp_path, TWO).explain()}
    assert rows["versions.0.label"] == ("a", "file, line 6")
    assert rows["versions.0.engine.ttft"] == ("5ms", "file, line 3")
    assert rows["versions.0.replicas.count"] == (2, "file, line 4")
    assert rows["versions.1.replicas.count"] == (1, "file, line 10")
    assert rows["versions.1.engine.tpot"] == ("1ms", "file, line 9")
    assert rows["versions.0.weight"] == (90.0, "file, line 7")
    assert rows["versions.1.shadow"] == (0.0, "default")
    assert rows["versions.2.compress.quantize.scheme"] == ("int4", "file, line 16")
    assert not {path for path in rows if path.partition(".")[0] in ("engine", "model", "replicas")}
    assert rows["name"] == ("chat", "file, line 1")


def test_versions_of_one_of_several_deployments(tmp_path: Path) -> None:
    text = """\
engine: echo
deployments:
  - name: one
  - name: two
    versions:
      - {label: x, replicas: 3}
      - {label: y, engine: {reply: hi}}
"""
    loaded = load(tmp_path, text)
    one, two = loaded.each()
    assert [version.label for version in one.versions()] == [None]
    x, y = two.versions()
    assert (x.loaded.spec.replicas.count, y.loaded.spec.engine.options) == (3, {"reply": "hi"})
    assert y.loaded.spec.engine.kind == "echo"
    rows = {path: (value, origin) for path, value, origin in loaded.explain()}
    assert rows["deployments.1.versions.0.replicas.count"] == (3, "file, line 6")
    assert rows["deployments.0.engine.kind"] == ("echo", "file, line 1")
    assert faults(tmp_path, text.replace("replicas: 3", "replica: 3")) == [
        "line 6, deployments.1.versions.0.replica: is not a known key; did you mean 'replicas'?"
    ]


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (
            [{"label": "a"}, {"label": "a"}],
            ["line 4, versions.1.label: 'a' is taken by versions.0"],
        ),
        (
            [{"label": "a"}, {"label": "a", "weight": -1}],
            ["line 4, versions.1.label: 'a' is taken by versions.0",
             "line 4, versions.1.weight: must be greater than or equal to 0"],
        ),
        (
            [{"label": "-a"}],
            ["line 3, versions.0.label: '-a' is not a label; take up to 63 letters, digits, '.', "
             "'_', '@' and '-', of which the first is a letter or digit"],
        ),
        ([{"label": "a" * 64}], ["line 3, versions.0.label: "]),
        ([{"label": "a", "weight": -1}], ["line 3, versions.0.weight: must be greater than or equal to 0"]),
        ([{"label": "a", "weight": "inf"}], ["line 3, versions.0.weight: must be"]),
        ([{"label": "a", "weight": True}], ["line 3, versions.0.weight: must be a number"]),
        ([{"label": "a", "shadow": 1.5}], ["line 3, versions.0.shadow: must be less than or equal to 1"]),
        (
            [{"label": "a", "weight": 0}, {"label": "b", "weight": 0}],
            ["line 2, versions: every weight is 0; one at least must be greater than 0"],
        ),
        ([{"label": "a", "wieght": 1}],
         ["line 3, versions.0.wieght: is not a known key; did you mean 'weight'?"]),
        ([{"label": "a", "routing": "auto"}], ["line 3, versions.0.routing: is not a known key"]),
        (["a"], ["line 3, versions.0: must be a mapping"]),
    ],
)  # fmt: skip
def test_faults_of_versions_have_their_line(
    tmp_path: Path, versions: list[Any], expected: list[str]
) -> None:
    import json

    text = "engine: echo\nversions:\n" + "".join(f"  - {json.dumps(one)}\n" for one in versions)
    seen = faults(tmp_path, text)
    assert len(seen) == len(expected), seen
    for line, begin in zip(seen, expected, strict=True):
        assert line.startswith(begin), line


@pytest.mark.parametrize("label", ["a", "smol@v1", "A.b_c-d@2", "9" * 63])
def test_labels_that_may_be_written(tmp_path: Path, label: str) -> None:
    loaded = load(tmp_path, f"versions: [{{label: '{label}'}}]")
    assert loaded.versions()[0].label == label


def test_what_belongs_into_each_deployment_is_refused_beside_them(tmp_path: Path) -> None:
    text = "model: x\nversions: [{label: a}]\ndeployments: [{name: one}]\n"
    assert faults(tmp_path, text) == [
        "line 1, model: belongs into each of 'deployments'",
        "line 2, versions: belongs into each of 'deployments'",
    ]


def test_secrets_of_a_version_are_masked(tmp_path: Path) -> None:
    loaded = load(tmp_path, "versions: [{label: a, engine: {kind: remote, api_key: hunter2}}]\n")
    assert "hunter2" not in repr(loaded)
    assert "hunter2" not in str(loaded.explain())


def test_what_must_be_a_list_is_said_to_be_one(tmp_path: Path) -> None:
    assert faults(tmp_path, "engine: echo\nversions: {a: 1}\n") == [
        "line 2, versions: must be a list, not {'a': 1}"
    ]
    assert faults(tmp_path, "engine: echo\naliases: {a: 1}\n")[0].startswith(
        "line 2, aliases: must be a list"
    )
