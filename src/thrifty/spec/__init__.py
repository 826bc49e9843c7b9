"""What the user asks for: `thrifty.yaml` as typed models, and nothing else."""

from thrifty.spec.load import LoadedSpec, ValueOrigin, load_spec
from thrifty.spec.models import (
    CacheSpec,
    EngineSpec,
    ExactCacheSpec,
    GatewaySpec,
    LimitsSpec,
    RecordSpec,
    ReplicasSpec,
    Spec,
)

__all__ = [
    "CacheSpec",
    "EngineSpec",
    "ExactCacheSpec",
    "GatewaySpec",
    "LimitsSpec",
    "LoadedSpec",
    "RecordSpec",
    "ReplicasSpec",
    "Spec",
    "ValueOrigin",
    "load_spec",
]
