"""The controller of a home: it takes the home, opens the database, and runs the control loop.

One runs for each home. It takes what should run from the database, where `up` and `apply` have put
it. When it is told to stop it drains everything; when it is killed, what it started goes on serving,
and the next controller adopts the replicas, replaces the gateway's workers without a gap, and goes on
from the desired state.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from thrifty.artifacts import Store
from thrifty.control.alerting import Alerting
from thrifty.control.checks import check_keys
from thrifty.control.gateway_settings import (
    WorkerSettings,
    find_unchangeable,
    make_url,
    make_worker_settings,
)
from thrifty.control.gateways import GatewayWorkers
from thrifty.control.improving import Improving
from thrifty.control.loop import ControlLoop
from thrifty.control.recorder import RecorderProcess
from thrifty.control.rollups import keep_rollups
from thrifty.control.scaling import Scaling
from thrifty.control.standby import keep_cached
from thrifty.db import Database, open_database
from thrifty.db.database import rescue_file
from thrifty.db.desired import read_desired
from thrifty.db.desired_state import DesiredService
from thrifty.db.fleet import (
    GatewayRow,
    read_fleet,
    read_gateways,
    remove_gateway,
    remove_replicas,
    save_gateway,
)
from thrifty.db.keys import list_keys
from thrifty.db.secrets import ID_SECRET, read_secret
from thrifty.engines.machine import Machine
from thrifty.errors import DatabaseError, FleetError
from thrifty.fleet.base import Fleet, ObservedReplica, ReplicaNames, check_key
from thrifty.fleet.controller_note import (
    keep_database_url,
    read_controller_note,
    remove_controller_note,
    write_controller_note,
)
from thrifty.fleet.external import ExternalFleet
from thrifty.fleet.local import LocalFleet
from thrifty.fleet.ports import choose_port
from thrifty.fleet.process import (
    GATEWAY_ROLE,
    RECORDER_ROLE,
    ProcessId,
    adopt_process,
    find_ours,
)
from thrifty.home import Home, make_private_folder
from thrifty.quality.run import QualityChecks
from thrifty.quality.watch import AnswerWatch
from thrifty.release.run import Releases
from thrifty.types import ReplicaState

log = logging.getLogger(__name__)

"""The name of the secret that marks response and conversation ids as ours."""
_POLL_S = 0.05
_EXTRA_GRACE_S = 20.0
_ARRIVED = (ReplicaState.READY, ReplicaState.PARKED)


class Controller:
    """See the module's docstring. `start` it, wait, `stop` it."""

    def __init__(
        self, home: Home, store: Store, machine: Machine, database_url: str | None = None
    ) -> None:
        """`database_url` is a SQLAlchemy URL; without one it is the home's embedded database."""
        self.home = home
        self.database_url = database_url or home.database_url
        self.database: Database
        self.gateway_url = ""
        self.on_wait: Callable[[str], None] = lambda holder: None
        """Told which other controller acts, for as long as this one waits for it."""
        self._store = store
        self._machine = machine
        names = ReplicaNames()
        self._external = ExternalFleet(names, self._note_change, self._announce)
        self._local = LocalFleet(home, store, machine, names, self._note_change, self._announce)
        self._names = names
        self._fleets: dict[bool, Fleet] = {True: self._external, False: self._local}
        self._loop = ControlLoop(
            lambda: self.database,
            self._fleets,
            machine,
            store,
            self._note_service,
            self._keep_database,
            self._notify_gateways,
        )
        self._scaling = Scaling(lambda: self.database, self._loop, machine, self._count_gateways)
        self._quality = QualityChecks(
            lambda: self.database, lambda: self._loop.desired.deployments, home, store
        )
        self._improving = Improving(
            lambda: self.database, lambda: self._loop.desired.deployments, home
        )
        self._answers = AnswerWatch(
            lambda: self.database, lambda: self._loop.desired.deployments, self._find_keep
        )
        self._alerting = Alerting(lambda: self.database, self._loop)
        self._releases = Releases(lambda: self.database, self._notify_gateways)
        self._service: DesiredService | None = None
        self._service_changed = asyncio.Event()
        self._recorder = RecorderProcess(home)
        self._gateways: GatewayWorkers | None = None
        self._old_workers: list[tuple[ProcessId, str, str]] = []
        """With their roles and ids."""
        """Workers that an earlier controller left, and their recorder, to be replaced."""
        self._address: tuple[str, int] = ("", 0)
        self._id_secret = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._lock: int | None = None
        self._rescuer: sqlite3.Connection | None = None

    def observe(self) -> list[ObservedReplica]:
        """Every replica, as its fleet sees it now."""
        return self._loop.observe()

    def count_ready(self) -> tuple[int, int]:
        """How many replicas are ready, and how many should be."""
        staying = [one for one in self.observe() if not one.leaving]
        return sum(one.state in _ARRIVED for one in staying), len(staying)

    def is_settled(self) -> bool:
        """Whether all is as desired, and gateways can read so."""
        return self._loop.is_settled()

    async def open(self) -> None:
        """Take the home and open the database, so that what should run can be written before
        anything starts. Raises `ThriftyError` kinds.
        """
        self._take_home()
        self.database = await asyncio.to_thread(open_database, self.database_url, migrate=True)
        keep_database_url(self.home, self.database_url)
        self._open_rescuer()

    async def start(self) -> None:
        """Start what is desired. Returns once the gateway listens. Raises `ThriftyError` kinds."""
        if self._lock is None:
            await self.open()
        await self._choose_fleet()
        state = await asyncio.to_thread(read_fleet, self.database)
        self._old_workers = await asyncio.to_thread(self._find_old_workers)
        self._id_secret = (await asyncio.to_thread(read_secret, self.database, ID_SECRET)).hex()
        await self._loop.start(state)
        if self._service is None:
            raise FleetError(
                f"nothing is desired in the database {self.database.safe_url}; say what should run: "
                "thrifty up SPEC"
            )
        gateway = self._service.gateway
        keys = await asyncio.to_thread(list_keys, self.database)
        check_keys(gateway, has_keys=bool(keys))
        host = str(gateway["host"])
        port = choose_port(
            host, int(gateway["port"]), {ident.pid for ident, _, _ in self._old_workers}
        )
        self._address = (host, port)
        self.gateway_url = make_url(host, port, tls=bool(gateway.get("tls")))
        write_controller_note(self.home, self.gateway_url, self.database_url)
        self._tasks.append(asyncio.ensure_future(self._loop.run()))
        self._tasks.append(asyncio.ensure_future(self._scaling.run()))
        self._gateways = GatewayWorkers(
            self.home, host, port, self._save_gateway, self._remove_gateway, self._scaling.wake
        )
        settings = self._make_worker_settings(gateway)
        await self._recorder.apply(settings)
        old = [name for _, role, name in self._old_workers if role == GATEWAY_ROLE]
        await self._gateways.start(settings, old)
        self._service_changed.clear()
        self._tasks.append(asyncio.ensure_future(self._keep_gateways()))
        self._tasks.append(asyncio.ensure_future(self._alerting.run()))
        self._tasks.append(
            asyncio.ensure_future(
                keep_cached(lambda: self._loop.desired.deployments, self._store.folder_of)
            )
        )
        self._tasks.append(
            asyncio.ensure_future(keep_rollups(lambda: self.database, self._find_keep))
        )
        self._tasks.append(asyncio.ensure_future(self._releases.run()))
        self._tasks.append(asyncio.ensure_future(self._quality.run()))
        self._tasks.append(asyncio.ensure_future(self._improving.run()))
        self._tasks.append(asyncio.ensure_future(self._answers.run()))
        await self._end_old_workers()

    async def _choose_fleet(self) -> None:
        """Run replicas where the service says, and wait until this controller may."""
        service = (await asyncio.to_thread(read_desired, self.database)).service
        if service is None or not service.fleet:
            return
        check_key()
        self._fleets[False] = fleet = self._make_fleet(service.fleet)
        await fleet.connect(self.on_wait)

    def _make_fleet(self, values: Mapping[str, Any]) -> Fleet:
        """The fleet on other machines that the service names. Raises `FleetError`."""
        told = (self._names, self._note_change, self._announce, self._loop.find_size)
        if values["kind"] == "ray":
            from thrifty.fleet.ray import RayFleet, RaySettings

            return RayFleet(RaySettings.from_builtins(values), self.home, self._store, *told)
        from thrifty.fleet.kubernetes import KubernetesFleet, KubernetesSettings

        return KubernetesFleet(KubernetesSettings.from_builtins(values), *told)

    async def replace_gateways(self) -> None:
        """Replace the gateway's workers one after the other. Raises `FleetError`."""
        if self._gateways is not None:
            await self._gateways.replace()

    async def wait_ready(self) -> None:
        """Wait until all is as desired, and the gateway knows. Raises `FleetError` where a replica
        is in a crash loop.
        """
        elsewhere = self._fleets[False].elsewhere
        while not self._loop.is_settled():
            for one in self.observe():
                # A service that ended for one pod would take all others from its gateway.
                if one.state is ReplicaState.CRASH_LOOP and not elsewhere:
                    raise FleetError(
                        f"the replica {one.row.id} does not start: {one.row.message}\n"
                        f"Its log: {self.home.log_of(one.row.id)}"
                    )
            await asyncio.sleep(_POLL_S)
        if self._gateways is not None:
            await self._gateways.wait_settled()

    async def stop(self) -> None:
        """Drain the gateway, then the replicas; leave nothing running."""
        # Requests that are held while the gateway drains still wake what they wait for.
        await self._cancel_tasks(self._tasks[2:])
        if self._gateways is not None:
            await self._gateways.stop()
        if self._old_workers:
            # A start that was given up may not have come to that.
            await self._end_old_workers()
        # Workers have handed over all that they had.
        await self._recorder.stop()
        await self._cancel_tasks(self._tasks[:2])
        ours = self._fleets[False]
        kept = [one.row.id for one in ours.observe()] if ours.elsewhere else []
        ids = [one.row.id for one in self.observe() if one.row.id not in kept]
        grace_s = self._drain_timeout_s + _EXTRA_GRACE_S
        ending = ours.hand_over() if ours.elsewhere else ours.stop(grace_s)
        await asyncio.gather(ending, self._external.stop(grace_s))
        with contextlib.suppress(DatabaseError):
            if hasattr(self, "database"):
                await asyncio.to_thread(remove_replicas, self.database, ids)
                await self._loop.end_spans()
                for gateway_id in self._gateways.ids if self._gateways is not None else ():
                    await asyncio.to_thread(remove_gateway, self.database, gateway_id)
        self._release_home()

    def kill(self) -> None:
        """End everything at once: the second Ctrl-C."""
        if self._gateways is not None:
            self._gateways.kill()
        self._recorder.kill()
        self._fleets[False].kill()

    def _count_gateways(self) -> int:
        return self._gateways.count_alive() if self._gateways is not None else 0

    @property
    def _drain_timeout_s(self) -> float:
        gateway = self._service.gateway if self._service is not None else {}
        return float(gateway.get("drain_timeout_s", 30.0))

    def _find_keep(self) -> Mapping[str, Any]:
        return self._service.records if self._service is not None else {}

    def _note_change(self) -> None:
        self._loop.changed.set()

    def _notify_gateways(self) -> None:
        if self._gateways is not None:
            self._gateways.notify()

    async def _announce(self) -> None:
        await self._loop.announce()

    async def _cancel_tasks(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

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
        if self._lock is None:
            return
        remove_controller_note(self.home)
        if self._rescuer is not None:
            self._rescuer.close()
        if hasattr(self, "database"):
            self.database.close()
        os.close(self._lock)
        self._lock = None

    # the database

    def _open_rescuer(self) -> None:
        """Keep the embedded file open, so that it can be written anew if it is deleted."""
        if self._rescuer is not None:
            self._rescuer.close()
            self._rescuer = None
        if self.database.file is not None:
            self._rescuer = sqlite3.connect(self.database.file, check_same_thread=False)
            self._rescuer.execute("SELECT count(*) FROM sqlite_master").fetchone()

    def _keep_database(self) -> bool:
        """Where the database's file is gone or another, put ours back, or take the new one; says
        whether it had to.
        """
        if not self.database.file_is_gone():
            return False
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
        return True

    # the gateway

    def _note_service(self, service: DesiredService) -> None:
        if service != self._service:
            self._service = service
            self._service_changed.set()

    def _make_worker_settings(self, gateway: Mapping[str, Any]) -> WorkerSettings:
        host, port = self._address
        return make_worker_settings(
            gateway, self.home, host=host, port=port, database_url=self.database_url,
            id_secret=self._id_secret,
        )  # fmt: skip

    async def _keep_gateways(self) -> None:
        """Have the workers run with the settings that are desired."""
        host, port = self._address
        while True:
            await self._service_changed.wait()
            self._service_changed.clear()
            assert self._service is not None
            assert self._gateways is not None
            gateway = self._service.gateway
            fixed = find_unchangeable({"host": host, "port": port}, gateway)
            if fixed:
                log.warning(
                    "the gateway's %s cannot change while it runs; stop and start the service "
                    "(thrifty down, thrifty up)", " and ".join(fixed),
                )  # fmt: skip
            settings = self._make_worker_settings(gateway)
            # Workers hand over the rest when they end, to a recorder that takes it.
            last = self._recorder.takes_less(settings)
            if not last:
                await self._apply_to_recorder(settings)
            try:
                await self._gateways.apply(settings)
            except (FleetError, OSError) as error:
                log.error("the gateway's workers keep their settings: %s", error)
            else:
                if last:
                    await self._apply_to_recorder(settings)

    async def _apply_to_recorder(self, settings: WorkerSettings) -> None:
        try:
            await self._recorder.apply(settings)
        except FleetError as error:
            log.error("the recorder cannot be started, and is tried again: %s", error)

    def _find_old_workers(self) -> list[tuple[ProcessId, str, str]]:
        """Gateway workers that an earlier controller left, which are replaced without a gap, and behind
        them their recorder.
        """
        ours = find_ours(self.home.root)
        return [one for wanted in (GATEWAY_ROLE, RECORDER_ROLE) for one in ours if one[1] == wanted]

    async def _end_old_workers(self) -> None:
        grace_s = self._drain_timeout_s + _EXTRA_GRACE_S
        for ident, _, process_id in self._old_workers:
            process = adopt_process(ident, self.home.log_of(process_id))
            if process is not None:
                await process.stop(grace_s)
        kept = self._gateways.ids if self._gateways is not None else []
        with contextlib.suppress(DatabaseError):
            for row in await asyncio.to_thread(read_gateways, self.database):
                if row.id not in kept:
                    await asyncio.to_thread(remove_gateway, self.database, row.id)

    async def _save_gateway(self, row: GatewayRow) -> None:
        try:
            await asyncio.to_thread(save_gateway, self.database, row)
        except DatabaseError as error:
            log.warning("the gateway's state cannot be written: %s", error)

    async def _remove_gateway(self, gateway_id: str) -> None:
        try:
            await asyncio.to_thread(remove_gateway, self.database, gateway_id)
        except DatabaseError as error:
            log.warning("the gateway's state cannot be written: %s", error)
