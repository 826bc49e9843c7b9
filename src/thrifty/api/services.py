"""What the management API needs from the rest of Thrifty, as one protocol.

Methods may block: the application calls them in threads. They raise `WireError` where a certain
status is meant (`not_found` makes a 404), `SpecError` for an invalid spec, `DatabaseError` while
the database is away, and other `ThriftyError`s for what cannot be done. `who` names the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from thrifty.api.cost_models import CostAnswer, CostQuery
from thrifty.api.improve_models import ImproveRunDetail
from thrifty.api.models import (
    Applied,
    Change,
    CreatedKey,
    Draining,
    DrainRequest,
    KeyList,
    NewKey,
    NewRelease,
    Plan,
    ReleaseDetail,
    ReleaseList,
    Restarted,
    RestartRequest,
    RotateKey,
    ScaleChange,
    Scaled,
    SeriesAnswer,
    SeriesQuery,
    Status,
    Traffic,
)
from thrifty.api.view_models import NewSilence, SilenceModel
from thrifty.api.views import Views
from thrifty.openai.errors import NOT_FOUND, WireError, list_names


class ApiServices(Protocol):
    """The service, as its operators see it."""

    @property
    def views(self) -> Views:
        """What the service shows besides."""

    def close(self) -> None:
        """Give back what it holds; it is not used again."""

    def get_status(self) -> Status:
        """What runs."""

    def get_series(self, asked: SeriesQuery) -> SeriesAnswer:
        """Counts, sums and percentiles over time. Raises `ThriftyError` for what cannot be asked."""

    def get_cost(self, asked: CostQuery) -> CostAnswer:
        """What requests cost. Raises `ThriftyError` for what cannot be asked."""

    def get_traffic(self, deployment: str) -> Traffic:
        """The weights of a deployment's versions. Raises a 404."""

    def set_traffic(
        self,
        deployment: str,
        weights: Mapping[str, float],
        *,
        who: str,
        why: str,
        force: bool = False,
    ) -> Traffic:
        """Change the weights that are named. Raises a 404 for a deployment or label that there is
        not, and a 400 where all weights would be 0, or where a release owns them and not `force`.
        """

    def set_scale(self, deployment: str, change: ScaleChange, *, who: str) -> Scaled:
        """Change how many replicas a version has. Raises a 404, and a 400 for numbers that the
        version cannot have.
        """

    def restart_version(self, deployment: str, wanted: RestartRequest, *, who: str) -> Restarted:
        """Replace a version's replicas by new ones. Raises a 404, and a 409 where that cannot be."""

    def drain_replica(self, deployment: str, wanted: DrainRequest, *, who: str) -> Draining:
        """Take a replica away once it has finished. Raises a 404, and a 409 where that cannot be."""

    def roll_back(self, deployment: str, *, who: str, why: str, remove: bool = False) -> Change:
        """Restore the previous desired state. Raises a 404, and a 409 where there is none or where it
        would remove the deployment without `remove`.
        """

    def make_plan(self, spec: Mapping[str, Any]) -> Plan:
        """What applying `spec` would do. Raises `SpecError`."""

    def apply_spec(self, spec: Mapping[str, Any], *, reset: bool, who: str, why: str) -> Applied:
        """Make `spec` the desired state; returns without waiting for it. Raises `SpecError`."""

    def list_releases(self) -> ReleaseList:
        """The newest releases."""

    def get_release(self, release_id: int) -> ReleaseDetail:
        """One release. Raises a 404."""

    def start_release(self, deployment: str, release: NewRelease, *, who: str) -> ReleaseDetail:
        """Begin to release a version. Raises a 404, and a 400 for a plan that cannot be."""

    def act_on_release(self, release_id: int, act: str, *, who: str, why: str) -> ReleaseDetail:
        """`pause`, `resume`, `promote` or `abort`. Raises a 404, and a 409 where the release is in no
        state for it.
        """

    def act_on_improve_run(self, run_id: int, act: str, *, who: str) -> ImproveRunDetail:
        """`approve` or `decline`. Raises a 404, and a 409 where the run waits for neither."""

    def add_silence(self, silence: NewSilence, *, who: str) -> SilenceModel:
        """Tell nobody of some alerts for a while. Raises a 400 for a kind that there is not."""

    def remove_silence(self, number: int, *, who: str) -> None:
        """End a silence. Raises a 404."""

    def list_keys(self) -> KeyList:
        """The keys that are not revoked."""

    def create_key(self, key: NewKey, *, who: str) -> CreatedKey:
        """Make a key."""

    def rotate_key(self, name: str, wanted: RotateKey, *, who: str) -> CreatedKey:
        """Give a key another secret. Raises a 404."""

    def revoke_key(self, name: str, *, who: str) -> None:
        """Revoke a key. Raises a 404."""


def not_found(what: str, name: str, known: Iterable[str] = ()) -> WireError:
    """A 404: there is no `what` of this name; those that there are, are named."""
    return WireError(
        404,
        f"There is no {what} named '{name[:100]}'. There are: {list_names(known)}.",
        type=NOT_FOUND,
        code=f"{what.replace(' ', '_')}_not_found",
    )
