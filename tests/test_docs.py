"""Pages and examples are true: made from the code, run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
import typer
from typer.exceptions import TyperException

from thrifty.cli.app import app
from thrifty.compress.pipeline import check_compress
from thrifty.control.checks import check_spec
from thrifty.engines import registry
from thrifty.engines.machine import detect_machine
from thrifty.service import Service
from thrifty.spec import load_spec

ROOT = Path(__file__).parent.parent
SPECS = sorted((ROOT / "examples").rglob("*.yaml"))
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)


def test_generated_pages_are_not_stale() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_example_specs_are_valid(path: Path) -> None:
    for one in check_spec(load_spec(path, environment={}), detect_machine()):
        for version in one.versions():
            compress = version.loaded.spec.compress
            assert not compress.is_pipeline or not check_compress(compress)


def test_there_are_examples() -> None:
    assert len(SPECS) >= 3
    assert len(PROGRAMS) >= 2


@pytest.mark.engine
@pytest.mark.service
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_example_programs_run(path: Path, model_home: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(path)], env={**os.environ, "THRIFTY_HOME": str(model_home)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip()) > 10


# Links


def find_anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", strip_fences(path.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        count = 0
        while (f"{slug}-{count}" if count else slug) in anchors:
            count += 1
        anchors.add(f"{slug}-{count}" if count else slug)
    return anchors


def strip_fences(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", path.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        page = path.parent / target if target else path
        assert page.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in find_anchors(page), f"{path.name} links to {target}#{anchor}"


def test_anchors_are_those_of_github() -> None:
    assert "the-request-log-and-the-database" in find_anchors(ROOT / "docs" / "operations.md")
    assert "gateway_overhead" in find_anchors(ROOT / "docs" / "figures.md")


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
        todo += [(page.parent / t).resolve() for t in targets if not t.startswith("http")]
    assert not [path.name for path in PAGES if path.resolve() not in seen]


# Commands

WRITTEN = [page for page in PAGES if page.name != "commands.md"]


def find_commands(text: str) -> list[str]:
    """The lines of a page's code blocks that call `thrifty`, without what is only said of them."""
    text = re.sub(r"\s*\\\n\s*(?=\S)", " ", text)
    blocks = re.findall(r"^```(?:sh|text)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^    (.+)$", strip_fences(text), re.MULTILINE)
    commands = []
    for line in lines:
        for part in re.split(r";\s", line.removeprefix("$ ").strip()):
            if part.startswith("thrifty "):
                said = re.split(r"\s{3,}|\s#\s|\s>\s", part)[0]
                commands.append(said)
    return commands


def parse_command(line: str) -> None:
    """Parse a line as the command line does, without running it. Brackets and alternatives, as in
    `[--role user|admin]`, are read as their first form. Raises `LookupError` for a command that does
    not exist, and `TyperException` for wrong arguments.
    """
    plain = re.sub(r"(\w)(\|\w+)+", r"\1", re.sub(r"[\[\]]", "", line))
    name, *words = shlex.split(plain)
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        name, *words = words
        command = command.commands[name]
    if words and hasattr(command, "default"):
        command = command.commands[command.default]
    if words and hasattr(command, "commands") and not words[0].startswith("-"):
        raise LookupError(f"there is no command {words[0]!r}")
    command.make_context(name, words)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_commands_in_pages_can_be_called(path: Path) -> None:
    for line in find_commands(path.read_text()):
        try:
            parse_command(line)
        except (LookupError, TyperException) as error:
            pytest.fail(f"{path.name}: {line}: {error!r}")


def test_many_commands_are_found() -> None:
    found = {path.name: len(find_commands(path.read_text())) for path in WRITTEN}
    assert found["tutorial.md"] > 10
    assert found["operations.md"] > 10
    assert sum(found.values()) > 60
    with pytest.raises(LookupError):
        parse_command("thrifty trafic chat a=1")
    with pytest.raises(TyperException):
        parse_command("thrifty apply chat.yaml --resett")


# Specs and code


def find_blocks(language: str) -> list[tuple[str, str]]:
    """The fenced blocks in a language, each with the page that it stands in."""
    pattern = rf"^```{language}\n(.*?)^```$"
    return [
        (path.name, block)
        for path in PAGES
        for block in re.findall(pattern, path.read_text(), re.MULTILINE | re.DOTALL)
    ]


@pytest.mark.parametrize(("page", "block"), find_blocks("yaml"))
def test_specs_in_pages_are_valid(page: str, block: str, tmp_path: Path) -> None:
    path = tmp_path / "thrifty.yaml"
    path.write_text(block)
    load_spec(path, environment={})


@pytest.mark.parametrize(("page", "block"), find_blocks("python"))
def test_code_in_pages_is_python(page: str, block: str) -> None:
    compile(block, page, "exec")


@pytest.mark.slow
def test_the_engine_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of `docs/add-an-engine.md`, in a folder of its own, registered and served."""
    package = tmp_path / "shout"
    package.mkdir()
    (package / "__init__.py").write_text('"""An engine of a page."""\n')
    blocks = [block for page, block in find_blocks("python") if page == "add-an-engine.md"]
    for block in blocks:
        name = re.match(r"# shout/(\w+\.py)\n", block)
        assert name is not None
        (package / name[1]).write_text(block)
    assert {path.name for path in package.iterdir()} == {
        "__init__.py", "__main__.py", "adapter.py", "backend.py",
    }  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", paths)
    monkeypatch.setitem(registry._ENGINES, "shout", "shout.adapter:ShoutEngine")
    home = tmp_path / "home"
    with Service(home=home, engine__kind="shout", name="shout", gateway__port=0) as service:
        question = {"role": "user", "content": "is anybody there?"}
        body = {"model": "shout", "messages": [question]}
        answer = requests.post(f"{service.url}/v1/chat/completions", json=body, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == "IS ANYBODY THERE?"
        refused = requests.post(
            f"{service.url}/v1/chat/completions", json={**body, "logit_bias": {"5": 1}}, timeout=60
        )
        assert refused.json()["error"]["code"] == "unsupported_parameter"


# What is said of the code


def test_documented_metrics_exist_and_all_are_documented() -> None:
    from prometheus_client import generate_latest

    from thrifty.observe.metrics import GatewayMetrics

    exposed = set(re.findall(r"# TYPE (\w+)", generate_latest(GatewayMetrics().registry).decode()))
    page = (ROOT / "docs" / "observe.md").read_text()
    assert set(re.findall(r"`(thrifty_\w+)`", page)) == exposed
    assert len(exposed) > 60
    written = "\n".join(path.read_text() for path in PAGES)
    assert set(re.findall(r"`(thrifty_\w*[a-z])`", written)) <= exposed


def test_documented_error_codes_are_those_of_the_code() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    used = set(re.findall(r'code="(\w+)"', source))
    page = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert used <= documented, used - documented
