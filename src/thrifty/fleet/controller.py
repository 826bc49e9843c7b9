"""The controller: makes the world match the spec, and writes what is into the database.

One runs for each home. It starts replicas and the gateway, restarts what dies, and drains
everything when it is told to stop. When it is killed itself, what it started goes on serving; the
next controller adopts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from thrifty.artifacts import Store
from thrifty.db import Database, open_database
from thrifty.db.database import rescue_file
from thrifty.db.fleet import (
    GatewayRow,
    ReplicaRow,
    read_fleet,
    remove_deployments_except,
    remove_gateway,
    remove_replicas,
    save_deployment,
    save_gateway,
    save_replicas,
)
from thrifty.db.keys import list_keys
from thrifty.engines.machine import Machine
from thrifty.errors import DatabaseError, FleetError
from thrifty.fleet.controller_note import (
    read_controller_note,
    remove_controller_note,
    write_controller_note,
)
from thrifty.fleet.cores import share_cores
from thrifty.fleet.external import ExternalReplica
from thrifty.fleet.gateways import GatewayWorkers
from thrifty.fleet.local import LocalReplica, OnChange
from thrifty.fleet.plan import Plan
from thrifty.fleet.ports import choose_port, open_listeners
from thrifty.fleet.process import ProcessId, adopt_process, find_ours
from thrifty.home import Home, make_private_folder
from thrifty.spec.models import ExactCacheSpec
from thrifty.types import ReplicaState

log = logging.getLogger(__name__)

PUBLISH_INTERVAL_S = 2.0
"""Figures are written this often; changes of state at once."""
RETRY_PUBLISH_S = 0.5
WATCH_FILE_S = 0.25
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_DATABASE_VARIABLE = "THRIFTY_DATABASE_URL"
_REDIS_VARIABLE = "THRIFTY_REDIS_URL"

Replica = LocalReplica | ExternalReplica


class Controller:
    """Runs the plans of one spec. `start` it, wait, `stop` it."""

    def __init__(self, plans: Sequence[Plan], home: Home, store: Store, machine: Machine) -> None:
        self.plans = plans
        self.spec = plans[0].spec
        """What all deployments share (gateway, record, database) is the same in each of them."""
        self.home = home
        self.database: Database
        self.replicas: list[Replica] = []
        self.gateway_url = ""
        self._store = store
        self._machine = machine
        self._gateways: GatewayWorkers | None = None
        self._publisher: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._lock: int | None = None
        self._rescuer: sqlite3.Connection | None = None
        self._stopping = False

    @property
    def database_url(self) -> str:
        """The database that the spec names, or the embedded one."""
        return self.spec.database or self.home.database_url

    def replicas_of(self, deployment: str) -> list[Replica]:
        """The replicas of one deployment."""
        return [r for r in self.replicas if r.row().deployment == deployment]

    async def start(self) -> None:
        """Take the home, open the database, start everything. Raises `ThriftyError` kinds."""
        self._take_home()
        self.database = await asyncio.to_thread(open_database, self.database_url, migrate=True)
        self._open_rescuer()
        await asyncio.to_thread(self._check_keys)
        rows = await asyncio.to_thread(read_fleet, self.database)
        old_gateways = self._sort_orphans({row.id: row for row in rows.replicas})
        gateway = self.spec.gateway
        port = choose_port(gateway.host, gateway.port, {ident.pid for ident, _ in old_gateways})
        write_controller_note(self.home, self.gateway_url, self.database_url)
        await asyncio.to_thread(self._save_deployments)
        self._make_replicas()
        known = {row.id: row for row in rows.replicas}
        wanted = {replica.id for replica in self.replicas}
        await asyncio.to_thread(
            remove_replicas, self.database, [i for i in known if i not in wanted]
        )
        for replica in self.replicas:
            replica.start(known.get(replica.id))
        self._publisher = asyncio.ensure_future(self._publish())
        self._gateways = self._make_gateways(open_listeners(gateway.host, port, gateway.workers))
        await self._gateways.start()
        write_controller_note(self.home, self.gateway_url, self.database_url)
        for ident, gateway_id in old_gateways:
            old = adopt_process(ident, self.home.logs / f"{gateway_id}.log")
            if old is not None:
                await old.stop(self.spec.gateway.drain_timeout + 5)
            if gateway_id not in self._gateways.ids:
                await asyncio.to_thread(remove_gateway, self.database, gateway_id)

    async def replace_gateways(self) -> None:
        """Replace the gateway's workers one after the other. Raises `FleetError`."""
        if self._gateways is not None:
            await self._gateways.replace()

    async def wait_ready(self) -> None:
        """Wait until every replica was ready once, and the gateway knows. Raises `FleetError` on a crash loop."""
        for replica in self.replicas:
            await replica.ready_once.wait()
            if replica.state is ReplicaState.CRASH_LOOP:
                raise FleetError(
                    f"the replica {replica.id} does not start: {replica.message}\n"
                    f"Its log: {self.home.logs / f'{replica.id}.log'}"
                )
        if self._gateways is not None:
            await self._gateways.wait_settled()

    async def stop(self) -> None:
        """Drain the gateway, then the replicas; leave nothing running."""
        self._stopping = True
        drain_s = self.spec.gateway.drain_timeout
        if self._gateways is not None:
            await self._gateways.stop()
        await asyncio.gather(*(replica.stop(drain_s + 5) for replica in self.replicas))
        if self._publisher is not None:
            self._publisher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._publisher
        with contextlib.suppress(DatabaseError):
            if hasattr(self, "database"):
                await asyncio.to_thread(
                    remove_replicas, self.database, [replica.id for replica in self.replicas]
                )
                for gateway_id in self._gateways.ids if self._gateways is not None else ():
                    await asyncio.to_thread(remove_gateway, self.database, gateway_id)
        self._release_home()

    def kill(self) -> None:
        """End everything at once: the second Ctrl-C."""
        if self._gateways is not None:
            self._gateways.kill()
        for replica in self.replicas:
            replica.kill()

    # the home

    def _take_home(self) -> None:
        make_private_folder(self.home.root)
        make_private_folder(self.home.run)
        self._lock = os.open(self.home.run / "controller.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            note = read_controller_note(self.home)
            where = f" (pid {note.pid}, {note.url})" if note else ""
            raise FleetError(
                f"Thrifty runs already in {self.home.root}{where}; stop it first (thrifty down), or "
                "set THRIFTY_HOME to another folder"
            ) from None

    def _release_home(self) -> None:
        remove_controller_note(self.home)
        if self._rescuer is not None:
            self._rescuer.close()
        if hasattr(self, "database"):
            self.database.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _check_keys(self) -> None:
        gateway = self.spec.gateway
        if gateway.host in LOOPBACK or gateway.allow_no_keys:
            return
        if not list_keys(self.database):
            raise FleetError(
                f"refusing to listen on {gateway.host}, which others can reach, without any API key. "
                "Make one (thrifty keys create --name NAME), or say that anyone may call "
                "(--allow-no-keys)"
            )

    def _sort_orphans(self, known: dict[str, ReplicaRow]) -> list[tuple[ProcessId, str]]:
        """Processes of an earlier controller: replicas that we cannot adopt end; gateways are
        returned, to be replaced without a gap.
        """
        gateways = []
        revisions = {plan.served.name: plan.served.revision for plan in self.plans}
        for ident, role, process_id in find_ours(self.home.root):
            if role == "gateway":
                gateways.append((ident, process_id))
                continue
            row = known.get(process_id)
            if row is None or row.pid != ident.pid or row.revision != revisions.get(row.deployment):
                log.info("ending pid %d, left over from an earlier run", ident.pid)
                orphan = adopt_process(ident, self.home.logs / f"{process_id}.log")
                if orphan is not None:
                    orphan.kill()
        return gateways

    # replicas

    def _make_replicas(self) -> None:
        on_change: OnChange = self._changed.set
        local = [plan for plan in self.plans if not plan.engine.traits.external]
        total = sum(plan.spec.replicas.count for plan in local)
        shares = iter(share_cores(self._machine.cores, total) if total else ())
        for plan in self.plans:
            name, replicas = plan.served.name, plan.spec.replicas
            if plan.engine.traits.external:
                self.replicas += [
                    ExternalReplica(f"{name}-{index}", url, plan.served, plan.engine, on_change)
                    for index, url in enumerate(plan.served.upstream.urls)
                ]
                continue
            own = [next(shares) for _ in range(replicas.count)]
            if replicas.cpus is not None:
                own = share_cores(self._machine.cores, replicas.count, replicas.cpus)
            for index, cores in enumerate(own):
                self.replicas.append(
                    LocalReplica(
                        f"{name}-{index}",
                        plan.served,
                        plan.engine,
                        home=self.home,
                        store=self._store,
                        cores=cores,
                        memory_share=1.0 / total,
                        memory_limit=replicas.memory_limit,
                        start_timeout_s=replicas.start_timeout,
                        on_change=on_change,
                    )
                )

    # the database

    def _open_rescuer(self) -> None:
        """Keep the embedded file open, so that it can be written anew if it is deleted."""
        if self._rescuer is not None:
            self._rescuer.close()
            self._rescuer = None
        if self.database.file is not None:
            self._rescuer = sqlite3.connect(self.database.file, check_same_thread=False)
            self._rescuer.execute("SELECT count(*) FROM sqlite_master").fetchone()

    async def _publish(self) -> None:
        """Write replicas when they change, and their figures now and then."""
        last_states: dict[str, tuple[str, str, str]] = {}
        last_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_FILE_S):
                    await self._changed.wait()
            changed = self._changed.is_set()
            due = time.monotonic() - last_s > PUBLISH_INTERVAL_S
            gone = self.database.file_is_gone()
            if not (changed or due or gone):
                continue
            self._changed.clear()
            rows = [replica.row() for replica in self.replicas]
            states = {row.id: (row.state, row.url, row.version) for row in rows}
            try:
                if gone:
                    await asyncio.to_thread(self._rescue)
                await asyncio.to_thread(
                    save_replicas,
                    self.database,
                    rows,
                    routing_changed=gone or states != last_states,
                )
                last_states, last_s = states, time.monotonic()
            except (DatabaseError, sqlite3.Error, OSError) as error:
                log.warning("the fleet's state cannot be written: %s", error)
                self._changed.set()
                await asyncio.sleep(RETRY_PUBLISH_S)

    def _rescue(self) -> None:
        """The database's file is gone or another: put ours back, or take the new one."""
        assert self.database.file is not None
        if not self.database.file.exists() and self._rescuer is not None:
            log.error("the database's file was deleted; it is written anew")
            rescue_file(self.database, self._rescuer)
        else:
            log.warning("the database's file was replaced; going on with the new one")
        fresh = open_database(self.database_url, migrate=True)
        self.database.close()
        self.database = fresh
        self._open_rescuer()
        self._save_deployments()

    def _save_deployments(self) -> None:
        for plan in self.plans:
            save_deployment(self.database, plan.deployment)
        remove_deployments_except(self.database, [plan.served.name for plan in self.plans])

    # the gateway

    def _make_gateways(self, sockets: list[socket.socket]) -> GatewayWorkers:
        spec = self.spec
        host, port = spec.gateway.host, sockets[0].getsockname()[1]
        settings = {
            "host": host,
            "port": port,
            "workers": spec.gateway.workers,
            "database_url_env": _DATABASE_VARIABLE,
            "redis_url_env": _REDIS_VARIABLE,
            "redis_timeout_s": spec.redis_timeout,
            "max_body_bytes": spec.limits.max_body,
            "cache_bytes": spec.cache.exact.max_bytes,
            "cache_shared": _shared_cache(spec.cache.exact),
            "read_timeout_s": spec.gateway.read_timeout,
            "write_timeout_s": spec.gateway.write_timeout,
            "drain_timeout_s": spec.gateway.drain_timeout,
            "record_requests": spec.record.requests,
            "record_prompts": spec.record.prompts,
            "record_keep_s": spec.record.keep,
            "record_max_rows": spec.record.max_rows,
            "batches": self._describe_batches(),
            "require_keys": host not in LOOPBACK and not spec.gateway.allow_no_keys,
        }
        reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)  # noqa: S104
        self.gateway_url = f"http://{reachable}:{port}"
        return GatewayWorkers(
            self.home,
            sockets,
            settings,
            {_DATABASE_VARIABLE: self.database_url, _REDIS_VARIABLE: spec.redis or ""},
            spec.gateway.drain_timeout,
            self._save_gateway,
        )

    def _describe_batches(self) -> dict[str, Any]:
        batches = self.spec.batches
        return {
            "folder": str(self.home.files),
            "max_file_bytes": batches.max_file,
            "max_lines": batches.max_lines,
            "max_active": batches.max_active,
            "keep_s": batches.keep,
            "governor": {
                "reserve": batches.reserve,
                "displace": batches.displace,
                "settle_s": batches.settle,
            },
        }

    async def _save_gateway(self, row: GatewayRow) -> None:
        try:
            await asyncio.to_thread(save_gateway, self.database, row)
        except DatabaseError as error:
            log.warning("the gateway's state cannot be written: %s", error)


def _shared_cache(exact: ExactCacheSpec) -> dict[str, float] | None:
    """How gateway workers share answers through Redis, if they are to."""
    if not exact.shared:
        return None
    return {
        "timeout_s": exact.shared_timeout,
        "wait_s": exact.share_wait,
        "stream_wait_s": exact.share_wait_stream,
        "max_entry_bytes": exact.shared_max_entry,
    }
