"""What `standby: cached` keeps of a version that is at zero: its model in the page cache.

The page cache forgets what other programs push out, so the controller looks every few seconds and reads
what is missing. It never takes memory from others for that: what does not fit into the memory that is
available stays out, and `thrifty status` shows how much is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from thrifty.db.desired_state import DesiredDeployment, DesiredVersion
from thrifty.engines.machine import available_memory_bytes
from thrifty.page_cache import Cached, bring_into_cache, measure_cached

log = logging.getLogger(__name__)

FindFolder = Callable[[str], Path]
"""The folder of an artifact's files, as `Store.folder_of`."""

LOOK_S = 5.0
"""How often is looked whether all is still there."""
_DRAFT = "draft_model"
"""The option of engines that names the artifact of a second model."""


def find_model_files(version: DesiredVersion, find_folder: FindFolder) -> list[Path]:
    """The files that a copy of the version reads when it starts."""
    named = [version.artifact, version.options.get(_DRAFT)]
    folders = [find_folder(str(one)) for one in named if one]
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def measure_standby(version: DesiredVersion, find_folder: FindFolder) -> Cached | None:
    """How much of a version's model is in the page cache; None where nobody can tell."""
    try:
        return measure_cached(find_model_files(version, find_folder))
    except OSError:
        return None


async def keep_cached(
    find_deployments: Callable[[], Mapping[str, DesiredDeployment]], find_folder: FindFolder
) -> None:
    """Keep the models of versions with `standby: cached` in the page cache while they are at zero,
    until cancelled.
    """
    told: set[str] = set()
    while True:
        for deployment in list(find_deployments().values()):
            for version in deployment.versions:
                if not version.replicas.keeps_files:
                    continue
                name = f"{deployment.name}/{version.label}"
                fault = await asyncio.to_thread(_keep, version, find_folder)
                if fault is not None and name not in told:
                    log.warning("%s: its model is not kept in the page cache: %s", name, fault)
                told = told - {name} if fault is None else told | {name}
        await asyncio.sleep(LOOK_S)


def _keep(version: DesiredVersion, find_folder: FindFolder) -> str | None:
    """Why the files of a version cannot be in the page cache; None once they are."""
    try:
        files = find_model_files(version, find_folder)
        found = measure_cached(files)
        missing = 0 if found is None else found.size_bytes - found.cached_bytes
        if missing > available_memory_bytes():
            return f"{missing:,} bytes are missing, and that much memory is not free"
        bring_into_cache(files)
    except OSError as error:
        return str(error)
    return None
