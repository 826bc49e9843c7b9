"""The services of the management API on the database of a home; implements `ApiServices`.

Specs are planned and applied in a separate process (`thrifty.spec_worker`), so that the gateway
worker that answers the API continues to serve meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from thrifty.api.cost_models import CostAnswer, CostQuery
from thrifty.api.improve_models import ImproveRunDetail
from thrifty.api.models import (
    Applied,
    Change,
    CreatedKey,
    DeploymentStatus,
    Draining,
    DrainRequest,
    GatewayStatus,
    KeyInfo,
    KeyLimitsModel,
    KeyList,
    NewKey,
    NewRelease,
    Plan,
    Release,
    ReleaseDetail,
    ReleaseEvent,
    ReleaseList,
    Restarted,
    RestartRequest,
    RotateKey,
    ScaleChange,
    Scaled,
    SeriesAnswer,
    SeriesModel,
    SeriesQuery,
    Status,
    Traffic,
)
from thrifty.api.services import not_found
from thrifty.api.view_models import NewSilence, SilenceModel
from thrifty.artifacts import Store
from thrifty.control.restart import drain_replica, restart_version
from thrifty.control.scale import Scale, set_scale
from thrifty.control.service_api import Actor, read_traffic, roll_back, set_traffic
from thrifty.control.service_status import read_status
from thrifty.cost.report import make_report
from thrifty.cost.speeds import find_speeds
from thrifty.db import Database, open_database
from thrifty.db.alerts import Silence, add_silence, remove_silence
from thrifty.db.desired import read_desired, read_history
from thrifty.db.improve import APPROVE, approve_run, find_active_run
from thrifty.db.keys import Key, KeyLimits, Scope, create_key, list_keys, revoke_key, rotate_key
from thrifty.db.releases import (
    ReleaseRow,
    describe_release,
    read_events,
    read_release,
    read_releases,
)
from thrifty.db.rollups import DAY_S
from thrifty.errors import ControlError, Problem, SpecError, ThriftyError
from thrifty.fleet.controller_note import read_controller_note
from thrifty.home import HOME_VARIABLE, Home
from thrifty.observe.alerts.findings import KINDS
from thrifty.observe.rollups.series import Asked, read_series
from thrifty.openai.errors import WireError, bad_request
from thrifty.release.manage import RELEASE_ACTS, start_release
from thrifty.release.plan import parse_plan
from thrifty.spec.judges import DEPLOYMENT
from thrifty.worker.home_views import HomeViews, describe_silence

SPEC_TIMEOUT_S = 3600.0
"""Limit for one request; fetching a large model takes long."""


IMPROVE_ACTS = (APPROVE, "decline")
"""What operators do to a run of the loop that waits."""


class HomeServices:
    """The service of one home, on its open database. The methods block and may run on threads."""

    def __init__(self, database: Database, home: Home) -> None:
        self._database = database
        self._home = home
        self.views = HomeViews(database, home)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def get_status(self) -> Status:
        """The running service. Raises `DatabaseError`."""
        note = read_controller_note(self._home)
        # The gateway that answers this runs, even if its controller was killed.
        url = note.url if note is not None else None
        found = read_status(self._database, Store(self._home.models).folder_of)
        deployments = [DeploymentStatus.model_validate(one) for one in found]
        return Status(deployments=deployments, gateway=GatewayStatus(url=url))

    def get_series(self, asked: SeriesQuery) -> SeriesAnswer:
        """Counts, sums and percentiles over time, from the rollups. Raises `ThriftyError`."""
        until_s = int(time.time()) + 1 if asked.to_s is None else asked.to_s
        from_s = until_s - DAY_S if asked.from_s is None else asked.from_s
        found = read_series(
            self._database,
            Asked(
                tuple(asked.metrics.split(",")), asked.by, asked.step, from_s, until_s,
                asked.deployment, asked.version, asked.tenant,
            ),
        )  # fmt: skip
        series = [SeriesModel(labels=one.labels, values=one.values) for one in found.series]
        return SeriesAnswer(step_s=found.step_s, times=found.times, series=series)

    def get_cost(self, asked: CostQuery) -> CostAnswer:
        """What requests cost, from the rollups and the time of replicas. Raises `ThriftyError`."""
        until_s = time.time() if asked.to_s is None else min(asked.to_s, time.time())
        report = make_report(
            self._database, by=asked.by, until_s=until_s,
            from_s=until_s - 30 * DAY_S if asked.from_s is None else asked.from_s,
            fill_per_hour=asked.price_per_hour,
            speeds=find_speeds(self._database, Store(self._home.models)),
        )  # fmt: skip
        return CostAnswer.model_validate(report.describe())

    def get_traffic(self, deployment: str) -> Traffic:
        """The weights of a deployment's versions. Raises a 404."""
        self._require(deployment)
        return Traffic.model_validate(read_traffic(self._database, deployment))

    def set_traffic(
        self,
        deployment: str,
        weights: Mapping[str, float],
        *,
        who: str,
        why: str,
        force: bool = False,
    ) -> Traffic:
        """Change weights. Raises a 404 for unknown names, `ControlError` for invalid changes."""
        self._require(deployment)
        known = read_desired(self._database).deployments[deployment]
        for label in weights:
            if known.find_version(label) is None:
                raise not_found("version", label, [one.label for one in known.versions])
        report = set_traffic(self._database, deployment, weights, _actor(who, why), force=force)
        return Traffic.model_validate(report)

    def set_scale(self, deployment: str, change: ScaleChange, *, who: str) -> Scaled:
        """Change the number of replicas. Raises a 404, `ControlError` for invalid changes."""
        self._require_version(deployment, change.version)
        wanted = Scale(change.count, change.min, change.max)
        made = set_scale(
            self._database, deployment, change.version, wanted, _actor(who, change.why)
        )
        return Scaled(
            deployment=deployment, version=change.version, count=made.count, min=made.min_count,
            max=made.max_count,
        )  # fmt: skip

    def restart_version(self, deployment: str, wanted: RestartRequest, *, who: str) -> Restarted:
        """Replace a version's replicas by new ones. Raises a 404 and a 409."""
        self._require_version(deployment, wanted.version)
        try:
            revision = restart_version(
                self._database, deployment, wanted.version, _actor(who, wanted.why)
            )
        except ControlError as error:
            raise WireError(409, str(error), code="cannot_restart") from None
        return Restarted(deployment=deployment, version=wanted.version, revision=revision)

    def drain_replica(self, deployment: str, wanted: DrainRequest, *, who: str) -> Draining:
        """Take a replica away once it has finished. Raises a 404 and a 409."""
        self._require(deployment)
        actor = _actor(who, wanted.why)
        try:
            drain_replica(self._database, deployment, wanted.replica, actor, force=wanted.force)
        except ControlError as error:
            raise WireError(409, str(error), code="cannot_drain") from None
        return Draining(deployment=deployment, replica=wanted.replica)

    def roll_back(self, deployment: str, *, who: str, why: str, remove: bool = False) -> Change:
        """Restore the previous desired state. Raises a 404, or a 409 if there is none, or if it
        would remove the deployment without `remove`.
        """
        history = read_history(self._database, deployment, 2)
        if not history:
            self._require(deployment)
        if len(history) < 2:
            raise WireError(
                409, f"The deployment '{deployment}' has no earlier state.", code="nothing_before"
            )
        try:
            roll_back(
                self._database, deployment, _actor(who, why), store=Store(self._home.models),
                remove=remove,
            )  # fmt: skip
        except ControlError as error:
            raise WireError(409, str(error), code="cannot_roll_back") from None
        change = read_history(self._database, deployment, 1)[0]
        return Change(
            id=change.id, deployment=deployment, at_s=change.at_s, kind=change.kind,
            who=change.who, why=change.why,
        )  # fmt: skip

    def make_plan(self, spec: Mapping[str, Any]) -> Plan:
        """What applying `spec` would change. Raises `SpecError`."""
        return Plan.model_validate(self._run("plan", spec)["plan"])

    def apply_spec(self, spec: Mapping[str, Any], *, reset: bool, who: str, why: str) -> Applied:
        """Make `spec` the desired state. Returns once its models are prepared, without waiting
        until it runs. Raises `SpecError`.
        """
        actor = _actor(who, why)
        answer = self._run("apply", spec, reset=reset, who=actor.who, why=why)
        return Applied.model_validate(answer)

    def list_releases(self) -> ReleaseList:
        """The newest releases."""
        rows = read_releases(self._database)
        return ReleaseList(releases=[Release.model_validate(_describe(row)) for row in rows])

    def get_release(self, release_id: int) -> ReleaseDetail:
        """One release. Raises a 404."""
        row = self._require_release(release_id)
        events = [
            ReleaseEvent(
                at_s=one.at_s, kind=one.kind, who=one.who, why=one.why, figures=one.figures
            )
            for one in read_events(self._database, release_id)
        ]
        return ReleaseDetail.model_validate({**_describe(row), "events": events})

    def start_release(self, deployment: str, release: NewRelease, *, who: str) -> ReleaseDetail:
        """Begin to release a version. Raises a 404, and `ControlError` for what cannot be."""
        self._require_version(deployment, release.candidate)
        plan = parse_plan(release.plan)
        for judge in (plan.shadow.judge, plan.canary.judge):
            if judge is not None and not (isinstance(judge, str) and judge.startswith(DEPLOYMENT)):
                raise ControlError(
                    "a judge in a plan that comes over HTTP must be 'deployment:NAME': it may run no "
                    "code and send texts nowhere; release on the service's machine (thrifty release)"
                )
        actor = _actor(who, release.why)
        made = start_release(
            self._database, deployment, release.candidate, plan, who=actor.who, why=actor.why
        )
        return self.get_release(made.id)

    def act_on_release(self, release_id: int, act: str, *, who: str, why: str) -> ReleaseDetail:
        """`pause`, `resume`, `promote` or `abort`. Raises a 404 and a 409."""
        self._require_release(release_id)
        if act not in RELEASE_ACTS:
            raise not_found("act", act, RELEASE_ACTS)
        actor = _actor(who, why)
        try:
            RELEASE_ACTS[act](self._database, release_id, who=actor.who, why=actor.why)
        except ControlError as error:
            raise WireError(409, str(error), code="wrong_release_state") from None
        return self.get_release(release_id)

    def _require_release(self, release_id: int) -> ReleaseRow:
        try:
            return read_release(self._database, release_id)
        except ControlError:
            known = [str(one.id) for one in read_releases(self._database, limit=5)]
            raise not_found("release", str(release_id), known) from None

    def act_on_improve_run(self, run_id: int, act: str, *, who: str) -> ImproveRunDetail:
        """`approve` or `decline`. Raises a 404 and a 409."""
        run = self.views.get_improve_run(run_id)
        if act not in IMPROVE_ACTS:
            raise not_found("act", act, IMPROVE_ACTS)
        try:
            known = find_active_run(self._database, run.deployment)
            if known is None or known.id != run_id:
                raise ControlError(f"run {run_id} is {run.state}, and waits for nothing")
            approve_run(
                self._database, run.deployment, approve=act == APPROVE, who=_actor(who, "").who
            )
        except ControlError as error:
            raise WireError(409, str(error), code="wrong_run_state") from None
        return self.views.get_improve_run(run_id)

    def add_silence(self, silence: NewSilence, *, who: str) -> SilenceModel:
        """Tell nobody of some alerts for a while. Raises a 400 for an unknown kind."""
        if silence.kind is not None and silence.kind not in KINDS:
            raise bad_request(
                f"{silence.kind!r} is no kind of alert; there are {', '.join(KINDS)}.", "kind",
                "invalid_value",
            )  # fmt: skip
        made = Silence(
            silence.kind, silence.deployment, silence.version, time.time() + silence.seconds,
            silence.why,
        )  # fmt: skip
        number = add_silence(self._database, made, _actor(who, "").who)
        return describe_silence(replace(made, id=number))

    def remove_silence(self, number: int, *, who: str) -> None:
        """End a silence. Raises a 404."""
        if not remove_silence(self._database, number, _actor(who, "").who):
            raise not_found("silence", str(number))

    def list_keys(self) -> KeyList:
        """All keys that are not revoked."""
        return KeyList(keys=[_to_key_info(key) for key in list_keys(self._database)])

    def create_key(self, key: NewKey, *, who: str) -> CreatedKey:
        """Create a key. Raises kinds of `ThriftyError`."""
        limits = KeyLimits(**key.limits.model_dump())
        scope = Scope(None if key.deployments is None else tuple(key.deployments), key.expires_s)
        made, secret = create_key(
            self._database, key.name, key.role, key.tenant, limits, scope=scope,
            who=_actor(who, "").who,
        )  # fmt: skip
        return CreatedKey(key=_to_key_info(made), secret=secret)

    def rotate_key(self, name: str, wanted: RotateKey, *, who: str) -> CreatedKey:
        """Give a key another secret. Raises a 404."""
        self._require_key(name)
        made, secret = rotate_key(self._database, name, wanted.keep_s, who=_actor(who, "").who)
        return CreatedKey(key=_to_key_info(made), secret=secret)

    def _require_key(self, name: str) -> None:
        names = [key.name for key in list_keys(self._database)]
        if name not in names:
            raise not_found("key", name, names)

    def revoke_key(self, name: str, *, who: str) -> None:
        """Revoke a key. Raises a 404."""
        self._require_key(name)
        revoke_key(self._database, name, who=_actor(who, "").who)

    def _require(self, deployment: str) -> None:
        known = read_desired(self._database).deployments
        if deployment not in known:
            raise not_found("deployment", deployment, known)

    def _require_version(self, deployment: str, label: str) -> None:
        self._require(deployment)
        known = read_desired(self._database).deployments[deployment]
        if known.find_version(label) is None:
            raise not_found("version", label, [one.label for one in known.versions])

    def _run(self, act: str, spec: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Run an action in `thrifty.spec_worker`. Raises `SpecError` and `ThriftyError`."""
        try:
            request = msgspec.json.encode({"act": act, "spec": dict(spec), **options})
        except (UnicodeEncodeError, OverflowError, RecursionError) as error:
            raise bad_request(
                f"'spec' holds a value that no spec can hold: {error}.", "spec", "invalid_spec"
            ) from None
        try:
            done = subprocess.run(
                [sys.executable, "-m", "thrifty.spec_worker"],
                input=request, capture_output=True, check=False, timeout=SPEC_TIMEOUT_S,
                env={**os.environ, HOME_VARIABLE: str(self._home.root)},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ThriftyError(
                f"the spec was not {'planned' if act == 'plan' else 'prepared'} within "
                f"{SPEC_TIMEOUT_S:g} s; fetched files are kept, and another attempt resumes there"
            ) from None
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode(errors="replace")[-2000:])
        answer: dict[str, Any] = msgspec.json.decode(done.stdout)
        if answer.get("problems"):
            raise SpecError([Problem(one["path"], one["message"]) for one in answer["problems"]])
        if "error" in answer:
            raise ThriftyError(answer["error"])
        return answer


def make_home_services(database_url: str, home: Home) -> HomeServices:
    """The services of `home`, with a separate connection. Raises `DatabaseError`."""
    return HomeServices(open_database(database_url, migrate=False), home)


def _describe(row: ReleaseRow) -> dict[str, Any]:
    return describe_release(row, parse_plan(row.record.plan).stages)


def _actor(who: str, why: str) -> Actor:
    return Actor(f"{who} (management API)", why)


def _to_key_info(key: Key) -> KeyInfo:
    return KeyInfo(
        id=key.id, name=key.name, role=key.role, tenant=key.tenant, hint=key.hint,
        created_s=key.created_s, limits=KeyLimitsModel(**vars(key.limits)),
        deployments=None if key.deployments is None else list(key.deployments),
        expires_s=key.expires_s,
    )  # fmt: skip
