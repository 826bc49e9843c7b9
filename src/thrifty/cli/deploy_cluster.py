"""`thrifty deploy apply`, `status`, `logs` and `destroy`, for Kubernetes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer
import yaml

from thrifty.artifacts import Store
from thrifty.cli.deploy import parse_settings
from thrifty.cli.show import print_json, print_line, print_table, show_progress, tell
from thrifty.deploy.base import Request, parse_target_options, refuse_fleet
from thrifty.deploy.cluster import (
    Applied,
    apply_objects,
    destroy_objects,
    look_at_objects,
    read_logs,
    read_note,
)
from thrifty.deploy.registry import find_target
from thrifty.deploy.service import make_service
from thrifty.errors import ThriftyError
from thrifty.home import find_home
from thrifty.kubernetes.client import ApiClient, Object
from thrifty.kubernetes.config import find_cluster
from thrifty.spec import load_spec

T = TypeVar("T")


def run_apply(
    target: str, path: Path, settings: Sequence[str], kubeconfig: str | None, *,
    yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Render, say what will be written where, ask, and write it."""
    request, objects = _render(target, path, settings)
    namespace = request.options.namespace

    async def work(client: ApiClient) -> dict[str, Any]:
        before = await read_note(client, namespace)
        _tell_plan(client, namespace, objects, before, request.checksum)
        confirm("Apply this?", yes=yes, as_json=as_json)
        with show_progress() as on_progress:
            gone = await apply_objects(client, namespace, objects, request.checksum, on_progress)
        return {
            "namespace": namespace, "checksum": f"sha256:{request.checksum}",
            "applied": len(objects), "removed": [f"{one.kind}/{one.name}" for one in gone],
        }  # fmt: skip

    done = _run(kubeconfig, work)
    if as_json:
        print_json(done)
    else:
        print_line(f"{done['applied']} objects are applied in {namespace}.")
        for one in done["removed"]:
            print_line(f"Removed {one}")
        tell(f"Next: thrifty deploy status kubernetes {path}")


def run_status(
    target: str, path: Path, settings: Sequence[str], kubeconfig: str | None, *, as_json: bool
) -> None:
    """Show what was applied, and how it is."""
    request, _ = _render(target, path, settings)
    namespace = request.options.namespace

    async def work(client: ApiClient) -> tuple[Applied, list[Any]]:
        applied = await _need_note(client, namespace)
        return applied, await look_at_objects(client, namespace, applied)

    applied, found = _run(kubeconfig, work)
    same = applied.checksum == request.checksum
    if as_json:
        print_json(
            {
                "namespace": namespace, "whole": applied.whole, "as_spec": same,
                "objects": [
                    {"kind": one.place.kind, "name": one.place.name, "there": one.there,
                     "detail": one.detail, "as_applied": one.checksum == applied.checksum}
                    for one in found
                ],
            }
        )  # fmt: skip
        return
    print_table(
        ("object", "name", "state", ""),
        [
            (one.place.kind, one.place.name, one.detail,
             "" if one.checksum == applied.checksum else "not of the spec that was applied")
            for one in found
        ],
    )  # fmt: skip
    if not applied.whole:
        tell("The last apply did not finish: repeat it, or take it back (thrifty deploy destroy).")
    if not same:
        tell(f"{path} has changed since: thrifty deploy apply kubernetes {path}")


def run_logs(
    target: str, path: Path, settings: Sequence[str], kubeconfig: str | None, *, lines: int
) -> None:
    """Print the last lines of each pod."""
    request, _ = _render(target, path, settings)

    async def work(client: ApiClient) -> list[tuple[str, str]]:
        return await read_logs(client, request.options.namespace, lines)

    for name, text in _run(kubeconfig, work):
        for line in text.splitlines():
            print_line(f"{name}: {line}")


def run_destroy(
    target: str, path: Path, settings: Sequence[str], kubeconfig: str | None, *,
    data: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Say what goes, ask, and take it away."""
    request, _ = _render(target, path, settings)
    namespace = request.options.namespace

    async def work(client: ApiClient) -> list[Any]:
        applied = await _need_note(client, namespace)
        tell(f"In {namespace} of {client.cluster.source}: {len(applied.places)} objects go.")
        if data:
            tell("Claims go too, with the models, the database and the request log in them.")
        confirm("Destroy this?", yes=yes, as_json=as_json)
        with show_progress() as on_progress:
            return await destroy_objects(
                client, namespace, applied, request.service.loaded.spec.fleet.name,
                data=data, on_progress=on_progress,
            )  # fmt: skip

    stays = [f"{one.kind}/{one.name}" for one in _run(kubeconfig, work)]
    if as_json:
        print_json({"namespace": namespace, "kept": stays})
        return
    print_line(f"Nothing of it runs in {namespace} any more. The namespace and its Secret stay.")
    if stays:
        print_line(f"Kept, with their data: {', '.join(stays)} (--data takes them away)")


def _render(target: str, path: Path, settings: Sequence[str]) -> tuple[Request, list[Object]]:
    """The request, and its objects."""
    found = find_target(target)
    options = parse_target_options(found, parse_settings(settings))
    service = make_service(load_spec(path, environment={}))
    refuse_fleet(found, service)
    request = Request(service, options, Store(find_home().models))
    texts = found.render(request).values()
    objects = [one for text in texts for one in yaml.safe_load_all(text)]
    return request, objects


def _run(kubeconfig: str | None, work: Callable[[ApiClient], Awaitable[T]]) -> T:
    async def run() -> T:
        client = ApiClient(find_cluster(kubeconfig))
        try:
            return await work(client)
        finally:
            client.close()

    return asyncio.run(run())


async def _need_note(client: ApiClient, namespace: str) -> Applied:
    applied = await read_note(client, namespace)
    if applied is None:
        raise ThriftyError(
            f"nothing was applied in {namespace} of {client.cluster.source}; apply it (thrifty deploy "
            "apply kubernetes SPEC), or name another kubeconfig (--kubeconfig)"
        )
    return applied


def _tell_plan(
    client: ApiClient,
    namespace: str,
    objects: Sequence[Object],
    before: Applied | None,
    checksum: str,
) -> None:
    tell(f"In {namespace} of {client.cluster.source} ({client.cluster.origin.url}):")
    for one in objects:
        tell(f"  {one['kind']} {one['metadata']['name']}")
    if before is not None and not before.whole:
        tell("An earlier apply did not finish; this one goes on with it.")
    elif before is not None and before.checksum == checksum:
        tell("The same spec was applied already.")


def confirm(question: str, *, yes: bool, as_json: bool) -> None:
    """Ask, unless told not to. Raises `ThriftyError` where the answer is no, or nobody can be asked."""
    if yes:
        return
    if as_json:
        raise ThriftyError("--json asks nothing: add --yes")
    if not typer.confirm(question, err=True):
        raise ThriftyError("nothing was changed")
