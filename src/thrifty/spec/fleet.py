"""Where replicas run: on this machine, in a Kubernetes cluster, or on a Ray cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from thrifty.spec.section import Bytes, Integer, Section

DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
ADDRESS_PATTERN = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"
IMAGE_PATTERN = r"^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$"
DEFAULT_CPUS = 2
"""Cores of a replica in a cluster, where `replicas.cpus` does not say."""
ResourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._:/-]{0,99}$")]
_KEYS: Mapping[str, frozenset[str]] = {
    "local": frozenset(),
    "kubernetes": frozenset(
        {"namespace", "name", "image", "secret", "account", "pull_secret", "models", "memory",
         "kubeconfig", "context", "tls"}
    ),
    "ray": frozenset(
        {"address", "name", "models", "memory", "accelerator_type", "resources", "max_replicas",
         "tls"}
    ),
}  # fmt: skip
"""The keys that each kind takes, besides `kind`."""


class FleetSpec(Section):
    """Where replicas run. Which keys a kind takes is in `_KEYS`."""

    kind: Literal["local", "kubernetes", "ray"] = Field(
        "local",
        description="`local`: processes of this machine. `kubernetes`: pods of a cluster; see "
        "docs/deploy/kubernetes.md. `ray`: actors of a Ray cluster; see docs/deploy/ray.md.",
    )
    address: str | None = Field(
        None,
        pattern=ADDRESS_PATTERN,
        description="HOST:PORT of the Ray cluster's head; needed on Ray. The controller runs on a "
        "node of that cluster.",
    )
    namespace: str | None = Field(
        None,
        pattern=DNS_LABEL,
        description="Where pods run. Default: the namespace of the controller's own pod, or of the "
        "kubeconfig's context.",
    )
    name: str = Field(
        "thrifty",
        pattern=DNS_LABEL,
        description="Tells the fleets of one namespace, or of one Ray cluster, apart. Objects carry it "
        "as a label, the lease by which one controller acts is called so, and on Ray the namespace "
        "is `thrifty-NAME`.",
    )
    image: str | None = Field(
        None,
        pattern=IMAGE_PATTERN,
        description="The image of replicas, built from deploy/Containerfile; needed in a cluster.",
    )
    secret: str = Field(
        "thrifty",
        pattern=DNS_LABEL,
        description="The Secret whose key `replica-key` replicas ask for; the controller has the "
        "same in THRIFTY_REPLICA_KEY.",
    )
    account: str = Field(
        "thrifty",
        pattern=DNS_LABEL,
        description="The ServiceAccount of replicas. It needs no rights, and its token is not mounted.",
    )
    pull_secret: str | None = Field(
        None, pattern=DNS_LABEL, description="The Secret to pull the image with."
    )
    models: str | None = Field(
        None,
        min_length=1,
        description="On Kubernetes the claim (ReadWriteMany) with the model store, mounted at "
        "THRIFTY_HOME/models here and in each replica; engines that load models need it. On Ray the "
        "URL of a remote (docs/remotes.md), to which models are pushed and from which nodes pull "
        "them; without it all nodes must share THRIFTY_HOME/models.",
    )
    memory: Bytes | None = Field(
        None,
        ge=64_000_000,
        description="Memory of each replica, where `replicas.memory_limit` does not say. Default: "
        "from the model's size.",
    )
    kubeconfig: str | None = Field(
        None,
        min_length=1,
        description="The kubeconfig of a controller outside of the cluster. Default: the account of "
        "the controller's own pod, KUBECONFIG, or ~/.kube/config.",
    )
    context: str | None = Field(
        None, min_length=1, description="The kubeconfig's context. Default: its current one."
    )

    tls: bool = Field(
        False,
        description="Gateways and replicas speak TLS and prove to each other that they are of this "
        "fleet, by certificates that THRIFTY_FLEET_TLS leads to; see docs/certificates.md.",
    )
    accelerator_type: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Ray: the kind of GPU of a replica's node, as Ray calls it, such as `L4`.",
    )
    resources: Mapping[ResourceName, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="Ray: what else each replica asks for, by the name of the resource.",
    )
    max_replicas: Integer | None = Field(
        None,
        ge=1,
        description="Ray: for how many replicas Ray's autoscaler is asked for nodes at most. Default: "
        "for all, as far as the cluster says what it may start.",
    )

    @model_validator(mode="after")
    def _check_kind(self) -> FleetSpec:
        fields = type(self).model_fields
        given = [
            key for key in fields
            if key != "kind"
            and getattr(self, key) != fields[key].get_default(call_default_factory=True)
        ]  # fmt: skip
        others = [key for key in given if key not in _KEYS[self.kind]]
        if others:
            kinds = [kind for kind, keys in _KEYS.items() if set(others) <= keys]
            hint = f"; write 'kind: {kinds[0]}'" if self.kind == "local" and kinds else ""
            raise ValueError(f"has {', '.join(others)}, which {self.kind} does not take{hint}")
        if self.kind == "kubernetes":
            self._check_kubernetes()
        if self.kind == "ray":
            self._check_ray()
        return self

    def _check_kubernetes(self) -> None:
        if self.image is None:
            raise ValueError("needs 'image' (registry.example.com/thrifty:1) for kubernetes")
        if self.models is not None and re.match(DNS_LABEL, self.models) is None:
            raise ValueError(f"models: {self.models!r} is not the name of a claim")

    def _check_ray(self) -> None:
        if self.address is None:
            raise ValueError(
                "needs 'address' (HOST:PORT of the cluster's head, such as 10.0.0.5:6379) for ray"
            )
        if self.models is not None and "://" not in self.models:
            raise ValueError(
                f"models: {self.models!r} is not the URL of a remote (s3://bucket/models)"
            )

    def describe(self) -> dict[str, Any]:
        """As plain data, for the desired state; empty for this machine."""
        if self.kind == "local":
            return {}
        keys = {"kind", *_KEYS[self.kind]} - {"memory"}
        made: dict[str, Any] = self.model_dump(mode="json", exclude_none=True, include=keys)
        return {**made, "memory_bytes": self.memory} if self.memory else made
