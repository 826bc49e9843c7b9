"""Writes the pages that are made from the code: `python docs/generate.py`.

`--check` writes nothing and fails where a page is stale; the tests run it.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from thrifty.cli.app import app
from thrifty.engines.machine import detect_machine
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.http.routes import Route
from thrifty.openai.fields import FIELDS, GATEWAY_FIELDS, Endpoint
from thrifty.spec.load import ENVIRONMENT
from thrifty.spec.models import Spec, VersionSpec

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ORDER = (
    "engines", "routing", "cache", "fairness", "gateway_tokens", "gateway_overhead", "gateway_memory",
    "batches",
)  # fmt: skip
FIGURES_BEGIN, FIGURES_END = "<!-- figures: made by docs/generate.py -->", "<!-- end of figures -->"
LAYERS_BEGIN, LAYERS_END = "<!-- layers: made by docs/generate.py -->\n", "\n<!-- end of layers -->"
ROUTES_BEGIN, ROUTES_END = "<!-- routes: made by docs/generate.py -->", "<!-- end of routes -->"
NOTE = "<!-- Made by docs/generate.py from the code. Change that, then: make docs -->\n"


def describe_type(field: FieldInfo) -> str:
    """A field's type as a user thinks of it."""
    for item in field.metadata:
        schema = getattr(item, "json_schema", None)
        if schema:
            return str(schema["title"])
    annotation = field.annotation
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if arguments and len(arguments) == 1:
        for item in getattr(arguments[0], "__metadata__", ()):
            schema = getattr(item, "json_schema", None)
            if schema:
                return str(schema["title"])
        annotation = arguments[0]
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        if get_origin(annotation) is Literal:
            return ", ".join(f"`{value}`" for value in get_args(annotation))
    names: dict[Any, str] = {str: "text", int: "number", float: "number", bool: "`true` or `false`"}
    return names.get(annotation, "list" if arguments else str(annotation))


def describe_default(value: Any, kind: str) -> str:
    """A default as it would be written."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if kind == "size":
        return f"`{write_short(value, ((1e9, 'GB'), (1e6, 'MB'), (1e3, 'KB')))}`"
    if kind == "duration":
        units = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"), (1e-3, "ms"))
        return f"`{write_short(value, units)}`"
    return f"`{value}`"


def write_short(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """`value` in the largest unit that leaves a whole number."""
    for size, unit in units:
        if value and value % size == 0:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def walk(section: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Rows of key path, type, default and description."""
    rows = []
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows.append((path, "mapping", "", field.description or ""))
            rows += walk(annotation, f"{path}.")
        else:
            kind = describe_type(field)
            default = "" if field.is_required() else describe_default(field.default, kind)
            rows.append((path, kind, default, field.description or ""))
    return rows


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def make_spec_page() -> str:
    """The reference of the spec."""
    parts = [
        "# The spec\n",
        NOTE,
        "A spec is a YAML file. Every key has a default that works; an empty file serves the small "
        "default model. Durations are written `500ms`, `10s`, `15m`, `2h` or `7d`, sizes `256MB` or "
        "`2GiB`, counts `600` or `200k`. Unknown keys, bad units and impossible combinations are "
        "refused, all at once, each with its line. `thrifty spec FILE --explain` shows what a file "
        "comes to, and where each value came from: a flag wins over the environment, the environment "
        "over the file, the file over the default.\n",
        table(
            ("key", "type", "default", "what it does"),
            [(f"`{path}`", kind, default, text) for path, kind, default, text in walk(Spec)],
        ),
        "Short forms: `engine: echo` for `engine: {kind: echo}`, `replicas: 2` for "
        "`replicas: {count: 2}`, `compress: int8` for `compress: {quantize: {scheme: int8}}`, "
        "`prune: 0.8` for `prune: {parameters: 0.8}`, `distill: 2M` for `distill: {tokens: 2M}`, "
        "`cache: false` for `cache: {exact: {when: never}}`. [Compression](compression.md) says what "
        "`compress` does.\n",
        "## Keys of a version\n",
        "They stand in each mapping of the list `versions`. [Versions](versions.md) has a worked "
        "example.\n",
        table(
            ("key", "type", "default", "what it does"),
            [
                (f"`{path}`", kind, default, text)
                for path, kind, default, text in walk(VersionSpec)
                if "." not in path
            ],
        ),
        "## Options of the engines\n",
        "They stand beside `kind` in `engine`.\n",
    ]
    for kind in engine_kinds():
        engine = find_engine(kind)
        parts.append(f"### {kind}\n")
        parts.append(f"{engine.__class__.__doc__}\n")
        parts.append(
            table(
                ("key", "type", "default", "what it does"),
                [(f"`{p}`", k, d, t) for p, k, d, t in walk(engine.options, "engine.")],
            )
        )
    parts.append("## Environment\n")
    parts.append(
        table(("variable", "sets"), [(f"`{v}`", f"`{k}`") for v, k in ENVIRONMENT.items()])
    )
    return "\n".join(parts)


def make_command_page() -> str:
    """The reference of the command line."""
    parts = ["# The command line\n", NOTE]

    def add(command: Any, path: str) -> None:
        context = typer.Context(command, info_name=path, terminal_width=100, max_content_width=100)
        parts.append(f"## {path}\n\n```text\n{command.get_help(context).strip()}\n```\n")
        for name, sub in getattr(command, "commands", {}).items():
            add(sub, f"{path} {name}")

    add(typer.main.get_command(app), "thrifty")
    return "\n".join(parts)


def make_field_page() -> str:
    """Which request fields there are, and which engines honour them."""
    kinds = [kind for kind in engine_kinds() if find_engine(kind).traits.honours is not None]
    parts = [
        "# Request fields\n",
        NOTE,
        "Nothing is accepted and ignored: a field that the engine behind a model cannot honour is a "
        "400 that names it, and so is a field that is not known or a value that it does not hold. "
        "For servers that others run (`engine: remote`) only the values of known fields are checked; "
        "what they honour is up to them.\n",
    ]
    for endpoint, fields in FIELDS.items():
        parts.append(f"## `{endpoint.value}`\n")
        rows = []
        for name, field in fields.items():
            marks = []
            for kind in kinds:
                honours = find_engine(kind).traits.honours or frozenset()
                always = name in ("model", "stream", "stream_options", "user", *GATEWAY_FIELDS)
                yes = name in honours or always
                if endpoint is Endpoint.EMBEDDINGS and kind == "echo":
                    yes = False
                marks.append("yes" if yes else "")
            rows.append((f"`{name}`", field.rule, *marks))
        parts.append(table(("field", "must be", *kinds), rows))
    return "\n".join(parts)


def make_route_table(routes: Iterable[Route[Any]]) -> str:
    """Every route, who may call it, and what it does."""
    rows = [
        (
            f"`{route.method} {route.path}`",
            f"`{route.role}`" if route.role else "anyone",
            route.summary,
        )
        for route in routes
    ]
    return table(("route", "role", "what it does"), rows)


def make_api_page(routes: Iterable[Route[Any]]) -> str:
    """The page of the API, with its table of routes made from `routes`."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    before, rest = text.split(ROUTES_BEGIN)
    _, after = rest.split(ROUTES_END)
    return f"{before}{ROUTES_BEGIN}\n{make_route_table(routes)}{ROUTES_END}{after}"


def read_results() -> list[tuple[str, dict[str, Any]]]:
    """What `benchmarks/` measured last, by name."""
    found = [(p.stem, json.loads(p.read_text(encoding="utf-8"))) for p in RESULTS.glob("*.json")]
    return sorted(
        found, key=lambda entry: ORDER.index(entry[0]) if entry[0] in ORDER else len(ORDER)
    )


def figure_rows(name: str, record: dict[str, Any]) -> list[tuple[str, ...]]:
    """A measurement's figures as rows of a table."""
    return [
        (f["figure"], f["measured"], f["bar"], "yes" if f["met"] else "**no**", f"`{name}`")
        for f in record["figures"]
    ]


def make_figure_page() -> str:
    """Every measurement, as it was recorded."""
    parts = [
        "# Figures\n",
        NOTE.replace("the code", "benchmarks/results"),
        "Each was measured by its command, side by side with what it is compared to, in turns in one "
        "run: the median of the rounds, with the least and the greatest in brackets. They hold for "
        "processors with AVX-512 and VNNI; [others](processors.md) differ. The raw figures "
        "of every round are in `benchmarks/results`. Measure them yourself with `make bench`.\n",
    ]
    for name, record in read_results():
        machine = record["machine"]
        parts.append(f"## {name}\n\n`python benchmarks/{name}.py`\n")
        versions = ", ".join(str(version) for version in record.get("versions", {}).values())
        parts.append(
            f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB; "
            f"Python {machine['python']}; {machine['at'][:10]}, commit {machine['commit']}"
            f"{'; beside ' + versions if versions else ''}.\n"
        )
        parts.append((RESULTS / f"{name}.md").read_text(encoding="utf-8"))
        rows = [row[:4] for row in figure_rows(name, record)]
        parts.append(table(("figure", "measured", "bar", "met"), rows))
    return "\n".join(parts)


def make_readme() -> str:
    """The README, with its table of figures made anew."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, rest = text.split(FIGURES_BEGIN)
    _, after = rest.split(FIGURES_END)
    rows = [row for name, record in read_results() for row in figure_rows(name, record)]
    made = table(("figure", "measured", "bar", "met", "by `benchmarks/`"), rows)
    return f"{before}{FIGURES_BEGIN}\n{made}{FIGURES_END}{after}"


def make_architecture_page() -> str:
    """The page on architecture, with the import contract as import-linter holds it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    before, rest = text.split(LAYERS_BEGIN)
    _, after = rest.split(LAYERS_END)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if "containers" not in one)
    drawn = "\n".join(f"    {layer.replace('thrifty.', '')}" for layer in layers)
    return f"{before}{LAYERS_BEGIN}\n{drawn}\n{LAYERS_END}{after}"


PAGES = {
    "docs/architecture.md": make_architecture_page,
    "docs/spec.md": make_spec_page,
    "docs/commands.md": make_command_page,
    "docs/fields.md": make_field_page,
    "docs/figures.md": make_figure_page,
    "README.md": make_readme,
}


def main() -> int:
    """Write every page, or check it."""
    detect_machine()
    stale = []
    for name, make in PAGES.items():
        path, text = ROOT / name, make()
        if "--check" in sys.argv:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"stale: {', '.join(stale)}; write them anew: make docs")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
