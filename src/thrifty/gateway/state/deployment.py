"""A deployment: one name that clients use in `model`, and its versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from thrifty.db.fleet import DeploymentRow, DeploymentSettings
from thrifty.db.releases import HeldConversations
from thrifty.gateway.state.recent_conversations import RecentConversations
from thrifty.gateway.state.version import MakePolicy, Version, merge_version
from thrifty.openai.conversations import choose_version, read_hash


@dataclass
class Deployment:
    """A deployment and its versions in this worker."""

    row: DeploymentRow
    versions: dict[str, Version]
    """By label, in the order of the spec."""

    name: str = field(init=False)
    """The name that clients use in `model`."""
    settings: DeploymentSettings = field(init=False)
    """The deployment's policies and limits."""

    def __post_init__(self) -> None:
        self.name, self.settings = self.row.name, self.row.settings
        self._weights = [(label, v.row.weight) for label, v in self.versions.items()]
        weighted = [label for label, weight in self._weights if weight > 0]
        self._only = self.versions[weighted[0]] if len(weighted) == 1 else None
        self.shadows = [version for version in self.versions.values() if version.row.shadow > 0]
        """Versions that receive copies of requests."""
        self.recent = RecentConversations()
        self.unreported: frozenset[str] = frozenset()
        """Hashes of conversations that are held, and that other workers do not know of."""
        self._held: frozenset[str] = frozenset()
        self._held_weights: list[tuple[str, float]] = []

    def hold(self, held: HeldConversations | None, *, changed: bool = False) -> None:
        """Have conversations that began before the weights changed stay on their versions.

        `changed` says that the weights may be new, so that conversations of this worker that they
        would move are held, too: the request log may not have them yet.
        """
        weights = held.weights if held is not None else {}
        self._held_weights = [(k, v) for k, v in weights.items() if k in self.versions]
        if held is None or not any(weight > 0 for _, weight in self._held_weights):
            self._held = self.unreported = frozenset()
            return
        self._held = held.hashes
        # Those of a step before are found again, as far as they are held by these weights, too.
        own = self._find_moved(held.keep_s) if changed else self.unreported
        self.unreported = own - held.hashes
        if self.unreported:
            self._held = held.hashes | self.unreported

    def _find_moved(self, keep_s: float) -> frozenset[str]:
        """Recent conversations that the weights move from the versions they are held on."""
        return frozenset(
            read_hash(name)
            for name, label in self.recent.list_since(keep_s)
            if self.choose(name).label != label
            and choose_version(name, self._held_weights)[0] == label
        )

    @property
    def main(self) -> Version:
        """The version with the largest weight."""
        return max(self.versions.values(), key=lambda version: version.row.weight)

    @property
    def ready(self) -> bool:
        """Whether any version with traffic has a ready replica, or wakes for a request."""
        return any(v.available for v in self.versions.values() if v.row.weight > 0)

    def choose(self, conversation_id: str) -> Version:
        """The version that a conversation is assigned to. It depends only on the conversation and
        the weights (those before, for a conversation that is held), so every worker makes the same
        choice.
        """
        if self._held and read_hash(conversation_id) in self._held:
            return self.versions[choose_version(conversation_id, self._held_weights)[0]]
        if self._only is not None:
            return self._only
        return self.versions[choose_version(conversation_id, self._weights)[0]]

    def find_answering(self, conversation_id: str) -> tuple[Version, Version]:
        """The version that a conversation is assigned to, and the version that answers now: the
        same one, or the next in the conversation's order that has a ready replica. A version that
        is at zero by intent answers by itself, once it has woken.
        """
        chosen = self.choose(conversation_id)
        self.recent.note(conversation_id, chosen.label)
        if chosen.ready or chosen.asleep:
            return chosen, chosen
        others = self.alternatives(conversation_id, chosen)
        return chosen, next((other for other in others if other.available), chosen)

    @property
    def only(self) -> Version | None:
        """The version that gets all traffic, if there is exactly one."""
        return self._only

    def alternatives(self, conversation_id: str, chosen: Version) -> Iterator[Version]:
        """The versions that may answer instead of `chosen`, in the conversation's order."""
        if self._only is not None:
            if chosen is not self._only:
                yield self._only
            return
        for label in choose_version(conversation_id, self._weights):
            if label != chosen.label:
                yield self.versions[label]


def merge_deployment(
    known: Deployment | None, row: DeploymentRow, make_policy: MakePolicy
) -> Deployment:
    """The deployment for a row; unchanged parts keep their objects."""
    if known is not None and known.row == row:
        return known
    before = known.versions if known is not None else {}
    versions = {
        version.label: merge_version(
            before.get(version.label), row.name, version, row.settings, make_policy
        )
        for version in row.versions
    }
    merged = Deployment(row, versions)
    if known is not None:
        merged.recent, merged.unreported = known.recent, known.unreported
    return merged
