"""From the desired state to what one replica serves. Its shapes are `db.desired_state`'s."""

from __future__ import annotations

from thrifty.db.desired_state import DesiredDeployment, DesiredVersion
from thrifty.engines.base import Served, Upstream


def make_served(deployment: DesiredDeployment, version: DesiredVersion) -> Served:
    """What a replica of that version serves."""
    settings = version.settings
    upstream = Upstream(
        version.urls, settings.upstream_model, settings.key_env, settings.salt_field,
        settings.priority_field, settings.takes_stream_options, settings.on_demand,
    )  # fmt: skip
    return Served(
        name=deployment.name, engine=version.engine, version=version.label,
        revision=version.revision, family=deployment.family, artifact=version.artifact,
        options=version.options, upstream=upstream,
    )  # fmt: skip
