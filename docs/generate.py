"""Writes the pages that are made from the code: `python docs/generate.py`.

`--check` writes nothing and fails where a page is stale; the tests run it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import typer
from figures import (
    PLOT,
    RESULTS,
    describe_processor,
    draw_plot,
    figure_rows,
    headline_machines,
    headline_rows,
    plot_is_stale,
    read_results,
)
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from thrifty.batches.settings import BatchSettings
from thrifty.cli.app import app
from thrifty.curate.recipe import Recipe
from thrifty.db import open_database
from thrifty.engines.base import Traits
from thrifty.engines.machine import detect_machine
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.home import Home
from thrifty.http.routes import Route
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.fields import FIELDS, GATEWAY_FIELDS, WISHES, Endpoint, is_honoured
from thrifty.spec.alerts import AlertTargetSpec
from thrifty.spec.load import ENVIRONMENT
from thrifty.spec.models import Spec, VersionSpec
from thrifty.spec.own_file import find_sections
from thrifty.worker.assemble import Secrets, assemble
from thrifty.worker.settings import GatewaySettings

ROOT = Path(__file__).parent.parent
FIGURES_BEGIN, FIGURES_END = "<!-- figures: made by docs/generate.py -->", "<!-- end of figures -->"
LAYERS_BEGIN, LAYERS_END = "<!-- layers: made by docs/generate.py -->", "<!-- end of layers -->"
RECIPE_BEGIN, RECIPE_END = "<!-- recipe: made by docs/generate.py -->", "<!-- end of recipe -->"
ROUTES_BEGIN, ROUTES_END = "<!-- routes: made by docs/generate.py -->", "<!-- end of routes -->"
METRICS_BEGIN, METRICS_END = "<!-- metrics: made by docs/generate.py -->", "<!-- end of metrics -->"
FIGURES_INTRODUCTION = """\
Each figure was measured by its command, side by side with what it is compared to, in alternating
turns of one run: the median of the rounds, with the least and the greatest in brackets. A bar that
was not met is marked **no** and stays on this page. The raw figures of every round are in
`benchmarks/results`. Measure them yourself with `make bench`.

## Which processors they hold for

Each section names its processor. Speed and, for 8-bit activations, quality depend on it: all figures
on this page hold for processors with AVX512 and VNNI (Intel Xeon since 2019, AMD EPYC since 2022).
With AVX2 only, 8- and 4-bit weights gain nothing under load; [processors.md](processors.md) says what
holds there. ARM and Apple silicon were not measured.
"""
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
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    names: dict[Any, str] = {str: "text", int: "number", float: "number", bool: "`true` or `false`"}
    if get_origin(annotation) is dict:
        return "mapping"
    if len(arguments) > 1 and all(one in names for one in arguments):
        return " or ".join(names[one] for one in arguments)
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
        "Short forms: `engine: echo` for `engine: {kind: echo}`, `load: 8` for `load: {streams: 8}`, `replicas: 2` for "
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
        "## Keys of a target of alerts\n",
        "They stand in each mapping of the list `alerts.to`. [Alerts](observe.md#alerts) has an "
        "example.\n",
        table(
            ("key", "type", "default", "what it does"),
            [
                (f"`{path}`", kind, default, text)
                for path, kind, default, text in walk(AlertTargetSpec)
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
        "what they honour is up to them. Values without effect ask for what happens anyway, so every "
        "engine takes them. What is *taken* is a wish that answers need not follow: see "
        "[api.md](api.md#fields-that-need-the-right-model-or-engine).\n",
    ]
    for endpoint, fields in FIELDS.items():
        parts.append(f"## `{endpoint.value}`\n")
        rows = []
        for name, field in fields.items():
            marks = [describe_support(find_engine(k).traits, endpoint, name) for k in kinds]
            neutral = ", ".join(f"`{json.dumps(value)}`" for value in field.neutral)
            rows.append((f"`{name}`", field.rule, neutral, *marks))
        parts.append(table(("field", "must be", "without effect", *kinds), rows))
    return "\n".join(parts)


def describe_support(traits: Traits, endpoint: Endpoint, name: str) -> str:
    """What an engine makes of a field: nothing, everything, or certain values."""
    if endpoint not in traits.endpoints:
        return ""
    if not is_honoured(name, endpoint, (traits.honours or frozenset()) | GATEWAY_FIELDS):
        return "taken" if name in WISHES else ""
    narrowed = traits.narrowed.get((endpoint, name))
    return "yes" if narrowed is None else f"only {narrowed.rule}"


def make_route_table(routes: Iterable[Route[Any]]) -> str:
    """Every route, who may call it, and what it does."""
    rows = [
        (
            f"`{route.method} {route.path.replace(':path}', '}')}`",
            f"`{route.role}`" if route.role else "anyone",
            route.summary,
        )
        for route in routes
    ]
    return table(("route", "role", "what it does"), rows)


def list_routes() -> Iterable[Route[Any]]:
    """The routes of a gateway worker that has everything, made from its parts without listening."""

    async def find(folder: str) -> Iterable[Route[Any]]:
        url = Home(Path(folder)).database_url
        open_database(url, migrate=True).close()
        settings = GatewaySettings("127.0.0.1", 0, batches=BatchSettings(folder=folder))
        async with assemble(settings, Secrets(url), refuse_services) as parts:
            return parts.routes

    def refuse_services() -> NoReturn:
        raise AssertionError("nothing is asked of the API")

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(find(folder))


def make_api_page() -> str:
    """The page of the API, with its table of routes made from the gateway's own."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    return replace_between(text, ROUTES_BEGIN, ROUTES_END, make_route_table(list_routes()))


def make_observe_page() -> str:
    """The page on telemetry, with the table of all metrics."""
    text = (ROOT / "docs" / "observe.md").read_text(encoding="utf-8")
    suffixes = {"counter": "_total"}
    rows = [
        (f"`{family.name}{suffixes.get(family.type, '')}`", family.type, family.documentation)
        for family in sorted(GatewayMetrics().registry.collect(), key=lambda one: one.name)
    ]
    made = table(("metric", "type", "what"), rows)
    return replace_between(text, METRICS_BEGIN, METRICS_END, made)


def make_figure_page() -> str:
    """Every measurement: a table of all figures, then each as it was recorded."""
    records = read_results()
    rows = [row for name, record in records for row in figure_rows(name, record)]
    parts = [
        "# Figures\n",
        NOTE.replace("the code", "benchmarks/results"),
        FIGURES_INTRODUCTION,
        "## All figures\n",
        table(("figure", "measured", "bar", "met", "by `benchmarks/`"), rows),
    ]
    for name, record in records:
        machine = record["machine"]
        parts.append(f"## {name}\n\n`python benchmarks/{name}.py`\n")
        versions = ", ".join(str(version) for version in record.get("versions", {}).values())
        parts.append(
            f"{describe_processor(machine)}, {machine['memory_bytes'] / 1e9:.0f} GB; "
            f"Python {machine['python']}; {machine['at'][:10]}, commit {machine['commit']}"
            f"{'; beside ' + versions if versions else ''}.\n"
        )
        parts.append((RESULTS / f"{name}.md").read_text(encoding="utf-8"))
    return "\n".join(parts)


def make_architecture_page() -> str:
    """The page of the architecture, with the layers that the import contracts name."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    parts = []
    for contract in project["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers":
            layers = [layer.replace("thrifty.", "") for layer in contract["layers"]]
            lines = "\n".join(f"    {layer}" for layer in layers)
            parts.append(f"{contract['name']}:\n\n{lines}\n")
    return replace_between(text, LAYERS_BEGIN, LAYERS_END, "\n" + "\n".join(parts) + "\n")


def replace_between(text: str, begin: str, end: str, made: str) -> str:
    """`text` with what stands between two marks made anew. Raises `ValueError` without them."""
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{made}{end}{after}"


def walk_recipe(section: type[BaseModel], prefix: str = "") -> list[tuple[str, ...]]:
    """Rows of key path, type, default and description, lists of sections included."""
    rows: list[tuple[str, ...]] = []
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        below = find_sections(field.annotation)
        if not below:
            kind = describe_type(field)
            default = "" if field.is_required() else describe_default(field.default, kind)
            rows.append((f"`{path}`", kind, default, field.description or ""))
            continue
        is_list = get_origin(field.annotation) is tuple
        default = "none" if field.default is None else ""
        kind = "list of mappings" if is_list else "mapping"
        rows.append((f"`{path}`", kind, default, field.description or ""))
        rows += walk_recipe(below[0], f"{path}[]." if is_list else f"{path}.")
    return rows


def make_data_page() -> str:
    """The page on data sets, with its table of keys made anew."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    made = table(("key", "type", "default", "what it says"), walk_recipe(Recipe))
    return replace_between(text, RECIPE_BEGIN, RECIPE_END, made)


def make_readme() -> str:
    """The README, with its figures made anew."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    made = table(("what", "measured", "command"), list(headline_rows()))
    machines = f"\nMeasured on: {headline_machines()}.\n"
    return replace_between(text, FIGURES_BEGIN, FIGURES_END, made + machines)


PAGES = {
    "docs/spec.md": make_spec_page,
    "docs/commands.md": make_command_page,
    "docs/fields.md": make_field_page,
    "docs/api.md": make_api_page,
    "docs/architecture.md": make_architecture_page,
    "docs/data.md": make_data_page,
    "docs/observe.md": make_observe_page,
    "docs/figures.md": make_figure_page,
    "README.md": make_readme,
}


def main() -> int:
    """Write every page and the plot, or check them."""
    detect_machine()
    check = "--check" in sys.argv
    stale = []
    for name, make in PAGES.items():
        path, text = ROOT / name, make()
        if check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if plot_is_stale():
        if check:
            stale.append(str(PLOT.relative_to(ROOT)))
        else:
            draw_plot()
    if stale:
        print(f"stale: {', '.join(stale)}; write them anew: make docs")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
