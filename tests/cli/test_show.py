"""What is printed is text: brackets and colons of users mean nothing, and nothing is cut in a pipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import update

from thrifty.cli.keys import run_create, run_list, run_rotate
from thrifty.cli.show import err, print_table, show_progress, tell
from thrifty.cli.top import make_view
from thrifty.db import open_database
from thrifty.db.tables import keys
from thrifty.errors import ThriftyError
from thrifty.home import Home
from thrifty.types import Progress

TEXTS = ("[/INST]", "[bold]x[/bold]", ":smile:", "[link=x]", "[", "\\[a]")


def test_cells_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    print_table(("[/a]", "b"), [(text, long) for text in TEXTS])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["[/a]", "b"]
    assert [line.split() for line in lines[1:]] == [[text, long] for text in TEXTS]


def test_messages_and_steps_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for text in TEXTS:
        tell(text)
        err.print(text)
    with show_progress() as on_progress:
        on_progress(Progress("[/INST]", 1, 2, "[/x]"))
    assert capsys.readouterr().err.splitlines() == [
        *(text for text in TEXTS for _ in range(2)), "[/INST] 1 of 2 [/x]"
    ]  # fmt: skip


def test_bars_on_a_terminal_show_steps_as_they_are() -> None:
    script = (
        "from thrifty.cli import show; from thrifty.types import Progress\n"
        "show.err._force_terminal = True\n"
        "with show.show_progress() as on_progress: on_progress(Progress('[/INST]', 1, 2, '[/x]'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[/INST]" in done.stderr


def test_keys_of_any_time_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THRIFTY_HOME", str(tmp_path))
    run_create("ann", "user", None, expires="90d")
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("sk-thrifty-")
    with pytest.raises(ThriftyError, match="100 years"):
        run_create("bob", "user", None, expires="999999999999999999d")
    with pytest.raises(ThriftyError, match="100 years"):
        run_rotate("ann", "999999999999999999d")
    assert capsys.readouterr().out == ""
    database = open_database(Home(tmp_path).database_url, migrate=False)
    with database.begin() as connection:
        connection.execute(update(keys).values(expires_s=1e25))
    database.close()
    run_list(as_json=False)
    assert "expires 9999-12-31" in capsys.readouterr().out


def test_the_live_view_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from thrifty.cli.show import make_console

    figures = {
        "requests_per_s": 0.0, "ttft_p50_s": None, "ttft_p95_s": None, "tpot_p50_s": None,
        "tokens_per_s": 0.0, "cache_hit_ratio": None, "errors_per_s": 0.0, "queued": 0, "held": 0,
    }  # fmt: skip
    deployment = {"name": "[/a]", "versions": [], **figures}
    view = make_view({"at_s": 0.0, "window_s": 10.0, "deployments": [deployment]})
    make_console().print(view)
    assert "[/a]" in capsys.readouterr().out
