"""`thrifty deploy apply`, `status`, `logs` and `destroy` where a client program does the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.programs import World
from tests.deploy.specs import AZURE, IMAGE, ONE_MODEL, make_request
from tests.parts import run_thrifty
from thrifty.cli.deploy_client import Given, run_apply, run_destroy, run_status
from thrifty.deploy.commands import Place
from thrifty.deploy.journal import Deployments
from thrifty.deploy.registry import find_target, target_names
from thrifty.errors import ThriftyError
from thrifty.home import HOME_VARIABLE

KEYS = {
    "THRIFTY_ADMIN_KEY": "a" * 64, "THRIFTY_VIEWER_KEY": "b" * 64, "POSTGRES_PASSWORD": "c" * 64,
}  # fmt: skip
CLIENTS = [name for name in target_names() if find_target(name).commands is not None]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path / "world")
    monkeypatch.setenv("PATH", made.environment["PATH"])
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(ONE_MODEL))
    return path


def make_given(target: str, spec: Path, **more: Any) -> Given:
    options = {"image": IMAGE, "memory": "2GB", **(AZURE if target == "containerapps" else {})}
    return Given(target, spec, [f"{key}={value}" for key, value in options.items()], **more)


def test_all_targets_but_the_cluster_have_a_program() -> None:
    assert set(target_names()) - set(CLIENTS) == {"kubernetes"}


@pytest.mark.parametrize("target", CLIENTS)
def test_what_is_applied_is_shown_and_taken_away(
    target: str, spec: Path, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    given = make_given(target, spec)
    run_apply(given, None, yes=True, as_json=True)
    report = json.loads(capfd.readouterr().out)
    assert report["checksum"].startswith("sha256:")
    assert world.made
    calls = world.calls
    folder = Path(report["folder"]) / "files"
    assert any(str(folder) in word for call in calls for word in call)
    for name in find_target(target).render(
        make_request(target, ONE_MODEL, **dict(s.split("=", 1) for s in given.settings))
    ):
        assert (folder / name).is_file()
    journal = (folder.parent / "journal.json").read_text()
    assert (folder.parent.stat().st_mode & 0o777) == 0o700
    for secret in KEYS.values():
        assert secret not in journal
        assert secret not in json.dumps(calls)
    run_status(given, as_json=True)
    shown = json.loads(capfd.readouterr().out)
    assert shown["whole"]
    assert shown["as_spec"]
    run_status(given, as_json=False)
    assert "was told" in capfd.readouterr().out
    # The same again: nothing is made twice, and what is there stays one.
    run_apply(given, None, yes=True, as_json=True)
    world.calls  # noqa: B018
    run_destroy(given, data=False, yes=True, as_json=True)
    assert world.made == []
    assert not folder.parent.exists()
    with pytest.raises(ThriftyError, match="nothing was applied as"):
        run_destroy(given, data=False, yes=True, as_json=True)


def test_a_service_that_is_there_is_changed_and_not_made_anew(spec: Path, world: World) -> None:
    given = make_given("skypilot", spec)
    run_apply(given, None, yes=True, as_json=True)
    assert [call[1:3] for call in world.calls] == [["serve", "status"], ["serve", "up"]]
    run_apply(given, None, yes=True, as_json=True)
    assert [call[1:3] for call in world.calls] == [["serve", "status"], ["serve", "update"]]


def test_what_fails_is_known_and_can_be_repeated_or_taken_back(spec: Path, world: World) -> None:
    given = make_given("fargate", spec, parameters=("Vpc=vpc-1",))
    world.fail_at("cloudformation deploy")
    with pytest.raises(ThriftyError, match="the stack thrifty: aws cloudformation deploy"):
        run_apply(given, None, yes=True, as_json=True)
    journal = Deployments(Path(os.environ[HOME_VARIABLE]) / "deployments").read(
        "fargate", "thrifty"
    )
    assert journal is not None
    assert not journal.whole
    assert [one.state for one in journal.steps] == ["begun"]
    # What was begun may be there, whoever failed.
    world.fail_at("wait")
    with pytest.raises(ThriftyError, match="was not taken away"):
        run_destroy(given, data=False, yes=True, as_json=True)
    world.fail_at("")
    run_apply(given, None, yes=True, as_json=True)
    assert world.made == ["aws"]
    run_destroy(given, data=False, yes=True, as_json=True)
    assert world.made == []


def test_a_kill_in_the_middle_leaves_what_destroy_needs(
    spec: Path, world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = make_given("helm", spec, name="llm")
    settings = [part for one in given.settings for part in ("--set", one)]
    world.fail_at("upgrade", kill=True)
    killed = run_thrifty(
        tmp_path / "home", "deploy", "apply", "helm", str(spec), "--yes", "--name", "llm", *settings
    )
    assert killed.returncode == -9
    world.fail_at("")
    run_status(given, as_json=True)
    shown = json.loads(capfd.readouterr().out)
    assert not shown["whole"]
    assert shown["steps"] == [{"what": "the release llm", "state": "begun"}]
    run_destroy(given, data=False, yes=True, as_json=False)
    assert "Gone: the release llm" in capfd.readouterr().out
    assert world.calls[-1][-3:] == ["uninstall", "llm", "--ignore-not-found"]


def test_data_go_where_that_is_said(spec: Path, world: World) -> None:
    given = make_given("compose", spec)
    for data, last in ((False, "down"), (True, "--volumes")):
        run_apply(given, None, yes=True, as_json=True)
        run_destroy(given, data=data, yes=True, as_json=True)
        assert world.calls[-1][-1] == last


@pytest.mark.parametrize(
    ("target", "change", "budget", "words"),
    [
        ("lambda", {}, 1.0, "dollars a month"),
        ("fargate", {}, 1.0, "more than the budget of 1"),
        ("cloudrun", {}, 100.0, "--budget cannot be kept"),
        ("helm", {"parameters": ("A=b",)}, None, "and helm has none"),
        ("fargate", {"parameters": ("A",)}, None, "write NAME=VALUE"),
        ("cloudrun", {"name": "other"}, None, "--set name=other"),
        ("helm", {"name": "-x"}, None, "beginning with a letter"),
    ],
)
def test_what_cannot_be_applied_is_refused_before_anything_starts(
    target: str, change: dict[str, Any], budget: float | None, words: str, spec: Path, world: World
) -> None:
    with pytest.raises(ThriftyError, match=words):
        run_apply(make_given(target, spec, **change), budget, yes=True, as_json=True)
    assert world.calls == []


def test_missing_programs_and_secrets_are_named(
    spec: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POSTGRES_PASSWORD")
    with pytest.raises(ThriftyError, match="set POSTGRES_PASSWORD in the environment"):
        run_apply(make_given("compose", spec), None, yes=True, as_json=True)
    (world.bin / "gcloud").unlink()
    monkeypatch.setenv("PATH", str(world.bin))
    with pytest.raises(
        ThriftyError, match=r"'gcloud' is not on the PATH; install it: https://cloud"
    ):
        run_apply(make_given("cloudrun", spec), None, yes=True, as_json=True)
    assert world.calls == []


def test_nothing_is_applied_without_a_yes(spec: Path, world: World, tmp_path: Path) -> None:
    given = [
        "deploy",
        "apply",
        "cloudrun",
        str(spec),
        "--set",
        f"image={IMAGE}",
        "--set",
        "memory=2GB",
    ]
    home = {**os.environ, HOME_VARIABLE: str(tmp_path / "home")}
    command = [sys.executable, "-m", "thrifty", *given]
    done = subprocess.run(
        command, input="n\n", env=home, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "Cost: " in done.stderr
    assert "gcloud run services replace" in done.stderr
    assert "nothing was changed" in done.stderr
    with pytest.raises(ThriftyError, match="--json asks nothing: add --yes"):
        run_apply(make_given("cloudrun", spec), None, yes=False, as_json=True)
    assert world.calls == []


def test_commands_are_lists_of_arguments_with_nothing_of_the_environment() -> None:
    place = Place("thrifty", Path("/files"))
    for name in CLIENTS:
        target = find_target(name)
        more = AZURE if name == "containerapps" else {}
        request = make_request(name, ONE_MODEL, **{"image": IMAGE, "memory": "2GB", **more})
        assert target.commands is not None
        commands = target.commands(request, place)
        assert commands.install
        for step in commands.steps:
            for arguments in (step.do, *step.undo, commands.status, commands.logs):
                assert all(isinstance(one, str) and "\n" not in one for one in arguments)
