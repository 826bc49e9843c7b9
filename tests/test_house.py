"""Rules of the house that hold everywhere; each test finds what it judges by itself."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "thrifty"
MODULES = sorted(SOURCE.rglob("*.py"))

HEAVY = {
    "torch",
    "transformers",
    "openvino",
    "openvino_genai",
    "ray",
    "matplotlib",
    "huggingface_hub",
}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_a_plausible_number_of_modules() -> None:
    assert 100 < len(MODULES) < 1000


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_says_what_it_owns(path: Path) -> None:
    tree = ast.parse(path.read_text())
    docstring = ast.get_docstring(tree)
    if not tree.body:
        return
    assert docstring, f"{relative(path)} has no docstring"
    assert len(docstring) > 12


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 640, "ask what second job moved in"


def test_no_module_is_called_utils() -> None:
    assert not [p for p in MODULES if p.stem in ("utils", "util", "helpers", "misc", "common")]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_pickle_no_shell_and_no_eval(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {"pickle", "shelve", "marshal", "dill"} & {
                alias.name for alias in node.names
            }
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "os.system", "os.popen"), f"line {node.lineno}"
            for keyword in node.keywords:
                shell = keyword.arg == "shell" and getattr(keyword.value, "value", None)
                assert not shell, f"line {node.lineno}"


def imports_of(module: str) -> set[str]:
    """The top-level packages that are loaded once `module` is imported."""
    code = f"import sys, json, {module}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(json.loads(output.stdout))


@pytest.mark.parametrize(
    "module",
    ["thrifty", "thrifty.cli.app", "thrifty.worker.process", "thrifty.control.controller",
     "thrifty.engines.openvino.__main__", "thrifty.cli.up"],
)  # fmt: skip
def test_the_online_plane_loads_nothing_heavy(module: str) -> None:
    assert not imports_of(module) & HEAVY


def test_importing_thrifty_costs_nothing() -> None:
    assert not imports_of("thrifty") & {"numpy", "pydantic", "sqlalchemy", "msgspec", "typer"}


def test_showing_the_status_loads_neither_models_nor_specs() -> None:
    """Nine tenths of `thrifty status` are imports."""
    unneeded = {"numpy", "pydantic", "yaml", "requests", "tokenizers", "openvino", "alembic"}
    assert not imports_of("thrifty.cli.status") & unneeded


def test_the_public_names_exist_and_are_documented() -> None:
    import thrifty

    assert len(thrifty.__all__) >= 8
    for name in thrifty.__all__:
        value = getattr(thrifty, name)
        assert name.startswith("__") or value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = thrifty.nothing


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[\[<>=;]", text)[0] for text in project["dependencies"]]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    missing = [name for name in names if f"`{name}`" not in text]
    assert not missing
    assert len(names) > 10


def test_every_dependency_is_pinned_to_a_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        assert ">=" in text, text
        assert "<" in text or text.startswith("pip"), text


# What is named exists

TEXTS = [*MODULES, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
DOTTED = re.compile(r"(?<![\w./-])thrifty(?:\.[A-Za-z_]\w*)+")
FILE_SUFFIXES = {"crt", "db", "env", "example", "json", "log", "pem", "service", "toml", "yaml"}
PATH_IN_CODE = re.compile(r"`([a-z_]+(?:/[a-z_]+)+)(?:\.py)?`")
PLANNED = {"engines/vllm", "fleet/ray"}
"""Places that docs/architecture.md keeps for what is being built."""


def top_names(path: Path) -> set[str]:
    """What a module defines or imports at its top level, by its source."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        for inner in [node, *ast.walk(node)] if isinstance(node, ast.If | ast.Try) else [node]:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(inner.name)
            elif isinstance(inner, ast.Import | ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in inner.names}
            elif isinstance(inner, ast.Assign | ast.AnnAssign):
                targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
                names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return names


def is_there(dotted: str) -> bool:
    """Whether `thrifty.a.b` names a module or something at the top of one."""
    at = SOURCE
    for index, part in enumerate(dotted.split(".")[1:], start=1):
        if (at / part).is_dir():
            at /= part
        elif (at / f"{part}.py").exists():
            at /= f"{part}.py"
        else:
            module = at / "__init__.py" if at.is_dir() else at
            if at == SOURCE:
                import thrifty

                return hasattr(thrifty, part)
            return part in top_names(module) and len(dotted.split(".")) - index <= 2
    return True


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_modules_that_are_named_exist(path: Path) -> None:
    named = {match.group() for match in DOTTED.finditer(path.read_text())}
    dotted = {name for name in named if name.rpartition(".")[2] not in FILE_SUFFIXES}
    assert not {name for name in dotted if not is_there(name)}


def test_names_are_judged_rightly() -> None:
    assert is_there("thrifty.engines.registry")
    assert is_there("thrifty.engines.registry.find_engine")
    assert is_there("thrifty.Service.url")
    assert not is_there("thrifty.engines.resolve")
    assert not is_there("thrifty.wire.client")


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_paths_that_are_named_exist(path: Path) -> None:
    packages = {folder.name for folder in SOURCE.iterdir() if folder.is_dir()}
    files = [str(p.relative_to(SOURCE).with_suffix("")) for p in SOURCE.rglob("*") if p.is_file()]
    folders = [str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*") if p.is_dir()]
    for name in set(PATH_IN_CODE.findall(path.read_text())) - PLANNED:
        if name.split("/")[0] in packages and name.split("/")[0] != "data":
            found = any(f"/{one}".endswith(f"/{name}") for one in [*files, *folders])
            assert found, f"{relative(path)} names {name}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_importing_a_module_acts_on_nothing_outside_it(path: Path) -> None:
    """Calls at the top level are allowed on what the module made itself, such as a registry."""
    tree = ast.parse(path.read_text())
    own = {
        name.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }
    if path.name in ("__main__.py", "env.py"):
        return  # these are run, not imported
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            root = node.value.func
            while isinstance(root, ast.Attribute):
                root = root.value
            made_here = isinstance(root, ast.Name) and root.id in own
            assert made_here, f"line {node.lineno}: {ast.unparse(node)}"


def test_the_page_on_architecture_has_a_line_for_every_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    packages = {p.name for p in SOURCE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert len(packages) > 15
    for package in packages:
        assert f"\n    {package}/" in page, f"no line for {package}/"


PROSE_LINE_LENGTH = 100
PROSE_IS_BOUNDED = (
    "artifacts",
    "batches",
    "bench",
    "compare",
    "compress/ablation_masks.py",
    "compress/calibration.py",
    "compress/distill",
    "compress/divergence_evaluator.py",
    "compress/pipeline.py",
    "compress/prune",
    "curate",
    "data",
    "db/batches.py",
    "db/cache.py",
    "db/changes.py",
    "db/database.py",
    "db/fleet.py",
    "db/fleet_report.py",
    "db/keys.py",
    "db/leases.py",
    "db/migrations",
    "db/nodes.py",
    "db/request_log.py",
    "db/sanitize.py",
    "db/secrets.py",
    "db/spend.py",
    "db/tables.py",
    "errors.py",
    "evaluate",
    "files.py",
    "gateway",
    "home.py",
    "improve",
    "observe",
    "openai/bodies.py",
    "openai/fields.py",
    "openai/ids.py",
    "text",
    "train",
    "types.py",
    "units.py",
    "worker",
)
"""Packages and modules whose prose keeps to the line length; extend it until it covers all of them."""


def list_prose_lines(source: str) -> set[int]:
    """The numbers of a module's lines with docstrings, or with nothing but a comment."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.update(range(node.lineno, (node.end_lineno or 0) + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            lines.add(token.start[0])
    return lines


def test_prose_lines_are_found() -> None:
    source = '# one\n"""two\nthree"""\ny = """four"""  # code\n\ndef f():\n    """Seven."""\n'
    assert list_prose_lines(source) == {1, 2, 3, 7}


def test_bounded_places_exist() -> None:
    assert not [name for name in PROSE_IS_BOUNDED if not (SOURCE / name).exists()]


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p.relative_to(SOURCE).as_posix().startswith(PROSE_IS_BOUNDED)],
    ids=relative,
)
def test_lines_of_prose_keep_to_their_length(path: Path) -> None:
    source = path.read_text()
    text = source.splitlines()
    too_long = [
        f"line {number}: {len(text[number - 1])} characters"
        for number in sorted(list_prose_lines(source))
        if len(text[number - 1]) > PROSE_LINE_LENGTH
    ]
    assert not too_long
