"""What platforms allow, in one dated table (`limits.json`), and the smallest size that holds a need."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from thrifty.deploy.sizing import Need
from thrifty.errors import Problem, SpecError

GIB = 1 << 30
_STEP_MIB = 64
"""Of memory, where a platform gives any amount."""


@dataclass(frozen=True)
class Size:
    """One size that a platform offers."""

    cpus: float
    memory_bytes: int
    disk_bytes: int | None = None
    """Where the disk comes with the size."""


@dataclass(frozen=True)
class Platform:
    """The limits of one platform."""

    name: str
    read: str
    """When its source was read."""
    source: str
    sizes: tuple[Size, ...]
    """From the smallest to the largest."""
    timeout_s: int | None
    containers: int | None
    """How many of them one service may have."""
    concurrency: int | None
    disk_counts: bool
    """Whether what is written to the disk takes memory."""
    disk_bytes: int | None
    """Of the container's files, or of its image where that holds the model."""


@functools.cache
def load_platforms() -> dict[str, Platform]:
    """Every platform of the table, by its key."""
    text = files("thrifty.deploy").joinpath("limits.json").read_text(encoding="utf-8")
    data = json.loads(text)
    return {key: _parse(data["read"], row) for key, row in data["platforms"].items()}


def _parse(read: str, row: dict[str, Any]) -> Platform:
    sizes = []
    for cpus, least, most, step in row["cpu_memory_gib"]:
        count = round((most - least) / step)
        disk = next((gib for most, gib in row.get("disk_gib_by_cpu", ()) if cpus <= most), None)
        disk_bytes = None if disk is None else disk * GIB
        sizes += [Size(cpus, round((least + n * step) * GIB), disk_bytes) for n in range(count + 1)]
    if "mib_per_cpu" in row:
        # The processor follows the memory.
        least, most = row["memory_mib"]
        steps = range(least, most + 1, _STEP_MIB)
        sizes += [Size(mib / row["mib_per_cpu"], mib << 20) for mib in steps]
    disk = row.get("disk_gib")
    return Platform(
        name=row["name"],
        read=read,
        source=row["source"],
        sizes=tuple(sorted(sizes, key=lambda size: (size.cpus, size.memory_bytes))),
        timeout_s=row.get("timeout_s"),
        containers=row.get("containers"),
        concurrency=row.get("concurrency"),
        disk_counts=bool(row.get("disk_counts")),
        disk_bytes=round(disk * GIB) if disk else None,
    )


def choose_size(platform: Platform, need: Need) -> Size:
    """The smallest size that holds `need`. Raises `SpecError` with the numbers where none does."""
    memory = need.memory_bytes + (need.disk_bytes if platform.disk_counts else 0)
    for size in platform.sizes:
        has_disk = size.disk_bytes is None or size.disk_bytes >= need.disk_bytes
        if size.cpus >= need.cpus and size.memory_bytes >= memory and has_disk:
            return size
    largest = platform.sizes[-1]
    disk, room = "", ""
    if platform.disk_counts and need.disk_bytes:
        disk = f", of which {need.disk_bytes / GIB:.1f} GiB for the files of models, which take memory there"
    elif largest.disk_bytes is not None:
        disk = f", {need.disk_bytes / GIB:.1f} GiB of disk for the files of models"
        room = f", {largest.disk_bytes / GIB:g} GiB of disk"
    message = (
        f"{platform.name} gives one container at most {largest.memory_bytes / GIB:g} GiB{room} and "
        f"{largest.cpus:g} cores (read {platform.read}, {platform.source}), and this service needs "
        f"{memory / GIB:.1f} GiB{disk} and {need.cpus} cores; use smaller weights (compress: int4), "
        "fewer replicas, or the target kubernetes"
    )
    raise SpecError([Problem("memory", message)], f"the limits of {platform.name}")


def check_bound(platform: Platform, option: str, value: int, bound: int | None, unit: str) -> None:
    """Refuse an option beyond the platform's bound. Raises `SpecError`."""
    if bound is not None and value > bound:
        message = (
            f"{value} {unit} is more than {platform.name} allows, {bound} (read {platform.read}, "
            f"{platform.source})"
        )
        raise SpecError([Problem(option, message)], f"the limits of {platform.name}")
