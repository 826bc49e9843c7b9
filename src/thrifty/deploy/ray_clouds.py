"""A cluster file for `ray up` on AWS, Azure or Google Cloud, with the spec that its head serves.

Machines install one package with pip; the head runs the gateway with its controller beside Ray. Keys
come from a file `keys.env` that the user puts beside the rendered ones, and that `ray up` copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from thrifty.deploy.base import ADMIN_VARIABLE, VIEWER_VARIABLE, Files, Request, make_header
from thrifty.deploy.ray_service import (
    HEAD_PORT,
    HEALTH_ENVIRONMENT,
    RAY_ENVIRONMENT,
    STORE_BYTES,
    RayNodes,
    find_nodes,
    make_spec_text,
    require_models,
)
from thrifty.deploy.yaml_text import dump_yaml
from thrifty.kubernetes.pods import CHECKSUM

_VENV = "~/thrifty/venv"
_USERS = {"aws": "ubuntu", "azure": "ubuntu", "gcp": "ubuntu"}
_MACHINES = {"aws": "m7i.xlarge", "azure": "Standard_D4s_v5", "gcp": "n2-standard-4"}
_DISK_GB = 100


def render_cloud(request: Request) -> Files:
    """`cluster.yaml` for `ray up`, and `thrifty.yaml` for the controller. Raises `SpecError`."""
    require_models(request)
    nodes = find_nodes(request)
    header = make_header(request, "ray")
    address = f"127.0.0.1:{HEAD_PORT}"
    return {
        "cluster.yaml": header + dump_yaml(_make_cluster(request, nodes)),
        "thrifty.yaml": header + make_spec_text(request, nodes, address),
    }


def _make_cluster(request: Request, nodes: RayNodes) -> dict[str, Any]:
    options = request.options
    provider = options.provider
    make_node = _NODES[provider]
    user = _USERS[provider]
    resources: dict[str, Any] = {"CPU": nodes.cpus, "memory": nodes.memory_bytes}
    if nodes.gpus:
        resources["GPU"] = nodes.gpus
    return {
        "cluster_name": "thrifty",
        "max_workers": nodes.most,
        "idle_timeout_minutes": 2,
        "provider": _make_provider(options),
        "auth": {"ssh_user": user},
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": make_node(options, False)},
            "replicas": {
                "resources": resources,
                "min_workers": nodes.fewest,
                "max_workers": nodes.most,
                "node_config": make_node(options, options.spot),
            },
        },
        "head_node_type": "head",
        "file_mounts": {
            f"/home/{user}/thrifty/thrifty.yaml": "./thrifty.yaml",
            f"/home/{user}/thrifty/keys.env": "./keys.env",
        },
        "setup_commands": [
            "sudo apt-get update -q && sudo apt-get install -qy python3-venv",
            f"python3 -m venv {_VENV}",
            f"{_VENV}/bin/python -m pip install --quiet '{options.package}'",
        ],
        "head_start_ray_commands": [
            f"{_VENV}/bin/ray stop",
            _with_keys(
                f"{_VENV}/bin/ray start --head --port={HEAD_PORT} --num-cpus=0 "
                f"--object-store-memory={STORE_BYTES} --include-dashboard=false "
                "--autoscaling-config=~/ray_bootstrap_config.yaml",
                HEALTH_ENVIRONMENT,
            ),
            _with_keys(
                f"nohup {_VENV}/bin/thrifty up ~/thrifty/thrifty.yaml --no-measure "
                f"--key admin={ADMIN_VARIABLE} --key viewer={VIEWER_VARIABLE} "
                "> ~/thrifty/thrifty.log 2>&1 < /dev/null &"
            ),
        ],
        "worker_start_ray_commands": [
            f"{_VENV}/bin/ray stop",
            _with_keys(
                f"{_VENV}/bin/ray start --address=$RAY_HEAD_IP:{HEAD_PORT} "
                f"--num-cpus={nodes.cpus} --memory={nodes.memory_bytes} "
                f"--object-store-memory={STORE_BYTES}"
            ),
        ],
        "metadata": {CHECKSUM: request.checksum},
    }


def _with_keys(command: str, more: Mapping[str, str] | None = None) -> str:
    """`command` with the keys in its environment, and what Ray goes by."""
    values = " ".join(
        f"{key}={value}" for key, value in {**RAY_ENVIRONMENT, **(more or {})}.items()
    )
    return f"set -a; . ~/thrifty/keys.env; set +a; ulimit -n 65536; env {values} {command}"


def _make_provider(options: Any) -> dict[str, Any]:
    if options.provider == "aws":
        made: dict[str, Any] = {"type": "aws", "region": options.region}
        if options.zone:
            made["availability_zone"] = options.zone
        return made
    if options.provider == "gcp":
        return {
            "type": "gcp", "region": options.region, "availability_zone": options.zone,
            "project_id": options.project,
        }  # fmt: skip
    return {"type": "azure", "location": options.region, "resource_group": options.resource_group}


def _make_aws_node(options: Any, spot: bool) -> dict[str, Any]:
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": _DISK_GB, "VolumeType": "gp3"}}
    node: dict[str, Any] = {
        "InstanceType": options.machine or _MACHINES["aws"],
        "BlockDeviceMappings": [disk],
        # Programs on the machine cannot take its identity through one hop more.
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
    }
    if spot:
        node["InstanceMarketOptions"] = {"MarketType": "spot"}
    return node


def _make_gcp_node(options: Any, spot: bool) -> dict[str, Any]:
    image = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
    disk = {
        "boot": True, "autoDelete": True, "type": "PERSISTENT",
        "initializeParams": {"diskSizeGb": _DISK_GB, "sourceImage": image},
    }  # fmt: skip
    node: dict[str, Any] = {
        "machineType": options.machine or _MACHINES["gcp"],
        "disks": [disk],
    }
    if spot:
        node["scheduling"] = [{"preemptible": True}]
    return node


def _make_azure_node(options: Any, spot: bool) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "vmSize": options.machine or _MACHINES["azure"],
        "imagePublisher": "canonical",
        "imageOffer": "ubuntu-24_04-lts",
        "imageSku": "server",
        "imageVersion": "latest",
    }
    if spot:
        parameters |= {"priority": "Spot", "billingProfile": {"maxPrice": -1}}
    return {"azure_arm_parameters": parameters}


_NODES: Mapping[str, Callable[[Any, bool], dict[str, Any]]] = {
    "aws": _make_aws_node,
    "azure": _make_azure_node,
    "gcp": _make_gcp_node,
}
