"""The command line: JSON alone where it is asked for, clear errors, help that answers at once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.artifacts.stored import damage, put
from tests.control.running import deployment, echo, prepare
from tests.parts import run_thrifty
from thrifty.artifacts import Store
from thrifty.cli import main
from thrifty.home import Home

GGUF_MAGIC = b"GGUF"


def commands() -> list[list[str]]:
    """Every command that there is, found in the application itself."""
    import typer

    from thrifty.cli.app import app

    def walk(command, path):  # type: ignore[no-untyped-def]
        found = [path]
        for name, sub in getattr(command, "commands", {}).items():
            found += walk(sub, [*path, name])
        return found

    return walk(typer.main.get_command(app), [])


def test_there_are_the_commands_that_scripts_rely_on() -> None:
    found = {" ".join(path) for path in commands()}
    assert {
        "up", "status", "down", "doctor", "pull", "models", "models path", "keys create",
        "bench serve", "spec",
    } <= found  # fmt: skip
    assert len(found) >= 18


@pytest.mark.parametrize("path", commands(), ids=lambda path: " ".join(path) or "thrifty")
def test_every_command_has_help_that_says_what_it_does(path: list[str]) -> None:
    from typer.testing import CliRunner

    from thrifty.cli.app import app

    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    first_sentence = result.output.split("\n\n")[1].strip()
    assert len(first_sentence) > 10, result.output


@pytest.mark.slow
def test_help_takes_little_more_than_what_draws_it() -> None:
    """A third of a second on an idle machine; beside the bare libraries, so that a busy one counts
    for both.
    """

    def measure(*arguments: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        return time.perf_counter() - began

    bare, ours = [], []
    for _ in range(5):
        bare.append(measure("-c", "import typer, typer.rich_utils, rich.table, rich.progress"))
        ours.append(measure("-m", "thrifty", "--help"))
    assert min(ours) < 2 * min(bare) + 0.05


def test_version() -> None:
    from thrifty import __version__

    result = subprocess.run(
        [sys.executable, "-m", "thrifty", "--version"], capture_output=True, text=True
    )
    assert result.stdout.strip() == f"thrifty {__version__}"


@pytest.mark.slow
def test_an_empty_home_is_told_of_kindly(tmp_path: Path) -> None:
    home = tmp_path / "h"
    assert "Nothing is deployed" in run_thrifty(home, "status").stdout
    assert json.loads(run_thrifty(home, "status", "--json").stdout)["deployments"] == []
    assert "The store is empty" in run_thrifty(home, "models").stdout
    assert json.loads(run_thrifty(home, "models", "--json").stdout) == {"models": []}
    assert "no service was started in" in run_thrifty(home, "keys", "list").stderr
    assert "Nothing runs here" in run_thrifty(home, "down").stderr


@pytest.mark.slow
def test_doctor_tells_what_can_run_here(tmp_path: Path) -> None:
    report = json.loads(run_thrifty(tmp_path, "doctor", "--json").stdout)
    assert report["machine"]["cores"]
    assert report["machine"]["memory_bytes"] > 1e9
    assert {"openvino", "remote", "echo"} <= set(report["engines"])
    for capabilities in report["engines"].values():
        for capability in capabilities:
            assert capability["what"]
            assert capability["reason"]
    pickles = [c for c in report["engines"]["openvino"] if "pickle" in c["what"]]
    assert pickles[0]["usable"] is False
    text = run_thrifty(tmp_path, "doctor").stdout
    assert "processor" in text
    assert "openvino" in text


@pytest.mark.slow
def test_a_key_is_alone_on_the_last_line_and_kept_nowhere(tmp_path: Path) -> None:
    result = run_thrifty(tmp_path, "keys", "create", "--name", "ann", "--role", "admin")
    secret = result.stdout.splitlines()[-1]
    assert result.stdout.splitlines() == [secret]
    assert secret.startswith("sk-thrifty-")
    assert secret not in result.stderr
    listed = json.loads(run_thrifty(tmp_path, "keys", "list", "--json").stdout)["keys"]
    assert [(k["name"], k["role"], k["tenant"]) for k in listed] == [("ann", "admin", "ann")]
    assert secret not in run_thrifty(tmp_path, "keys", "list").stdout
    assert run_thrifty(tmp_path, "keys", "create", "--name", "ann").returncode == 1
    assert run_thrifty(tmp_path, "keys", "revoke", "ann").returncode == 0
    assert json.loads(run_thrifty(tmp_path, "keys", "list", "--json").stdout)["keys"] == []


@pytest.mark.slow
def test_a_key_is_listed_with_its_limits(tmp_path: Path) -> None:
    limits = ["--rpm", "60", "--tpm", "100000", "--concurrency", "4", "--budget-day", "2.5"]
    result = run_thrifty(tmp_path, "keys", "create", "--name", "ann", *limits)
    assert "60 rpm, 100,000 tpm, 4 concurrency, 2.5 a day" in " ".join(result.stderr.split())
    run_thrifty(tmp_path, "keys", "create", "--name", "bob")
    listed = json.loads(run_thrifty(tmp_path, "keys", "list", "--json").stdout)["keys"]
    assert [key["limits"] for key in listed] == [
        {"rpm": 60, "tpm": 100000, "concurrency": 4, "budget_day": 2.5, "budget_month": None},
        {"rpm": None, "tpm": None, "concurrency": None, "budget_day": None, "budget_month": None},
    ]
    shown = run_thrifty(tmp_path, "keys", "list", COLUMNS="200").stdout
    assert "60 rpm" in shown
    assert "none" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["models", "path", "nothing"], 1, "no model is named 'nothing'"),
        (["models", "path", "a b"], 1, "not a model's name"),
        (["models", "path", "x@three"], 1, "no valid version"),
        (["models", "rm", "x"], 1, "name the version to remove"),
        (["plan", "pypi:no such thing"], 1, "Error: the model pypi:no such thing cannot be fetched"),
        (["pull", "/no/such/folder"], 1, "does not exist"),
        (["pull", "what:ever"], 1, "has the unknown source kind 'what'"),
        (["pull", "hf:noslash"], 1, "write hf:ORG/NAME"),
        (["keys", "create", "--name", "a b"], 1, "not a valid name"),
        (["keys", "create", "--name", "a", "--role", "boss"], 1, "roles are viewer, user, operator, admin"),
        (["keys", "create", "--name", "a", "--rpm", "0"], 1, "0 is not valid for rpm"),
        (["keys", "create", "--name", "a", "--budget-day", "-1"], 1, "not valid for budget-day"),
        (["keys", "create", "--name", "a", "--budget-month", "nan"], 1, "amount of at least 0"),
        (["keys", "revoke", "nobody"], 1, "no service was started in"),
        (["spec", "/no/such.yaml"], 2, "cannot be read"),
        (["up", "/no/such.yaml"], 2, "cannot be read"),
        (["up", "--engine", "warp"], 2, "'warp' is not an engine"),
        (["up", "--replicas", "0"], 2, "greater than or equal to 1"),
        (["bench", "serve", "--url", "ftp://x"], 1, "not an http:// or https:// URL"),
        (["bench", "serve", "--url", "http://127.0.0.1:9"], 1, "give --model"),
        (["bench", "serve", "--model", "m", "--rate", "1", "--concurrency", "1"], 1, "give one of"),
        (["bench", "serve", "--model", "m", "--prompt-tokens", "many"], 1, "is not a length"),
        (["bench", "serve", "--model", "m", "--slo", "fast"], 1, "is not an objective"),
        (["bench", "serve", "--model", "m", "--trace", "/no/trace"], 1, "cannot be read"),
        (["evaluate", "a", "--reference", "b"], 1, "no model is named 'b'"),
        (["evaluate", "a", "--reference", "b", "--domain", "piqa"], 1, "'piqa' holds questions, not text"),
        (["evaluate", "a", "--reference", "b", "--domain", "x=/no/file"], 1, "neither a file nor a data set"),
        (["evaluate", "a", "--reference", "b", "--task", "/no/task"], 1, "is neither a file nor a data set"),
        (["data", "fetch", "nothing"], 1, "unknown data set 'nothing'"),
        (["quantize", "m", "--scheme", "int2", "--out", "n"], 1, "there is no scheme 'int2'"),
        (["quantize", "nobody", "--scheme", "int8", "--out", "n"], 1, "no model is named"),
    ],
)  # fmt: skip
def test_mistakes_get_one_clear_message(
    tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    result = run_thrifty(tmp_path, *arguments)
    assert result.returncode == status, result.stderr
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = run_thrifty(blocked / "home", "up", "--engine", "echo")
    assert result.returncode == 1
    assert "THRIFTY_HOME" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"),
         "/x/y: Permission denied; use the account that owns it, or set THRIFTY_HOME to a folder"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y", None, "/x/z"),
         "/x/y -> /x/z: No space left on device; free some space (thrifty models gc)"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("two\nlines"), "two lines"),
        (TimeoutError(), "TimeoutError"),
    ],
)  # fmt: skip
def test_errors_of_the_operating_system_are_one_line(
    error: OSError, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("thrifty.cli.app.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Error: {told}")


def test_spec_explains_where_values_come_from(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("engine: echo\nrouting: round_robin\n")
    result = run_thrifty(tmp_path, "spec", str(path), "--explain", "--json", THRIFTY_PORT="9")
    shown = json.loads(result.stdout)
    assert shown["routing"] == {"value": "round_robin", "origin": "file, line 2"}
    assert shown["gateway.port"] == {"value": 9, "origin": "environment, THRIFTY_PORT"}
    assert shown["limits.waiting"]["origin"] == "default"
    written = run_thrifty(tmp_path, "spec", str(path)).stdout.splitlines()
    assert {"aliases: []", "name: null", "gateway.allow_no_keys: false"} <= set(written)


def test_a_pickle_is_refused_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    result = run_thrifty(tmp_path / "h", "pull", str(folder))
    assert result.returncode == 1
    assert "can run code when it is read" in result.stderr
    assert "safetensors" in result.stderr


def test_a_damaged_model_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GGUF_MAGIC + b"\x03\0\0\0" + b"\xff" * 64)
    result = run_thrifty(tmp_path / "h", "up", str(path))
    assert result.returncode == 1
    assert "is damaged" in result.stderr
    assert "Traceback" not in result.stderr


def test_verify_names_every_damaged_model_and_checks_the_rest(tmp_path: Path) -> None:
    store = Store(Home(tmp_path / "h").models)
    for filling, name in enumerate(("a", "b", "c")):
        _, artifact = put(store, name, filling)
        if name != "b":
            damage(store.folder_of(artifact.id) / "model.safetensors", b"\xff")
    result = run_thrifty(tmp_path / "h", "models", "verify")
    assert result.returncode == 1
    assert result.stdout == "b@v1: as it was stored\n"
    told = " ".join(result.stderr.split())
    for label in ("a@v1", "c@v1"):
        assert f"(thrifty models rm {label}) and fetch it again" in told
    assert told.endswith("Error: not as stored: a@v1, c@v1")
    alone = run_thrifty(tmp_path / "h", "models", "verify", "b")
    assert alone.returncode == 0


def test_a_purge_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    nothing = run_thrifty(tmp_path, "cache", "purge", "--deployment", "nope")
    assert nothing.returncode == 1
    prepare(home, deployment(echo("a"), echo("b"), name="chat")).close()
    for arguments, message in (
        (["--deployment", "nope"], "there is no deployment 'nope'; known here: chat"),
        (["--deployment", "chat", "--version", "z"], "'chat' has no version 'z'"),
        (["--version", "z"], "no deployment has a version 'z'"),
    ):
        result = run_thrifty(tmp_path, "cache", "purge", *arguments)
        assert (result.returncode, message in result.stderr) == (1, True), result.stderr
    for arguments in ([], ["--deployment", "chat", "--version", "b"], ["--version", "a"]):
        assert run_thrifty(tmp_path, "cache", "purge", *arguments).returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown_for_shells(shell: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "thrifty", "--show-completion", shell],
        # Without it Typer asks which shell runs the tests, and takes that one.
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "thrifty" in result.stdout
