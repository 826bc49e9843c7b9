"""Copies that use GPUs are spread over those of the machine. It only claims to have them here."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from thrifty.artifacts import Store
from thrifty.engines import machine
from thrifty.engines.base import Served
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.engines.machine import GPUS_VARIABLE, detect_machine
from thrifty.engines.vllm.adapter import VllmEngine
from thrifty.engines.vllm.options import VllmOptions
from thrifty.fleet.base import ReplicaNames, ReplicaSet
from thrifty.fleet.local import LocalFleet
from thrifty.fleet.process import find_ours, read_environment
from thrifty.home import Home
from thrifty.spec import load_spec
from thrifty.types import ignore_progress


class OnGpus(EchoEngine):
    """The engine `echo`, as if each copy took a GPU."""

    traits = dataclasses.replace(EchoEngine.traits, count_gpus=lambda options: 1)


def make_fleet(tmp_path: Path, gpus: tuple[str, ...]) -> LocalFleet:
    claimed = dataclasses.replace(detect_machine(), gpus=gpus)
    home = Home(tmp_path)
    return LocalFleet(home, Store(home.models), claimed, ReplicaNames(), lambda: None)


def make_set(engine: EchoEngine, count: int, **more: int | float) -> ReplicaSet:
    spec = load_spec(flags={"engine.kind": "echo"}).spec
    served = engine.prepare(spec, None, Store(Path("/none")), detect_machine(), ignore_progress)
    served = dataclasses.replace(served, name="m", version="a")
    return ReplicaSet(served, engine, count, cpus=1, **more)  # type: ignore[arg-type]


async def read_gpus(tmp_path: Path, count: int) -> list[str | None]:
    """What each copy was given, once all have been started."""
    async with asyncio.timeout(60):
        while len(found := find_ours(tmp_path)) < count:
            await asyncio.sleep(0.02)
    return [read_environment(ident).get(GPUS_VARIABLE) for ident, _, _ in found]


async def test_each_copy_gets_the_gpu_that_the_fewest_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(GPUS_VARIABLE, raising=False)
    fleet = make_fleet(tmp_path, ("0", "1"))
    try:
        await fleet.apply([make_set(OnGpus(), 2)])
        assert Counter(await read_gpus(tmp_path, 2)) == {"0": 1, "1": 1}
        await fleet.apply([make_set(OnGpus(), 3, gpus=2)])
        assert Counter(await read_gpus(tmp_path, 3)) == {"0": 1, "1": 1, "0,1": 1}
    finally:
        await fleet.stop(5.0)


async def test_what_uses_no_gpu_is_told_of_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(GPUS_VARIABLE, raising=False)
    fleet = make_fleet(tmp_path, ("0", "1"))
    try:
        await fleet.apply([make_set(EchoEngine(), 1)])
        assert await read_gpus(tmp_path, 1) == [None]
    finally:
        await fleet.stop(5.0)


@pytest.mark.parametrize(
    ("copies", "each", "gpus", "share"),
    [
        (2, 1, 2, 1.0),
        (3, 1, 2, 0.5),
        (2, 2, 2, 0.5),
        (4, 1, 4, 1.0),
        (1, 1, 1, 1.0),
        (5, 1, 2, 1 / 3),
    ],
)
def test_copies_plan_with_the_memory_of_their_own_gpus(
    tmp_path: Path, copies: int, each: int, gpus: int, share: float
) -> None:
    fleet = make_fleet(tmp_path, tuple(map(str, range(gpus))))
    replica_set = make_set(OnGpus(), copies, gpus=each, memory_share=1 / copies)
    assert fleet._share_memory(replica_set) == pytest.approx(share)
    plain = make_set(EchoEngine(), copies, memory_share=1 / copies)
    assert fleet._share_memory(plain) == 1 / copies


def test_gpus_that_the_user_chose_are_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, found in (
        ("2,5", ("2", "5")),
        ("", ()),
        ("-1", ()),
        ("GPU-a, GPU-b", ("GPU-a", "GPU-b")),
    ):
        monkeypatch.setenv(GPUS_VARIABLE, given)
        assert machine._read_gpus() == found


def test_vllm_takes_as_many_as_it_is_spread_over() -> None:
    served = Served(
        "m", "vllm", "a", "r", "decoder", options=VllmOptions(tensor_parallel=2).model_dump()
    )
    count = VllmEngine.traits.count_gpus
    assert count is not None
    assert count(served.options) == 2
