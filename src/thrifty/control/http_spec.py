"""What a spec that comes over HTTP may name of this machine.

Who may write specs on the machine may read its files and environment anyway; the holder of an
operator's key may not. So a spec of the management API names no file and no environment variable,
except for what the applied spec uses already and variables that are meant for it
(`VARIABLE_PREFIX`). Faults say the same whether a file or variable exists or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from thrifty.artifacts import Store
from thrifty.artifacts.sources.fetch import names_stored_model
from thrifty.control.applied import describe_fixed, read_applied
from thrifty.data.sets import SETS
from thrifty.db.desired_state import DesiredService
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.errors import Problem, SpecError
from thrifty.spec import LoadedSpec, Spec, parse_spec
from thrifty.spec.compress import parse_source
from thrifty.spec.judges import DEPLOYMENT, RemoteJudge

_JUDGES = (
    "improve.release.shadow.judge", "improve.release.canary.judge", "improve.teacher",
    "improve.gate.judge", "quality.judge",
)  # fmt: skip
"""Over HTTP these name deployments of the service; anything else calls code or other servers."""
VARIABLE_PREFIX = "THRIFTY_UPSTREAM_"
"""Environment variables with this prefix are for specs that come over HTTP."""
_OWN_PREFIX = "THRIFTY_"
_HARNESS_TASK = re.compile(r"lm_eval:[A-Za-z0-9_-]+")
_ONLY_IN_FILE = "apply such a spec on the service's machine (thrifty apply SPEC)"


class _Use(NamedTuple):
    """One thing of this machine that a spec uses."""

    path: str
    value: str
    url: str = ""
    """Where the value is sent to, for a key."""


def check_http_spec(loaded: LoadedSpec, service: DesiredService | None, store: Store) -> None:
    """Refuse a spec that came over HTTP and names what it may not. `service` is the service's
    desired state. Reads nothing that such a spec names. Raises `SpecError`.
    """
    applied = read_applied(service)
    known = _list_applied_uses(dict(applied.written) if applied is not None else {})
    for one in loaded.each():
        for version in one.versions():
            uses = _list_version_uses(version.loaded.spec)
            version.loaded.refuse(_find_problems(uses, known, store))
    problems = _find_problems(_list_service_uses(loaded.spec), known, store)
    # URLs with passwords are not kept with the spec.
    redis = service.gateway.get("redis_url") if service is not None else None
    if loaded.spec.redis is not None and loaded.spec.redis != redis:
        problems.append(Problem("redis", f"cannot change over HTTP; {_ONLY_IN_FILE}"))
    database = applied.fixed.get("database") if applied is not None else None
    if loaded.spec.database is not None and describe_fixed(loaded.spec)["database"] != database:
        problems.append(Problem("database", f"cannot change over HTTP; {_ONLY_IN_FILE}"))
    fixed = _list_fixed(dict(applied.written) if applied is not None else {})
    for path, value in _describe_fixed(loaded.spec).items():
        if value != fixed[path]:
            problems.append(Problem(path, f"cannot change over HTTP; {_ONLY_IN_FILE}"))
    loaded.refuse(problems)


def _describe_fixed(spec: Spec) -> dict[str, Any]:
    """Who may sign in, whether texts are encrypted, and what finds names in them: not for the holder of
    an operator's key.
    """
    return {
        "gateway.oidc": spec.gateway.oidc.describe(),
        "record.encrypt": spec.record.encrypt.source,
        "record.names_model": spec.record.names_model,
    }


def _list_fixed(written: dict[str, Any]) -> dict[str, Any]:
    """As `_describe_fixed`, of the applied spec."""
    try:
        return _describe_fixed(parse_spec(written).spec)
    except SpecError:  # an older release wrote it
        return _describe_fixed(parse_spec({}).spec)


def _find_problems(uses: Iterator[_Use], known: frozenset[_Use], store: Store) -> list[Problem]:
    problems = [
        Problem(use.path, _explain(use)) for use in uses if not _is_allowed(use, known, store)
    ]
    return list(dict.fromkeys(problems))


def _is_allowed(use: _Use, known: frozenset[_Use], store: Store) -> bool:
    if use.path == "engine.key_env":
        if use.value.startswith(_OWN_PREFIX):
            return use.value.startswith(VARIABLE_PREFIX)
        return use in known
    if use in known:
        return True
    if use.path in ("model", "compress.distill.teacher"):
        scheme, colon, _ = use.value.partition(":")
        return (bool(colon) and scheme in ("pypi", "hf")) or names_stored_model(store, use.value)
    if use.path.startswith("gateway.") or use.path in _JUDGES:
        return False
    return use.value in SETS or bool(_HARNESS_TASK.fullmatch(use.value))


def _explain(use: _Use) -> str:
    if use.path == "engine.key_env":
        return (
            f"over HTTP, a spec may name variables that begin with {VARIABLE_PREFIX}, and others "
            f"only with the URLs that the applied spec uses them for, which {use.value!r} is not; "
            f"rename the variable, or {_ONLY_IN_FILE}"
        )
    if use.path in _JUDGES:
        return (
            "over HTTP, a judge or a teacher must be 'deployment:NAME', or what the applied spec names; "
            f"{_ONLY_IN_FILE}"
        )
    what = "a data set of 'thrifty data'"
    if use.path in ("model", "compress.distill.teacher"):
        what = "pypi:PACKAGE, hf:ORG/NAME or the name of a stored model"
    if use.path.startswith("gateway."):
        return f"cannot name another file over HTTP; {_ONLY_IN_FILE}"
    return (
        f"over HTTP, this must be {what}, or what the applied spec says, and {use.value!r} is "
        f"neither; {_ONLY_IN_FILE}"
    )


def _list_applied_uses(written: dict[str, Any]) -> frozenset[_Use]:
    """What the applied spec uses."""
    try:
        loaded = parse_spec(written)
        versions = [version for one in loaded.each() for version in one.versions()]
    except SpecError:  # an older release wrote it
        return frozenset()
    uses = [use for version in versions for use in _list_version_uses(version.loaded.spec)]
    return frozenset([*uses, *_list_service_uses(loaded.spec)])


def _list_service_uses(spec: Spec) -> Iterator[_Use]:
    for name in ("cert", "key"):
        value = getattr(spec.gateway.tls, name)
        if value is not None:
            yield _Use(f"gateway.tls.{name}", value)


def _list_version_uses(spec: Spec) -> Iterator[_Use]:
    kind, options = spec.engine.kind, spec.engine.options
    if options.get("key_env") is not None:
        urls = options.get("urls") or ("",)
        for url in (urls,) if isinstance(urls, str) else urls:
            url = str(url).rstrip("/").removesuffix("/v1")
            yield _Use("engine.key_env", str(options["key_env"]), url)
    if kind not in engine_kinds() or find_engine(kind).traits.loads_model:
        yield _Use("model", spec.model)
    compress = spec.compress
    if compress.distill.teacher is not None:
        yield _Use("compress.distill.teacher", compress.distill.teacher)
    for text in compress.text:
        yield _Use("compress.text", parse_source(text)[0])
    for named in compress.held_out:
        yield _Use("compress.held_out", named)
    for task in compress.tasks:
        yield _Use("compress.tasks", task)
    if spec.quality.questions is not None:
        yield _Use("quality.questions", spec.quality.questions)
    for named in spec.improve.gate.data:
        yield _Use("improve.gate.data", named)
    for name in ("shadow", "canary"):
        section = spec.improve.release.get(name)
        released_by = section.get("judge") if isinstance(section, dict) else None
        if released_by is not None and not str(released_by).startswith(DEPLOYMENT):
            yield _Use(f"improve.release.{name}.judge", str(released_by))
    teacher = spec.improve.teacher
    if isinstance(teacher, RemoteJudge):
        yield _Use("improve.teacher", f"{teacher.model} {teacher.key_env}", teacher.url)
    judges = {"quality.judge": spec.quality.judge, "improve.gate.judge": spec.improve.gate.judge}
    for path, judge in judges.items():
        if isinstance(judge, RemoteJudge):
            yield _Use(path, f"{judge.model} {judge.key_env}", judge.url)
        elif judge is not None and not judge.startswith(DEPLOYMENT):
            yield _Use(path, judge)
