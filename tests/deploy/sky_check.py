"""Reads a task by SkyPilot's own parser and ranks its machines by SkyPilot's own optimizer, offline.

    python sky_check.py TASK.yaml service|task

Run in the environment that has SkyPilot, with a home of its own. The catalogs are ours: machines and
prices of `prices.json`, whose path is in PRICES. Credentials and quotas are taken as given. Prints the
fault, or what was read and chosen, as JSON.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

HEADER = (
    "InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "GpuInfo", "Price",
    "SpotPrice", "Region", "AvailabilityZone", "Arch",
)  # fmt: skip
GENERAL = (
    ("m6i.xlarge", 4, 16, 0.192),
    ("m6i.2xlarge", 8, 32, 0.384),
    ("m6i.4xlarge", 16, 64, 0.768),
)
"""Machines of the kind that SkyPilot takes where only a size is asked for."""
IMAGES = ("Tag", "Region", "OS", "OSVersion", "ImageId", "CreationDate")


def write_catalogs(root: Path, prices: Path) -> None:
    """The processors' machines of our table, as SkyPilot's catalogs have them."""
    machines = json.loads(prices.read_text(encoding="utf-8"))["machines"]
    for cloud in ("aws", "gcp", "azure"):
        folder = root / cloud
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "vms.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(HEADER)
            for one in machines:
                if one["cloud"] == cloud and not one.get("accelerator"):
                    zone = f"{one['region']}a" if cloud == "aws" else f"{one['region']}-a"
                    rows.writerow(
                        [one["instance"], "", "", one["vcpus"], one["memory_gib"], "", one["per_hour"],
                         one.get("spot_per_hour", ""), one["region"], zone, one["architecture"]]
                    )  # fmt: skip
                if cloud == "aws" and one is machines[0]:
                    rows.writerows(
                        [
                            name,
                            "",
                            "",
                            vcpus,
                            gib,
                            "",
                            price,
                            "",
                            "us-east-1",
                            "us-east-1a",
                            "x86_64",
                        ]
                        for name, vcpus, gib, price in GENERAL
                    )
        with (folder / "images.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(IMAGES)
    (root / "common").mkdir(exist_ok=True)
    (root / "common" / "accelerators.csv").write_text("AcceleratorName,Clouds\n", encoding="utf-8")


def check(path: Path, kind: str) -> dict[str, Any]:
    """What SkyPilot makes of it."""
    import sky
    import sky.check
    from sky import clouds, optimizer
    from sky.serve import serve_utils

    enabled = [clouds.AWS(), clouds.GCP(), clouds.Azure()]
    sky.check.get_cached_enabled_clouds_or_refresh = lambda *_, **__: enabled
    for cloud in (clouds.AWS, clouds.GCP, clouds.Azure):
        cloud.check_quota_available = classmethod(lambda *_, **__: True)
    import yaml

    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    secrets = [(name, "x" * 64) for name in config["secrets"]]
    task = sky.Task.from_yaml_config(config, secrets_overrides=secrets)
    if kind == "service":
        serve_utils.validate_service_task(task, pool=False)
    with sky.Dag() as dag:
        dag.add(task)
    optimizer.Optimizer.optimize(dag, quiet=True)
    best = task.best_resources
    resources = list(task.resources)
    return {
        "machines": [one.instance_type for one in resources],
        "spot": [one.use_spot for one in resources],
        "ports": resources[0].ports,
        "autostop": None if resources[0].autostop_config is None
        else [resources[0].autostop_config.idle_minutes, resources[0].autostop_config.down],
        "best": None if best is None else best.instance_type,
        "per_hour": None if best is None else best.get_cost(3600),
        "policy": None if task.service is None
        else [task.service.min_replicas, task.service.max_replicas,
              task.service.target_qps_per_replica],
    }  # fmt: skip


def main() -> None:
    """Check one file."""
    home = Path(os.environ["HOME"])
    write_catalogs(
        home / ".sky" / "catalogs" / os.environ["CATALOG_VERSION"], Path(os.environ["PRICES"])
    )
    try:
        found = check(Path(sys.argv[1]), sys.argv[2])
    except Exception as error:
        found = {"fault": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
