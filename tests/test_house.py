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
from functools import cache
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


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_there_is_a_plausible_number_of_modules() -> None:
    assert 100 < len(MODULES) < 1000


def test_every_module_says_what_it_owns() -> None:
    silent = [
        relative(path)
        for path in MODULES
        if parse(path).body and len(ast.get_docstring(parse(path)) or "") <= 12
    ]
    assert not silent


def test_modules_stay_readable() -> None:
    long = [relative(path) for path in MODULES if len(path.read_text().splitlines()) > 640]
    assert not long, "ask what second job moved in"


def test_no_module_is_called_utils() -> None:
    assert not [p for p in MODULES if p.stem in ("utils", "util", "helpers", "misc", "common")]


def is_unsafe(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return bool({"pickle", "shelve", "marshal", "dill"} & {alias.name for alias in node.names})
    if isinstance(node, ast.Call):
        shell = any(
            keyword.arg == "shell" and getattr(keyword.value, "value", None)
            for keyword in node.keywords
        )
        return shell or ast.unparse(node.func) in ("eval", "exec", "os.system", "os.popen")
    return False


def test_no_pickle_no_shell_and_no_eval() -> None:
    unsafe = [
        f"{relative(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Import | ast.Call) and is_unsafe(node)
    ]
    assert not unsafe


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


def test_modules_that_are_named_exist() -> None:
    there = cache(is_there)
    missing = [
        f"{relative(path)}: {name}"
        for path in TEXTS
        for name in sorted({match.group() for match in DOTTED.finditer(path.read_text())})
        if name.rpartition(".")[2] not in FILE_SUFFIXES and not there(name)
    ]
    assert not missing


def test_names_are_judged_rightly() -> None:
    assert is_there("thrifty.engines.registry")
    assert is_there("thrifty.engines.registry.find_engine")
    assert is_there("thrifty.Service.url")
    assert not is_there("thrifty.engines.resolve")
    assert not is_there("thrifty.wire.client")


def test_paths_that_are_named_exist() -> None:
    packages = {folder.name for folder in SOURCE.iterdir() if folder.is_dir()} - {"data"}
    known = [p.relative_to(SOURCE) for p in SOURCE.rglob("*")]
    there = {f"/{p}" for p in known} | {f"/{p.with_suffix('')}" for p in known}
    ends = {path[at:] for path in there for at, sign in enumerate(path) if sign == "/"}
    missing = [
        f"{relative(path)}: {name}"
        for path in TEXTS
        for name in sorted(set(PATH_IN_CODE.findall(path.read_text())) - PLANNED)
        if name.split("/")[0] in packages and f"/{name}" not in ends
    ]
    assert not missing


def list_calls_on_import(path: Path) -> list[str]:
    """Calls at the top level on anything but what the module made itself, such as a registry."""
    tree = parse(path)
    own = {
        name.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }
    found = []
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            root = node.value.func
            while isinstance(root, ast.Attribute):
                root = root.value
            if not (isinstance(root, ast.Name) and root.id in own):
                found.append(f"{relative(path)}:{node.lineno}: {ast.unparse(node)}")
    return found


def test_importing_a_module_acts_on_nothing_outside_it() -> None:
    run = ("__main__.py", "env.py")  # these are run, not imported
    found = [
        call for path in MODULES if path.name not in run for call in list_calls_on_import(path)
    ]
    assert not found


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


def test_lines_of_prose_keep_to_their_length() -> None:
    too_long = []
    for path in MODULES:
        if path.relative_to(SOURCE).as_posix().startswith(PROSE_IS_BOUNDED):
            source = path.read_text()
            text = source.splitlines()
            too_long += [
                f"{relative(path)}:{number}: {len(text[number - 1])} characters"
                for number in sorted(list_prose_lines(source))
                if len(text[number - 1]) > PROSE_LINE_LENGTH
            ]
    assert not too_long
