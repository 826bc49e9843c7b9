"""What keeps a node of a Ray cluster from making pieces is told; `tests/ray` has a real one."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.curate.made import make_chats
from tests.curate.test_build import build, write_lines
from thrifty.curate.piece import Settings
from thrifty.curate.ray_pieces import NodeMaker
from thrifty.errors import DataError
from thrifty.fleet.ports import find_free_port
from thrifty.home import Home
from thrifty.version import __version__


def ask(version: str, mark: Path) -> str:
    job = {
        "settings": asdict(Settings({}, "/srv/data", "/srv/thrifty/work", None, False)),
        "secrets": ["00", "00"], "files": [], "mark": str(mark), "version": version,
        "pieces": [{"number": 3, "file": 0, "begin": 0, "end": 1, "first": 1}],
    }  # fmt: skip
    found = NodeMaker(job)({"piece": [3]})
    assert found["piece"] == [3]
    return str(found["error"][0])


def test_a_node_with_another_release_or_without_the_folder_says_so(tmp_path: Path) -> None:
    assert "does not see /srv/thrifty/work; put THRIFTY_HOME" in ask(__version__, tmp_path / "gone")
    said = ask("0.0.1", tmp_path)
    assert f"has Thrifty {__version__}, and this machine 0.0.1" in said


def test_a_cluster_that_is_not_there_is_told(home: Home, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "chats.jsonl", make_chats(3))
    port = find_free_port()
    said = "no Ray head answers at" if importlib.util.find_spec("ray") else "Ray is not installed"
    with pytest.raises(DataError, match=said):
        build(home, [{"path": str(path)}], ray=f"127.0.0.1:{port}")
    assert build(home, [{"path": str(path)}]).count() == 3, "the same build goes on without it"
