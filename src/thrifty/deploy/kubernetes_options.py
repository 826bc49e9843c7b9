"""The options of Kubernetes, and how a chart keeps some of them open."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from thrifty.deploy.base import DNS_LABEL, ContainerOptions
from thrifty.spec.section import Bytes, Integer

HOST = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"


class KubernetesOptions(ContainerOptions):
    """Options of the targets `kubernetes` and `helm`."""

    namespace: str = Field(
        "thrifty", pattern=DNS_LABEL, description="Where everything is put; charts take Helm's own."
    )
    secret: str = Field(
        "thrifty",
        pattern=DNS_LABEL,
        description="The Secret with the keys; see docs/deploy/kubernetes.md. It is never rendered.",
    )
    pull_secret: str | None = Field(
        None, pattern=DNS_LABEL, description="The Secret to pull the image with."
    )
    tls: bool = Field(
        False,
        description="Gateway and replicas speak TLS and show certificates of their fleet, out of the "
        "Secrets `SECRET-gateway-tls` and `SECRET-replica-tls` (docs/certificates.md). With `fleet: "
        "{kind: kubernetes}`, `fleet.tls` says so.",
    )
    database: bool = Field(
        False, description="Take PostgreSQL's URL from the Secret's key `database-url`."
    )
    redis: bool = Field(False, description="Take Redis' URL from the Secret's key `redis-url`.")
    storage: Literal["ephemeral", "claim"] = Field(
        "ephemeral",
        description="Where replicas keep models: each for itself, or together in a claim that many "
        "nodes can write (ReadWriteMany).",
    )
    storage_class: str | None = Field(None, description="The class of claims.")
    storage_size: Bytes = Field(
        50_000_000_000, ge=1_000_000_000, description="The size of the models' claim."
    )
    autoscale: Literal["none", "hpa", "keda"] = Field(
        "none",
        description="What writes the number of replicas: this manifest, a HorizontalPodAutoscaler, "
        "or KEDA. Each goes by the requests at the gateway, in flight or waiting.",
    )
    min: Integer = Field(
        1,
        ge=0,
        description="The fewest replicas of a version, when autoscaled. 0 needs KEDA, or for an HPA "
        "Kubernetes 1.37 or the gate HPAScaleToZero; requests are held meanwhile.",
    )
    max: Integer = Field(4, ge=1, le=1000, description="The most replicas of a version.")
    target_in_flight: Integer = Field(
        8, ge=1, description="Requests for each replica, when autoscaled."
    )
    prometheus: str = Field(
        "http://prometheus-operated.monitoring:9090", description="Where KEDA asks Prometheus."
    )
    host: str | None = Field(None, pattern=HOST, description="The public name, for the front door.")
    ingress_class: str | None = Field(
        None, pattern=DNS_LABEL, description="Render an Ingress of this class; needs `host`."
    )
    ingress_tls: str | None = Field(
        None, pattern=DNS_LABEL, description="The Secret with the certificate of the Ingress."
    )
    parent_gateway: str | None = Field(
        None,
        pattern=r"^([a-z0-9-]{1,63}/)?[a-z0-9-]{1,63}$",
        description="Render an HTTPRoute to this Gateway (`[NAMESPACE/]NAME`); needs `host`.",
    )
    endpoint_picker: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?:[1-9][0-9]{0,4}$",
        description="Have the HTTPRoute lead to an InferencePool of the gateway's pods (Gateway API "
        "Inference Extension), whose endpoint picker is this Service (`NAME:PORT`); needs "
        "`parent_gateway`.",
    )
    monitoring: bool = Field(
        False, description="Render a ServiceMonitor and a PrometheusRule (Prometheus Operator)."
    )

    @model_validator(mode="after")
    def _check_together(self) -> KubernetesOptions:
        if (self.ingress_class or self.parent_gateway) and not self.host:
            raise ValueError("ingress_class and parent_gateway need 'host'")
        if self.endpoint_picker and not self.parent_gateway:
            raise ValueError("endpoint_picker needs 'parent_gateway'")
        if self.ingress_tls and not self.ingress_class:
            raise ValueError("ingress_tls needs 'ingress_class'")
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, more than max, {self.max}")
        if self.min == 0 and self.autoscale == "none":
            raise ValueError("min=0 needs an autoscaler (autoscale=hpa or autoscale=keda)")
        return self


class Values(Protocol):
    """Where manifests get what a chart keeps open."""

    everything: bool
    """Whether every optional part is made, for the chart to choose from."""

    def text(self, path: str, default: Any) -> Any:
        """A text at `path` of the chart's values."""
        ...

    def number(self, path: str, default: int) -> Any:
        """A number."""
        ...

    def total(self, each: int, replicas: str, count: int, most: int, autoscaled: bool) -> Any:
        """`each` times the replicas that there are at most."""
        ...

    def replicas(self, path: str, count: int, autoscaled: bool) -> dict[str, Any]:
        """The key `replicas`, where nothing else writes it."""
        ...

    def on_demand(self, least: int) -> Any:
        """Whether an autoscaler may take the last replica away."""
        ...

    def annotations(self) -> dict[str, Any]:
        """What makes pods start anew when values change."""
        ...


class FixedValues:
    """Nothing is open."""

    everything = False

    def text(self, path: str, default: Any) -> Any:
        """As rendered."""
        return default

    def number(self, path: str, default: int) -> Any:
        """As rendered."""
        return default

    def total(self, each: int, replicas: str, count: int, most: int, autoscaled: bool) -> Any:
        """As rendered."""
        return each * (most if autoscaled else count)

    def replicas(self, path: str, count: int, autoscaled: bool) -> dict[str, Any]:
        """Left out where an autoscaler writes it."""
        return {} if autoscaled else {"replicas": count}

    def on_demand(self, least: int) -> Any:
        """As rendered."""
        return least == 0

    def annotations(self) -> dict[str, Any]:
        """None: the checksum of the configuration is in the manifest."""
        return {}
