"""The routing table: deployments, versions, replicas and keys.

`reader` reads it from the database. It stays as it is while the database or the controller is
away. Requests in flight are counted here, from the choice of a replica until the last byte.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from thrifty.db.cache import Purge
from thrifty.db.fleet import FleetState, GatewayRow, ReplicaRow
from thrifty.db.keys import Key
from thrifty.gateway.state.deployment import Deployment, merge_deployment
from thrifty.gateway.state.replica import Replica
from thrifty.gateway.state.version import MakePolicy, Version
from thrifty.http.sessions import Sessions


class RoutingTable:
    """Deployments by name, keys by hash. Changed only on the event loop."""

    def __init__(self, make_policy: MakePolicy) -> None:
        self._make_policy = make_policy
        self.deployments: dict[str, Deployment] = {}
        self.names: dict[str, Deployment] = {}
        """Deployments by every name that clients may use in `model`, aliases included."""
        self.gateways: list[GatewayRow] = []
        self.keys: dict[str, Key] = {}
        self.sessions: Sessions | None = None
        """Reads cookies that stand for keys; None: only keys themselves count."""
        self.sign_in_rules: str | None = None
        """The rules of the spec by which persons get roles; None: nobody signs in by a provider."""
        self.sign_ins: dict[str, Key] = {}
        """Persons who are signed in by these rules, as `keys`."""
        self.keys_exist = False
        """Stays true once a key was seen: losing the database must not disable authentication."""
        self.loaded = False
        self.workers = 1
        """The number of gateway workers that share the replicas' slots."""
        self.change = -1
        self.gone: list[Replica] = []
        self.purges: Sequence[Purge] = ()
        self.listeners: list[Callable[[], None]] = []
        """Called after each new state, changed or not."""

    def versions(self) -> Iterator[Version]:
        """All versions of all deployments."""
        for deployment in self.deployments.values():
            yield from deployment.versions.values()

    def find_version(self, deployment: str, label: str) -> Version | None:
        """The version with that label, if it exists."""
        found = self.deployments.get(deployment)
        return None if found is None else found.versions.get(label)

    def apply(self, state: FleetState) -> None:
        """Apply a new state; replicas that remain keep their counters."""
        self.change = state.change
        self.keys = {key.hash: key for key in state.keys} | {
            key.previous_hash: key for key in state.keys if key.previous_hash is not None
        }
        self.keys_exist = self.keys_exist or bool(self.keys)
        mine = (one.key for one in state.sign_ins if one.rules == self.sign_in_rules)
        self.sign_ins = {key.hash: key for key in mine}
        before = self.deployments
        self.deployments = {
            row.name: merge_deployment(before.get(row.name), row, self._make_policy)
            for row in state.deployments
        }
        for name, deployment in self.deployments.items():
            changed = deployment is not before.get(name)
            deployment.hold(state.held.get(name), changed=changed)
        self.gateways = state.gateways
        self.names = {
            alias: deployment
            for deployment in self.deployments.values()
            for alias in deployment.settings.aliases
        } | self.deployments
        rows: defaultdict[tuple[str, str], list[ReplicaRow]] = defaultdict(list)
        for replica in state.replicas:
            rows[replica.deployment, replica.version].append(replica)
        for version in self.versions():
            self.gone += version.take_replicas(rows[version.deployment, version.label])
            version.resize(self.workers)
            version.take_scaling(state.scaling.get((version.deployment, version.label)))
            elsewhere = self.deployments[version.deployment].ready
            if not version.available and (elsewhere or version.fault is not None):
                version.concurrency.dismiss()
        self._wake_removed(before)
        self.purges = state.purges
        self.loaded = True
        for listener in self.listeners:
            listener()

    def _wake_removed(self, before: dict[str, Deployment]) -> None:
        """Wake requests that wait for a removed version, so that they find it gone."""
        for deployment in before.values():
            now = self.deployments.get(deployment.name)
            for version in deployment.versions.values():
                if now is None or version.label not in now.versions:
                    self.gone += version.replicas.values()
                    version.ready = []
                    version.concurrency.resize(None)
                    version.wake()

    def take_gone(self) -> list[Replica]:
        """Replicas that have left since the last call."""
        gone, self.gone = self.gone, []
        return gone
