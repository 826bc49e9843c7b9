"""`thrifty replica`: prepare one version, or take what a fleet prepared, then become its server."""

from __future__ import annotations

import os

import msgspec

from thrifty.artifacts import Store
from thrifty.artifacts.remotes import pull
from thrifty.cli.show import show_progress, tell
from thrifty.control.checks import check_spec
from thrifty.control.prepare import prepare
from thrifty.engines.base import Served
from thrifty.engines.machine import Machine, detect_machine
from thrifty.engines.registry import find_engine
from thrifty.engines.server import HOST_VARIABLE, KEY_VARIABLE, MODEL_VARIABLE, SERVED_VARIABLE
from thrifty.engines.server.access import check_access
from thrifty.errors import FleetError, Problem
from thrifty.home import find_home
from thrifty.model_maker import Compressor
from thrifty.service import resolve_target
from thrifty.spec import LoadedSpec


def run_replica_server(target: str | None, host: str, port: int) -> None:
    """Prepare the version in a spec and replace this process with its server, so that signals reach
    it directly. Returns only by raising `ThriftyError` kinds.
    """
    check_access(host, os.environ.get(KEY_VARIABLE) or None)
    served, store, machine = prepare_replica(target)
    _become_server(served, store, machine, host, port)


def prepare_replica(target: str | None) -> tuple[Served, Store, Machine]:
    """Fetch and prepare the only version in a spec; what serves it, the store and the machine.
    Raises `ThriftyError` kinds.
    """
    loaded = resolve_target(target)
    _check_one(loaded)
    home, machine = find_home(), detect_machine()
    store = Store(home.models)
    maker = Compressor(home, store, machine, tell)
    with show_progress() as on_progress:
        prepared = prepare(loaded, store, machine, on_progress, maker=maker)
    (state,) = prepared.deployments.values()
    (version,) = state.versions
    served = Served(
        name=state.name, engine=version.engine, version=version.label, revision=version.revision,
        family=state.family, artifact=version.artifact, options=version.options,
        context_length=version.settings.context_length,
    )  # fmt: skip
    return served, store, machine


def run_served_replica(target: str | None, host: str, port: int) -> None:
    """Replace this process with the server of what `SERVED_VARIABLE` describes, as a fleet wrote it.
    Returns only by raising `ThriftyError` kinds.
    """
    check_access(host, os.environ.get(KEY_VARIABLE) or None)
    if target is not None:
        raise FleetError(f"--served takes what {SERVED_VARIABLE} describes; leave {target!r} out")
    text = os.environ.get(SERVED_VARIABLE)
    if not text:
        raise FleetError(
            f"{SERVED_VARIABLE} is empty: fleets put in it what their replicas serve. To serve a "
            "spec, name it and leave --served out"
        )
    try:
        served = Served.from_json(text)
    except msgspec.DecodeError as error:
        raise FleetError(
            f"{SERVED_VARIABLE} holds no description of this release ({error}); the image and the "
            "controller must be of one version"
        ) from None
    store, source = Store(find_home().models), os.environ.get(MODEL_VARIABLE)
    if source and served.artifact is not None and not store.has(served.artifact):
        with show_progress() as on_progress:
            pull(store, source, on_progress=on_progress)
    _become_server(served, store, detect_machine(), host, port)


def _become_server(served: Served, store: Store, machine: Machine, host: str, port: int) -> None:
    launch = find_engine(served.engine).launch(served, store, port, machine.cores, 1.0)
    if served.artifact is not None:
        # The lock outlives the change of the program, and ends with it.
        os.set_inheritable(store.lease(served.artifact), True)
    tell(f"Serving {served.name} ({served.version}) at http://{host}:{port}")
    environment = {
        **os.environ, **launch.environment,
        HOST_VARIABLE: host, KEY_VARIABLE: os.environ.get(KEY_VARIABLE, ""),
    }  # fmt: skip
    os.execve(launch.command[0], list(launch.command), environment)  # noqa: S606


def _check_one(loaded: LoadedSpec) -> None:
    """Refuse what is more than one model, or none of ours. Raises `SpecError`."""
    each = check_spec(loaded, detect_machine())
    if len(each) > 1:
        loaded.refuse([Problem("deployments", "a replica serves one deployment; name that alone")])
    versions = each[0].versions()
    if len(versions) > 1:
        loaded.refuse([Problem("versions", "a replica serves one version; name that alone")])
    kind = versions[0].loaded.spec.engine.kind
    if kind != "auto" and find_engine(kind).traits.external:
        message = f"the engine {kind!r} starts no server; name the server's own URL at the gateway"
        loaded.refuse([Problem("engine.kind", message)])
