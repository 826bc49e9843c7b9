"""Ray: a cluster whose nodes run replicas, and the gateway with its controller on one of them.

On Kubernetes a RayCluster of KubeRay; on AWS, Azure and Google Cloud a file for `ray up`. There is no
RayService among them: that runs applications of Ray Serve, and our gateway takes its place.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from thrifty.deploy.base import DNS_LABEL, IMAGE_PATTERN, Files, Request, Target
from thrifty.deploy.commands import Commands, Place, make_kubectl_commands
from thrifty.deploy.ray_clouds import render_cloud
from thrifty.deploy.ray_kubernetes import render_kuberay
from thrifty.errors import Problem, SpecError
from thrifty.spec.section import Bytes, Integer, Section

_KUBERAY = ("image", "namespace", "secret", "pull_secret", "storage_class", "gcs_redis")
_CLOUD = ("package", "machine", "region", "zone", "project", "resource_group", "spot")
_NEEDS = {
    "kuberay": ("image",),
    "aws": ("package", "region"),
    "azure": ("package", "region", "resource_group"),
    "gcp": ("package", "region", "zone", "project"),
}


class RayOptions(Section):
    """Options of Ray."""

    provider: Literal["kuberay", "aws", "azure", "gcp"] = Field(
        "kuberay", description="Who runs the nodes: KubeRay on Kubernetes, or machines of a cloud."
    )
    max: Integer | None = Field(
        None, ge=1, le=1000,
        description="The most nodes with replicas. Default: as many as the spec's replicas at most, "
        "and one more for updates.",
    )  # fmt: skip
    memory: Bytes | None = Field(
        None, ge=256_000_000,
        description="Memory of each replica. Default: from the model's size, which the store must "
        "know (`thrifty pull`).",
    )  # fmt: skip
    image: str | None = Field(
        None, pattern=IMAGE_PATTERN,
        description="kuberay: the image, built from deploy/Containerfile with the extra `ray`.",
    )  # fmt: skip
    namespace: str = Field("thrifty", pattern=DNS_LABEL, description="kuberay: the namespace.")
    secret: str = Field(
        "thrifty", pattern=DNS_LABEL,
        description="kuberay: the Secret with the keys; see docs/deploy/ray.md.",
    )  # fmt: skip
    pull_secret: str | None = Field(
        None, pattern=DNS_LABEL, description="kuberay: the Secret to pull the image with."
    )
    storage_class: str | None = Field(
        None, description="kuberay: the class of the claims for state and shared models."
    )
    gcs_redis: str | None = Field(
        None, pattern=r"^rediss?://[A-Za-z0-9.-]+:[0-9]{1,5}$",
        description="kuberay: a Redis that keeps what the head knows, so that a new head goes on. Its "
        "password is the Secret's key `gcs-redis-password`.",
    )  # fmt: skip
    package: str | None = Field(
        None, pattern=r"^[^\s;&|<>$`'\"\\]{1,300}$",
        description="Clouds: what pip installs on every machine, with its version or as the URL of a "
        "wheel: thrifty[ray,remotes]==0.2.0.",
    )  # fmt: skip
    machine: str | None = Field(
        None, pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Clouds: the type of machines. Default: one with 4 cores and 16 GB.",
    )  # fmt: skip
    region: str | None = Field(None, pattern=r"^[a-z0-9-]{1,40}$", description="Clouds: where.")
    zone: str | None = Field(
        None, pattern=r"^[a-z0-9-]{1,40}$", description="aws, gcp: the zone in the region."
    )
    project: str | None = Field(None, pattern=r"^[a-z0-9-]{1,63}$", description="gcp: the project.")
    resource_group: str | None = Field(
        None, pattern=r"^[A-Za-z0-9._()-]{1,90}$", description="azure: the resource group."
    )
    spot: bool = Field(False, description="Clouds: whether replicas run on spot machines.")

    @model_validator(mode="after")
    def _check_provider(self) -> RayOptions:
        others = _CLOUD if self.provider == "kuberay" else _KUBERAY
        fields = type(self).model_fields
        given = [key for key in others if getattr(self, key) != fields[key].default]
        if given:
            raise ValueError(f"{', '.join(given)} is not for provider={self.provider}")
        missing = [key for key in _NEEDS[self.provider] if getattr(self, key) is None]
        if missing:
            raise ValueError(
                f"provider={self.provider} needs {', '.join(missing)} (--set {missing[0]}=...)"
            )
        return self


def render_ray(request: Request) -> Files:
    """The files of the provider that was chosen."""
    options: RayOptions = request.options
    loaded = request.service.loaded
    if loaded.spec.fleet.tls:
        message = (
            "needs certificates on every node, which what is rendered does not bring there; leave it "
            "out, or start the cluster by other means (docs/certificates.md)"
        )
        loaded.refuse([Problem("fleet.tls", message)])
    return render_kuberay(request) if options.provider == "kuberay" else render_cloud(request)


def make_commands(request: Request, place: Place) -> Commands:
    """By kubectl. Raises `SpecError` for clouds, whose file needs keys beside it."""
    options: RayOptions = request.options
    if options.provider != "kuberay":
        message = (
            f"is {options.provider}, whose machines `ray up` starts with keys that you put beside the "
            "file: render it (thrifty deploy render ray), and follow docs/deploy/ray.md"
        )
        raise SpecError([Problem("provider", message)], "the options of ray")
    return make_kubectl_commands(place, options.namespace, "app.kubernetes.io/name=thrifty")


TARGET = Target(
    name="ray",
    summary="A Ray cluster: KubeRay on Kubernetes, or machines of AWS, Azure or Google Cloud",
    options=RayOptions,
    cannot=(
        "Ray has no accounts: whoever reaches its ports and has its token runs programs on all "
        "nodes. Keep both inside the cluster.",
        "Every node needs one version of Thrifty, Ray and Python; take one image, or one package.",
        "It renders one size of nodes, for the largest replica of the spec.",
        "Without a Redis for the head (gcs_redis), a head that is lost takes its cluster along: "
        "replicas serve on until their nodes end, and start anew on the next head.",
        "Models must come from pypi:, hf: or a remote (s3:, gs:, az:, oci:), because other machines "
        "cannot reach this one's store.",
    ),
    render=render_ray,
    commands=make_commands,
    fleets=frozenset({"ray"}),
    next_steps=(
        "kubectl apply --server-side --field-manager thrifty-render -f DIR, or: cd DIR && ray up "
        "cluster.yaml   (keys first: docs/deploy/ray.md)"
    ),
)
