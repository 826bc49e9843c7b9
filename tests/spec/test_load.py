"""From file, environment and flags to a spec: every fault at once, with its line; who wins."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thrifty.errors import Problem, SpecError, ThriftyError
from thrifty.home import HOME_VARIABLE, Home, find_home, make_private_folder
from thrifty.spec import LoadedSpec, Spec, load_spec, parse_spec
from thrifty.spec.load import ENVIRONMENT, suggest
from thrifty.spec.yaml_file import MAX_SPEC_BYTES


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "thrifty.yaml"
    path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
    return path


def load(folder: Path, text: str | bytes, **options: Any) -> LoadedSpec:
    return load_spec(write(folder, text), environment=options.pop("environment", {}), **options)


def faults(folder: Path, text: str | bytes, **options: Any) -> list[str]:
    """The faults, one to a line, as a user sees them."""
    with pytest.raises(SpecError) as caught:
        load(folder, text, **options)
    error = caught.value
    assert error.exit_code == 2
    assert str(error).startswith(f"{folder}/thrifty.yaml cannot be used:\n")
    lines = [line.removeprefix("  ") for line in str(error).splitlines()[1:]]
    assert lines == [str(problem) for problem in error.problems]
    return lines


def origins(loaded: LoadedSpec) -> dict[str, tuple[Any, str]]:
    """What was set, to what, and from where."""
    return {
        path: (value, origin) for path, value, origin in loaded.explain() if origin != "default"
    }


# Good specs


@pytest.mark.parametrize(
    "text", ["", "\n", "# only a comment\n", "{}", "---\n", "null\n", "\ufeff"]
)
def test_an_empty_spec_is_the_default(tmp_path: Path, text: str) -> None:
    loaded = load(tmp_path, text)
    assert loaded.spec == Spec()
    assert origins(loaded) == {}


def test_no_file_is_the_default_too() -> None:
    loaded = load_spec(environment={})
    assert (loaded.spec, loaded.source) == (Spec(), "the spec")


def test_a_whole_spec_is_read_and_each_value_knows_its_line(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        """\
        name: assistant
        model: hf:org/name
        engine:
          kind: echo
          ttft: 5ms
        replicas: {count: 2, cpus: 4}
        cache:
          exact:
            ttl: 10m

        gateway: {port: 9000}
        """,
    )
    assert origins(loaded) == {
        "name": ("assistant", "file, line 1"),
        "model": ("hf:org/name", "file, line 2"),
        "engine.kind": ("echo", "file, line 4"),
        "engine.ttft": ("5ms", "file, line 5"),
        "replicas.count": (2, "file, line 6"),
        "replicas.cpus": (4, "file, line 6"),
        "cache.exact.ttl": (600.0, "file, line 9"),
        "gateway.port": (9000, "file, line 11"),
    }
    assert [path for path, _, _ in loaded.explain()][:7] == [
        "name", "model", "aliases", "fallback", "engine.kind", "engine.image", "engine.ttft",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("engine: echo", "engine.kind", "echo"),
        ("compress: int8", "compress.quantize.scheme", "int8"),
        ("replicas: 2", "replicas.count", 2),
        ("cache: false", "cache.exact.when", "never"),
        ("cache: on", "cache.exact.when", "deterministic"),
        ("cache:\n  exact: false", "cache.exact.when", "never"),
        ("cache: {exact: true}", "cache.exact.when", "deterministic"),
    ],
)
def test_shorthands_are_explained_by_what_they_mean(
    tmp_path: Path, text: str, path: str, value: Any
) -> None:
    line = text.count("\n") + 2
    assert origins(load(tmp_path, f"# first\n{text}\n")) == {path: (value, f"file, line {line}")}


def test_a_date_is_text_and_a_name(tmp_path: Path) -> None:
    assert load(tmp_path, "name: 2024-01-31").spec.name == "2024-01-31"
    assert load(tmp_path, "name: 2024-99-99").spec.name == "2024-99-99"


def test_what_anchors_bring_in_is_explained_by_where_it_stands(tmp_path: Path) -> None:
    text = """\
    gateway: &g
      host: 127.0.0.2
      port: 9000
    engine:
      kind: echo
      extra:
        <<: *g
        port: 1
    cache:
      exact: &e {ttl: 5m}
    """
    loaded = load(tmp_path, text)
    assert loaded.lines["engine.extra.port"] == 8
    assert loaded.lines["engine.extra.host"] == 2
    assert loaded.spec.engine.options["extra"] == {"host": "127.0.0.2", "port": 1}


# Faults


def test_every_fault_is_reported_together_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
    engin: echo
    replicas: 2.5
    gateway:
      port: 70000
      hots: 127.0.0.1
    limits: {wait_timeout: 5x, max_body: lots, waiting: 1.5}
    name: a b
    name: c d
    routing: round-robin
    record: {requests: maybe}
    cache: {exact: 5}
    price_per_hour: -1
    compress: no
    """
    known = "alerts, aliases, batches, benchmark, budget_all_month, budget_month, cache, capacity, compress, database, deployments, engine, fallback, feedback, fleet, gateway, improve, limits, load, machine, model, name, observe, price_per_hour, prices, priority, quality, record, redis, redis_timeout, replicas, routing, share, slo, versions"  # fmt: skip
    assert faults(tmp_path, text) == [
        "line 1, engin: is not a known key; did you mean 'engine'?",
        "line 2, replicas: must be a number of copies, or a mapping, not 2.5",
        "line 4, gateway.port: must be less than or equal to 65535, not 70000",
        "line 5, gateway.hots: is not a known key; did you mean 'hosts'?",
        "line 6, limits.max_body: 'lots' is not a size such as 512KB, 256MB or 2GiB",
        "line 6, limits.waiting: 1.5 is not a whole number",
        "line 6, limits.wait_timeout: '5x' has the unknown unit 'x'; "
        "write a duration such as 500ms, 10s, 15m, 2h or 7d",
        "line 7, name: 'c d' is not a name; take up to 64 letters, digits, '.', '_', ':', '-' "
        "and '/', of which the first, and the first after each '/', is a letter or digit",
        "line 8, name: is set twice, first in line 7; keep one",
        "line 9, routing: 'round-robin' is not a choice; did you mean 'round_robin'?",
        "line 10, record.requests: must be true or false, not 'maybe'",
        "line 11, cache.exact: must be a mapping, or `true` or `false`, not 5",
        "line 12, price_per_hour: must be greater than or equal to 0, not -1",
        "line 13, compress: must be `auto`, `none`, `int8`, `w8a8`, `w7a8`, `int4`, or a mapping, not False",
    ]
    assert faults(tmp_path, "nothing_like_it: 1") == [
        f"line 1, nothing_like_it: is not a known key; known here: {known}"
    ]


@pytest.mark.parametrize(
    ("text", "key", "places"),
    [
        ("port: 8000", "port", "'gateway.port'"),
        ("quantize: int4", "quantize", "'compress.quantize'"),
        ("cache: {ttl: 1h}", "cache.ttl", "'cache.exact.ttl'"),
        ("slots: 3", "slots", "'replicas.slots' or 'batches.slots'"),
    ],
)
def test_a_key_of_another_section_is_shown_its_place(
    tmp_path: Path, text: str, key: str, places: str
) -> None:
    fault = f"line 1, {key}: is not a known key here; did you mean {places}?"
    assert faults(tmp_path, text) == [fault]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("gateway: {port: yes}", "line 1, gateway.port: must be a number, not True"),
        ("gateway: {port: 80.5}", "line 1, gateway.port: must be a whole number, not 80.5"),
        ("gateway: {port: web}", "line 1, gateway.port: must be a whole number, not 'web'"),
        ("gateway: {port: [1]}", "line 1, gateway.port: must be a whole number, not [1]"),
        ("gateway: 8080", "line 1, gateway: must be a mapping of keys to values, not 8080"),
        ("engine: [echo]", "line 1, engine: must be an engine's name, or a mapping with `kind` and "
         "that engine's options, not ['echo']"),
        ("cache: maybe", "line 1, cache: must be `true`, `false` or a mapping, not 'maybe'"),
        ("name: 5", "line 1, name: must be text (in quotes, if it looks like something else), not 5"),
        ("model: ''", "line 1, model: must be text of at least 1 character, not ''"),
        ("price_per_hour: .nan", "line 1, price_per_hour: must be a number, not nan"),
        ("price_per_hour: cheap", "line 1, price_per_hour: must be a number, not 'cheap'"),
        ("replicas: {start_timeout: 0s}", "line 1, replicas.start_timeout: must be greater than 0, not 0.0"),
        ("replicas: 0", "line 1, replicas.count: must be greater than or equal to 1, not 0"),
        ("compress: int2", "line 1, compress.quantize.scheme: 'int2' is not a choice; did you mean 'int8'?"),
        ("1: x", "line 1, 1: is not a known key; known here: "),
    ],
)  # fmt: skip
def test_a_fault_says_what_was_seen_and_what_would_do(
    tmp_path: Path, text: str, fault: str
) -> None:
    (seen,) = faults(tmp_path, text)
    assert seen.startswith(fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name: x\nengine: [\n", "line 3, the spec: is not valid YAML: expected the node content"),
        ("name: x\n\tmodel: y\n", "line 2, the spec: is not valid YAML: found character '\\t'"),
        ("name: x\nmodel: a: b\n", "line 2, the spec: is not valid YAML: mapping values are not allowed here"),
        ("name: 'x\nmodel: y\n", "line 3, the spec: is not valid YAML: found unexpected end of stream"),
        ("a: 1\n---\nb: 2\n", "line 2, the spec: is not valid YAML: but found another document"),
        ("a: *nowhere\n", "line 1, the spec: is not valid YAML: found undefined alias 'nowhere'"),
        ("\nname: !!python/name:os.system\n", "line 2, the spec: is not valid YAML: could not determine a constructor"),
        ("\nname: a\x01b\n", "line 2, the spec: is not valid YAML: it holds the character U+0001"),
        ("? [a]\n: b\n", "line 1, the spec: is not valid YAML: found unhashable key"),
        ("gateway: {port: " + "9" * 5000 + "}", "the spec: is not valid YAML: Exceeds the limit"),
        ("a: " + "[" * 600 + "]" * 600, "the spec: is not valid YAML: it is nested too deeply"),
        ("- name: x\n", "line 1, the spec: must be a mapping of keys to values, not a list"),
        ("just words\n", "line 1, the spec: must be a mapping of keys to values, not a single value"),
        ("42", "line 1, the spec: must be a mapping of keys to values, not a single value"),
        (b"name: \xff\xfe\n", "the spec: is not UTF-8 text (byte 6)"),
        ("name: x".encode("utf-16"), "the spec: is not UTF-8 text (byte 0)"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_spec_is_refused_with_the_place(
    tmp_path: Path, text: str | bytes, fault: str
) -> None:
    (seen,) = faults(tmp_path, text)
    assert seen.startswith(fault)


def test_a_file_that_is_a_model_is_recognized_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "thrifty.yaml"
    with path.open("wb") as file:
        file.truncate(5_000_000_000)
    with pytest.raises(SpecError) as caught:
        load_spec(path, environment={})
    assert str(caught.value).endswith(
        f"{path} has 5000000000 bytes; a spec has at most {MAX_SPEC_BYTES}. "
        "Is it a model? Then: thrifty up ./thrifty.yaml"
    )


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path if what == "folder" else tmp_path / "no.yaml"
    reason = {"missing": "No such file or directory", "folder": "Is a directory"}[what]
    with pytest.raises(SpecError, match=f"the spec: cannot be read: {reason}"):
        load_spec(path, environment={})


def test_a_duplicate_deep_in_the_file_is_found(tmp_path: Path) -> None:
    text = "cache:\n  exact:\n    ttl: 1m\n    when: never\n    ttl: 2m\n"
    assert faults(tmp_path, text) == [
        "line 5, cache.exact.ttl: is set twice, first in line 3; keep one"
    ]


def test_anchors_that_mean_a_huge_tree_cost_nothing(tmp_path: Path) -> None:
    levels = [
        f"a{n}: &a{n} {{{', '.join(f'k{i}: *a{n - 1}' for i in range(9))}}}" for n in range(1, 12)
    ]
    text = "a0: &a0 {x: 1}\n" + "\n".join(levels) + "\nname: *a11\nengine: {kind: &l [*a11]}\n"
    began_s = time.perf_counter()
    seen = faults(tmp_path, text)
    assert time.perf_counter() - began_s < 10
    assert len(seen) == 14
    assert all(len(line) < 500 for line in seen)


def test_an_anchor_that_holds_itself_is_refused_like_anything_else(tmp_path: Path) -> None:
    assert len(faults(tmp_path, "x: &a {b: *a}\nname: &l [*l]\n")) == 2


# Flags over environment over file over default


def test_flags_win_over_environment_over_file_over_default(tmp_path: Path) -> None:
    text = "gateway: {port: 1, host: 127.0.0.1}\nname: file\nmodel: file\n"
    environment = {"THRIFTY_PORT": "2", "THRIFTY_NAME": "environment", "UNRELATED": "x"}
    loaded = load(
        tmp_path, text, environment=environment, flags={"gateway.port": 3, "gateway.host": None}
    )
    assert origins(loaded) == {
        "gateway.port": (3, "flag"),
        "gateway.host": ("127.0.0.1", "file, line 1"),
        "name": ("environment", "environment, THRIFTY_NAME"),
        "model": ("file", "file, line 3"),
    }
    assert loaded.spec.routing == "auto"


@pytest.mark.parametrize(("variable", "path"), ENVIRONMENT.items())
def test_every_variable_sets_its_key(tmp_path: Path, variable: str, path: str) -> None:
    given = {"routing": "auto", "redis": "redis://host"}.get(path, "2")
    loaded = load(tmp_path, "", environment={variable: given})
    value, origin = origins(loaded)[path]
    assert origin == f"environment, {variable}"
    assert str(value) in ("2", "2.0", "auto", "***")
    assert load(tmp_path, "", environment={variable: ""}).spec == Spec(), "empty is not set"


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(ENVIRONMENT) >= 8
    monkeypatch.setenv("THRIFTY_PORT", "4321")
    assert load_spec().spec.gateway.port == 4321
    assert load_spec(environment={}).spec.gateway.port == 8080


@pytest.mark.parametrize(
    ("text", "flag", "expected"),
    [
        ("engine: openvino", {"engine.kind": "echo"}, {"engine.kind": ("echo", "flag")}),
        ("engine: echo", {"engine.ttft": "1ms"},
         {"engine.kind": ("echo", "file, line 1"), "engine.ttft": ("1ms", "flag")}),
        ("engine: {kind: echo, ttft: 1ms}", {"engine.kind": "auto"},
         {"engine.kind": ("auto", "flag"), "engine.ttft": ("1ms", "file, line 1")}),
        ("replicas: 2", {"replicas.cpus": 4},
         {"replicas.count": (2, "file, line 1"), "replicas.cpus": (4, "flag")}),
        ("replicas: {cpus: 4}", {"replicas": 3},
         {"replicas.count": (3, "flag"), "replicas.cpus": (4, "file, line 1")}),
        ("compress: int8", {"compress.quantize": "int4"}, {"compress.quantize.scheme": ("int4", "flag")}),
        ("cache: false", {"cache.exact.ttl": "5s"},
         {"cache.exact.when": ("never", "file, line 1"), "cache.exact.ttl": (5.0, "flag")}),
        ("cache: {exact: {ttl: 5s}}", {"cache": False},
         {"cache.exact.when": ("never", "flag"), "cache.exact.ttl": (5.0, "file, line 1")}),
        ("cache:", {"cache.exact": False}, {"cache.exact.when": ("never", "flag")}),
        ("gateway:", {"gateway.port": 5}, {"gateway.port": (5, "flag")}),
        ("engine: {kind: echo, ttft: 1ms}", {"engine": {"kind": "remote", "urls": ["http://x"]}},
         {"engine.kind": ("remote", "flag"), "engine.urls": (["http://x"], "flag")}),
    ],
)  # fmt: skip
def test_a_flag_changes_its_key_and_leaves_the_rest_of_a_shorthand(
    tmp_path: Path, text: str, flag: dict[str, Any], expected: dict[str, tuple[Any, str]]
) -> None:
    given_flags = {key: dict(v) if isinstance(v, dict) else v for key, v in flag.items()}
    assert origins(load(tmp_path, text, flags=flag)) == expected
    assert flag == given_flags, "what was given is left as it was"


def test_a_fault_of_a_flag_or_variable_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    text = "# nothing wrong\ngateway: {port: 80}\nreplicas: 2\nname: x\n"
    assert faults(
        tmp_path,
        text,
        environment={"THRIFTY_PORT": "web", "THRIFTY_REPLICAS": "two"},
        flags={"name": "a b", "gatway.port": 5},
    ) == [
        "name: 'a b' is not a name; take up to 64 letters, digits, '.', '_', ':', '-' and '/', of "
        "which the first, and the first after each '/', is a letter or digit (flag)",
        "replicas.count: must be a whole number, not 'two' (environment, THRIFTY_REPLICAS)",
        "gateway.port: must be a whole number, not 'web' (environment, THRIFTY_PORT)",
        "gatway: is not a known key; did you mean 'gateway'?",
    ]


def test_a_fault_of_the_file_is_not_hidden_by_a_flag_below_it(tmp_path: Path) -> None:
    assert faults(tmp_path, "gateway: 5", flags={"gateway.port": 80}) == [
        "line 1, gateway: must be a mapping of keys to values, not 5"
    ]


def test_a_value_of_the_file_that_a_flag_replaces_does_not_matter(tmp_path: Path) -> None:
    loaded = load(tmp_path, "gateway: {port: web}", flags={"gateway.port": 80})
    assert loaded.spec.gateway.port == 80


def test_without_a_file_the_spec_itself_is_named() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(flags={"replicas.count": 0}, environment={})
    assert str(caught.value) == (
        "the spec cannot be used:\n"
        "  replicas.count: must be greater than or equal to 1, not 0 (flag)"
    )


# From a mapping


def test_a_mapping_is_a_spec_without_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_PORT", "4321")
    data = {"engine": "echo", "replicas": 2, "versions": [{"label": "a"}]}
    loaded = parse_spec(data)
    assert (loaded.spec.gateway.port, loaded.spec.replicas.count) == (8080, 2)
    assert data == {"engine": "echo", "replicas": 2, "versions": [{"label": "a"}]}
    assert origins(loaded)["versions.0.replicas.count"] == (2, "file")
    with pytest.raises(SpecError) as caught:
        parse_spec({"engin": 1, "versions": [{"label": "-"}]}, "the request")
    assert str(caught.value).startswith("the request cannot be used:")
    assert {problem.path for problem in caught.value.problems} == {"engin", "versions.0.label"}


# Faults that others find later


def test_problems_that_engines_find_get_their_lines_too(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "name: x\nengine:\n  kind: echo\n  wrong: 1\nreplicas: 3\n",
        environment={"THRIFTY_MODEL": "m"},
    )
    loaded.refuse([])
    with pytest.raises(SpecError) as caught:
        loaded.refuse(
            [
                Problem("model", "is not there"),
                Problem("replicas.count", "are too many"),
                Problem("engine.urls", "are missing"),
                Problem("engine.wrong", "is wrong"),
                Problem("compress.quantize", "cannot be"),
                Problem("name", "elsewhere", 9),
            ]
        )
    assert str(caught.value).splitlines()[1:] == [
        "  line 2, engine.urls: are missing",
        "  line 4, engine.wrong: is wrong",
        "  line 5, replicas.count: are too many",
        "  line 9, name: elsewhere",
        "  model: is not there (environment, THRIFTY_MODEL)",
        "  compress.quantize: cannot be",
    ]


# Secrets


def test_secrets_are_shown_nowhere(tmp_path: Path) -> None:
    secret = "postgresql://ann:hunter2@host/db"
    loaded = load(
        tmp_path,
        f"database: {secret}\nengine: {{kind: remote, api_key: hunter2, key_env: MY_KEY}}\n",
    )
    rows = {path: value for path, value, _ in loaded.explain()}
    assert (rows["database"], rows["engine.api_key"]) == ("***", "***")
    assert rows["engine.key_env"] == "MY_KEY"
    assert "hunter2" not in repr(loaded)
    assert loaded.spec.database == secret
    assert ("database", None, "default") in load(tmp_path, "").explain()
    for text in (f"database: [{secret}]", f"database: {{url: {secret}}}", f"datbase: {secret}",
                 f"database: {secret}\ndatabase: {secret}"):  # fmt: skip
        assert "hunter2" not in "".join(faults(tmp_path, text))
    environment = load(tmp_path, "", environment={"THRIFTY_DATABASE": secret})
    assert origins(environment) == {"database": ("***", "environment, THRIFTY_DATABASE")}


# Suggestions


@pytest.mark.parametrize(
    ("word", "known", "sentence"),
    [
        ("engin", ["engine", "model"], "did you mean 'engine'?"),
        ("zzz", ["model", "engine"], "known here: engine, model"),
    ],
)
def test_suggestions_name_the_nearest_or_all(word: str, known: list[str], sentence: str) -> None:
    assert suggest(word, known) == sentence


# Whatever is in the file


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.sampled_from("abe: \n-[]{}&*!|>'\"%@`#,?01.~<\t"), max_size=40)
    | st.text(max_size=20)
    | st.lists(st.sampled_from(["engine:", " echo\n", "  kind:", " *a", " &a", "replicas: ", "2\n",
                                "cache: false\n", "<<:", "{", "}", "[", "]", "- ", "\n"]),
               max_size=10).map("".join)
)  # fmt: skip
def test_any_text_is_a_spec_or_a_spec_error(tmp_path: Path, text: str) -> None:
    try:
        loaded = load(tmp_path, text.encode("utf-8", "surrogatepass"))
    except SpecError as caught:
        error = caught
    else:
        loaded.explain()
        return
    assert error.problems
    lines = [problem.line for problem in error.problems if problem.line]
    assert lines == sorted(lines)
    assert all(1 <= line <= text.count("\n") + text.count("\r") + 40 for line in lines)


# The home


def test_the_home_is_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "x"))
    home = find_home()
    assert home == Home(tmp_path / "x")
    assert not home.root.exists(), "looking touches no disk"
    assert home.database_url == f"sqlite:///{tmp_path}/x/thrifty.db"
    paths = [home.models, home.run, home.logs, home.database]
    assert len(set(paths)) == 4
    assert all(path.parent == home.root for path in paths)


def test_the_home_is_in_the_users_folder_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in (None, ""):
        if named is None:
            monkeypatch.delenv(HOME_VARIABLE, raising=False)
        else:
            monkeypatch.setenv(HOME_VARIABLE, named)
        assert find_home().root == tmp_path / ".thrifty"
    monkeypatch.setenv(HOME_VARIABLE, "~/mine")
    assert find_home().root == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(HOME_VARIABLE, "below/here")
    assert find_home().root == tmp_path / "below" / "here"


def test_a_home_of_a_user_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, "~nobody-of-that-name/x")
    with pytest.raises(ThriftyError, match="Set THRIFTY_HOME to an absolute path"):
        find_home()


def test_new_folders_are_private_and_old_ones_are_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    deep = tmp_path / "home" / "models" / "partial"
    assert make_private_folder(deep) == deep
    for folder in (deep, deep.parent, deep.parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert make_private_folder(deep) == deep


def test_a_folder_that_cannot_be_made_is_refused_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ThriftyError) as caught:
            make_private_folder(path)
        assert str(caught.value).startswith(f"cannot make the folder {path}: ")
        assert str(caught.value).endswith("; set THRIFTY_HOME to a folder you can write to")


def test_the_redis_url_is_a_secret_too_and_must_be_one(tmp_path: Path) -> None:
    secret = "redis://ann:hunter2@host:6379/0"
    loaded = load(tmp_path, f"redis: {secret}\n")
    assert loaded.spec.redis == secret
    assert {p: v for p, v, _ in loaded.explain()}["redis"] == "***"
    assert "hunter2" not in repr(loaded)
    for text in ("redis: http://ann:hunter2@host", f"redis: [{secret}]", f"redis: {secret[:-6]}x"):
        (fault,) = faults(tmp_path, text)
        assert "redis" in fault
        assert "hunter2" not in fault
    environment = load(tmp_path, "", environment={"THRIFTY_REDIS": secret})
    assert environment.spec.redis == secret


def test_slots_prices_and_deadlines_have_units_and_bounds(tmp_path: Path) -> None:
    text = """
    replicas: {slots: 8}
    prices: {input: 0.5, output: 1.5}
    limits: {timeout: 20s, hedge: 300ms}
    """
    spec = load(tmp_path, text).spec
    assert (spec.replicas.slots, spec.prices.output, spec.prices.cached_input) == (8, 1.5, None)
    assert (spec.limits.timeout, spec.limits.hedge) == (20.0, 0.3)
    bad = "replicas: {slots: 0}\nprices: {input: -1}\nlimits: {timeout: 0, hedge: never}"
    assert len(faults(tmp_path, bad)) == 4


# several deployments

SEVERAL = """\
replicas: 2
limits: {max_tokens: 100}
engine: {kind: openvino, context: 2048}
deployments:
  - name: small
    aliases: [cheap]
    fallback: spare
  - name: spare
    engine: echo
    replicas: 3
    limits: {waiting: 5}
gateway: {workers: 2}
"""


def test_what_stands_beside_the_list_holds_for_each_that_does_not_say_otherwise(
    tmp_path: Path,
) -> None:
    path = tmp_path / "thrifty.yaml"
    path.write_text(SEVERAL)
    loaded = load_spec(path, environment={})
    small, spare = (each.spec for each in loaded.each())
    assert (small.name, small.aliases, small.fallback) == ("small", ("cheap",), ("spare",))
    assert (small.engine.kind, small.engine.options) == ("openvino", {"context": 2048})
    assert (small.replicas.count, small.limits.max_tokens) == (2, 100)
    assert (spare.engine.kind, spare.engine.options) == ("echo", {}), "options go with their engine"
    assert (spare.replicas.count, spare.limits.waiting, spare.limits.max_tokens) == (3, 5, 100)
    assert small.gateway == spare.gateway == loaded.spec.gateway
    assert small.deployments == ()
    rows = {path: (value, origin) for path, value, origin in loaded.explain()}
    assert rows["deployments.1.replicas.count"] == (3, "file, line 10")
    assert rows["deployments.0.replicas.count"] == (2, "file, line 1")
    assert rows["deployments.1.limits.max_tokens"] == (100, "file, line 2")
    assert rows["gateway.workers"] == (2, "file, line 12")
    assert "model" not in rows


def test_one_deployment_is_itself(tmp_path: Path) -> None:
    loaded = load_spec(None, flags={"engine": "echo"}, environment={})
    assert loaded.each() == [loaded]


def test_faults_of_a_deployment_have_their_line(tmp_path: Path) -> None:
    text = SEVERAL.replace("echo", "{kind: echo}\n    engin: x").replace(
        "fallback: spare", "fallback: spar"
    )
    assert faults(tmp_path, text) == [
        "line 10, deployments.1.engin: is not a known key; did you mean 'engine'?",
    ]
    assert faults(tmp_path, SEVERAL.replace("fallback: spare", "fallback: spar")) == [
        "line 7, deployments.0.fallback: 'spar' is not a deployment; did you mean 'spare'?"
    ]
    assert faults(tmp_path, SEVERAL.replace("[cheap]", "[cheap, spare]")) == [
        "line 8, deployments.1.name: 'spare' is taken by deployments.0.aliases"
    ]
    assert faults(tmp_path, SEVERAL.replace("fallback: spare", "fallback: small")) == [
        "line 7, deployments.0.fallback: a deployment cannot stand in for itself"
    ]
    assert faults(tmp_path, "name: x\n" + SEVERAL.replace("- name: small\n    ", "- ")) == [
        "line 1, name: belongs into each of 'deployments'",
        "line 6, deployments.0.name: is needed where there are several deployments",
    ]
    assert faults(tmp_path, SEVERAL.replace("replicas: 3", "replicas: many"))[0].startswith(
        "line 10, deployments.1.replicas"
    )
