"""Where replicas run: on this machine, or in a Kubernetes cluster."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from thrifty.spec.section import Bytes, Section

DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
IMAGE_PATTERN = r"^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$"
DEFAULT_CPUS = 2
"""Cores of a replica in a cluster, where `replicas.cpus` does not say."""


class FleetSpec(Section):
    """Where replicas run. All keys but `kind` are for Kubernetes."""

    kind: Literal["local", "kubernetes"] = Field(
        "local",
        description="`local`: processes of this machine. `kubernetes`: pods of a cluster; see "
        "docs/deploy/kubernetes.md.",
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
        description="Tells the fleets of one namespace apart. Objects carry it as a label, and the "
        "lease by which one controller acts is called so.",
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
        pattern=DNS_LABEL,
        description="The claim (ReadWriteMany) with the model store, mounted at THRIFTY_HOME/models "
        "here and in each replica; engines that load models need it.",
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

    @model_validator(mode="after")
    def _check_kind(self) -> FleetSpec:
        fields = type(self).model_fields
        others = [
            key for key in fields
            if key != "kind" and getattr(self, key) != fields[key].default
        ]  # fmt: skip
        if self.kind == "local" and others:
            raise ValueError(
                f"has {', '.join(others)}, which only kubernetes takes; write 'kind: kubernetes'"
            )
        if self.kind == "kubernetes" and self.image is None:
            raise ValueError("needs 'image' (registry.example.com/thrifty:1) for kubernetes")
        return self

    def describe(self) -> dict[str, Any]:
        """As plain data, for the desired state; empty for this machine."""
        if self.kind == "local":
            return {}
        made: dict[str, Any] = self.model_dump(mode="json", exclude_none=True, exclude={"memory"})
        return {**made, "memory_bytes": self.memory} if self.memory else made
