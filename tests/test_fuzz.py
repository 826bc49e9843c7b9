"""A few hundred requests of `benchmarks/fuzz.py`, always the same ones, against a gateway."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tests.parts import add_key, running_echo, running_gateway
from tests.test_house import ROOT
from thrifty.batches.settings import BatchSettings
from thrifty.http.origin import parse_origin

COUNT = 600


def load_fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_no_request_breaks_the_gateway_or_shows_another_tenants_bytes(
    tmp_path: Path,
) -> None:
    fuzz = load_fuzz()
    async with (
        running_echo() as url,
        running_gateway(tmp_path, [url], batches=BatchSettings(), managed=True) as gateway,
    ):
        tenants = []
        for name in ("ann", "bob"):
            header = await add_key(gateway, name)
            key = header["authorization"].removeprefix("Bearer ")
            tenants.append(fuzz.Tenant(name, key, f"{name}-zq7k3w"))
        origin = parse_origin(gateway.url)
        report = await fuzz.fuzz(
            origin.host, origin.port, tuple(tenants), ["echo"], seed=5, count=COUNT
        )
        assert report.clean, (report.faults, report.hangs, report.leaks)
        assert report.sent == COUNT
        # It reaches the model as well as the refusals.
        assert report.statuses[200] > COUNT // 20
        assert report.statuses[400] > COUNT // 5


def test_a_number_gives_the_same_request_again() -> None:
    fuzz = load_fuzz()
    tenants = (fuzz.Tenant("a", "k1", "m1"), fuzz.Tenant("b", "k2", "m2"))
    one, two = (fuzz.Maker(3, ["echo"], tenants) for _ in range(2))
    made = [one.make(number) for number in range(300)]
    assert made == [two.make(number) for number in range(300)]
    assert len({request.pieces for _, request in made}) > 280
