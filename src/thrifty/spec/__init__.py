"""What the user asks for: `thrifty.yaml` as typed models, and nothing else."""

from thrifty.spec.faults import ValueOrigin
from thrifty.spec.load import LoadedSpec, LoadedVersion, load_spec, parse_spec
from thrifty.spec.models import (
    CacheSpec,
    EngineSpec,
    ExactCacheSpec,
    GatewaySpec,
    LimitsSpec,
    RecordSpec,
    ReplicasSpec,
    Spec,
    VersionSpec,
)

__all__ = [
    "CacheSpec",
    "EngineSpec",
    "ExactCacheSpec",
    "GatewaySpec",
    "LimitsSpec",
    "LoadedSpec",
    "LoadedVersion",
    "RecordSpec",
    "ReplicasSpec",
    "Spec",
    "ValueOrigin",
    "VersionSpec",
    "load_spec",
    "parse_spec",
]
