"""Views: what the management API shows and does not change. The console is made from these."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Protocol

from fastapi import Depends, Query, Request

from thrifty.api.improve_models import ImproveRunDetail, ImproveRuns
from thrifty.api.quality_models import Quality
from thrifty.api.view_models import (
    AlertList,
    AuditList,
    AuditVerdict,
    History,
    Live,
    ModelList,
    Overview,
    Settings,
)

MAX_HISTORY = 200
MAX_ACTS = 1000


class WindowName(StrEnum):
    """How far back figures go."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Views(Protocol):
    """What there is to see. Methods may block and raise `DatabaseError`."""

    def get_overview(self, window: WindowName) -> Overview:
        """Figures by version over a window that ends now."""

    def get_live(self) -> Live:
        """What is going on now."""

    def list_history(self, deployment: str | None, limit: int) -> History:
        """Changes of the desired state, of one deployment or of all."""

    def list_models(self) -> ModelList:
        """The stored models. Raises `ArtifactError` kinds."""

    def list_alerts(self) -> AlertList:
        """What is wrong, and what was in the last days."""

    def get_quality(self, deployment: str | None) -> Quality:
        """What is known of the quality of answers, of one deployment or of all."""

    def list_improve_runs(self, deployment: str | None) -> ImproveRuns:
        """Runs of the loop, of one deployment or of all."""

    def get_improve_run(self, run_id: int) -> ImproveRunDetail:
        """One run of the loop. Raises a 404."""

    def get_settings(self) -> Settings:
        """The spec in force, with where each value comes from."""

    def list_acts(self, limit: int) -> AuditList:
        """Administrative acts."""

    def verify_audit(self) -> AuditVerdict:
        """Read the audit log's whole chain."""


def _get_views(request: Request) -> Views:
    views: Views = request.app.state.services.views
    return views


Seen = Annotated[Views, Depends(_get_views)]


def get_overview(views: Seen, window: WindowName = WindowName.HOUR) -> Overview:
    """Figures by version."""
    return views.get_overview(window)


def list_history(
    views: Seen,
    deployment: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_HISTORY)] = 50,
) -> History:
    """Changes of the desired state."""
    return views.list_history(deployment, limit)


def list_models(views: Seen) -> ModelList:
    """The stored models."""
    return views.list_models()


def list_alerts(views: Seen) -> AlertList:
    """What is wrong."""
    return views.list_alerts()


def get_quality(
    views: Seen, deployment: Annotated[str | None, Query(max_length=64)] = None
) -> Quality:
    """The quality of answers."""
    return views.get_quality(deployment)


def list_improve_runs(
    views: Seen, deployment: Annotated[str | None, Query(max_length=64)] = None
) -> ImproveRuns:
    """Runs of the loop."""
    return views.list_improve_runs(deployment)


def get_improve_run(run_id: int, views: Seen) -> ImproveRunDetail:
    """One run of the loop."""
    return views.get_improve_run(run_id)


def get_settings(views: Seen) -> Settings:
    """The spec in force."""
    return views.get_settings()


def list_acts(views: Seen, limit: Annotated[int, Query(ge=1, le=MAX_ACTS)] = 100) -> AuditList:
    """Administrative acts."""
    return views.list_acts(limit)


def verify_audit(views: Seen) -> AuditVerdict:
    """Whether the audit log is whole."""
    return views.verify_audit()


VIEW_HANDLERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        get_overview, get_quality, list_improve_runs, get_improve_run, list_alerts, list_history, list_models,
        get_settings, list_acts, verify_audit,
    )
}  # fmt: skip
