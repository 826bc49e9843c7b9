"""A version that is an adapter beside the same version merged, and their base, on `openvino`.

    python benchmarks/adapters.py
    python benchmarks/adapters.py --rank 64

SmolLM2-135M with random changes of all matrices of its layers: how long each takes to be prepared, what
it adds to the disk, how soon a replica is ready, and tokens/s with 1 and 8 streams (128-word prompts,
64 tokens), in 16 and in 8 bits. The base is prepared already, as it is where it is served. One replica
runs at a time, on all cores; contenders take turns.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from statistics import median
from typing import Any

import numpy as np

from common import WORK, figure, finish, in_turns, parse_arguments, say, show_spread, spread
from engines import SOURCE
from thrifty.artifacts import Lineage, Parent, Store
from thrifty.artifacts.checkpoint import LAYER_MATRICES, load_decoder
from thrifty.artifacts.lora import SCALE, Lora, write_lora
from thrifty.artifacts.sources import fetch_model
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.bench.client import Target
from thrifty.bench.load import LoadPlan, run_load
from thrifty.bench.summary import summarize
from thrifty.bench.workload import Lengths, Workload
from thrifty.engines.machine import detect_machine
from thrifty.engines.plain_checkpoint import make_plain
from thrifty.engines.registry import find_engine
from thrifty.home import Home
from thrifty.http.origin import parse_origin
from thrifty.own_replica import prepare_served, run_replica

SCHEMES = ("none", "int8")
STREAMS = (1, 8)
LEAST_SPEED = 0.8
MOST_DISK = 0.25
ENGINE = find_engine("openvino")


def make_models(store: Store, rank: int) -> dict[str, Any]:
    """The base, an adapter of it, and the same merged."""
    base = fetch_model(store, SOURCE)
    plain = make_plain(store, *base)
    checkpoint, draw = load_decoder(store.folder_of(plain[1].id)), np.random.default_rng(0)
    matrices = {}
    for layer in range(checkpoint.shape.layers):
        for matrix in LAYER_MATRICES:
            name = f"model.layers.{layer}.{matrix}"
            rows, columns = checkpoint.tensors.read_tensor(f"{name}.weight").shape
            down = 0.02 * draw.standard_normal((rank, columns)).astype(np.float32)
            matrices[name] = down, 0.02 * draw.standard_normal((rows, rank)).astype(np.float32)
    parent = Parent(base[1].id, base[0].label)
    with store.stage("adapter") as stage:
        write_lora(stage / "model", Lora(rank, SCALE, matrices), parent, plain[1].description)
        write_tokenizer(store.folder_of(plain[1].id), stage / "model", plain[1])
        adapter = store.add(stage / "model", "tuned", Lineage(parents=(parent,)))
    return {"base": base, "adapter": adapter, "merged": make_plain(store, *adapter)}


def count_bytes(store: Store) -> int:
    return sum(path.stat().st_size for path in (store.root / "blobs").iterdir())


async def measure_replica(home: Home, store: Store, served: Any) -> dict[str, float]:
    async with run_replica(served, ENGINE, home, store, detect_machine()) as replica:
        found = {"ready_s": replica.ready_after_s}
        for streams in STREAMS:
            workload = Workload(Lengths("fixed", 128, 0), Lengths("fixed", 64, 0), seed=1)
            plan = LoadPlan(duration_s=12.0, warm_up_s=3.0, concurrency=streams)
            target = Target(parse_origin(replica.row().url), served.name, None)
            result = summarize(await run_load(target, workload, plan))
            if result.errors:
                raise SystemExit(str(result.error_samples))
            found[f"tokens_per_s {streams}"] = result.output_tokens_per_s.value
    return found


def main() -> None:
    options = parse_arguments(
        __doc__ or "", rounds=5, rank=(int, 16, "The rank of the adapter (default: 16).")
    )
    home = Home(WORK / "homes" / "adapters")
    shutil.rmtree(home.root, ignore_errors=True)
    store = Store(home.models)
    models = make_models(store, options.rank)
    prepared, served = {}, {}
    for scheme in SCHEMES:
        for name, model in models.items():
            began, before = time.monotonic(), count_bytes(store)
            served[f"{name} {scheme}"] = prepare_served(
                ENGINE, scheme, store, *model, detect_machine()
            )
            prepared[f"{name} {scheme}"] = {
                "seconds": time.monotonic() - began, "bytes": count_bytes(store) - before,
            }  # fmt: skip
            say(f"{name} {scheme}: {prepared[f'{name} {scheme}']}")
    own = {name: model[1].size_bytes for name, model in models.items()}

    def turn(name: str) -> Any:
        return lambda: asyncio.run(measure_replica(home, store, served[name]))

    results = in_turns(options.rounds, {name: turn(name) for name in served})
    columns = ["ready_s", *(f"tokens_per_s {streams}" for streams in STREAMS)]
    table: list[tuple[str, ...]] = [
        ("served", "prepared in s", "MB added", "ready in s", *(f"tokens/s, {n}" for n in STREAMS))
    ]
    for name, rounds in results.items():
        one = prepared[name]
        cells = [
            show_spread([found[column] for found in rounds], "{:.1f}" if i == 0 else "{:.0f}")
            for i, column in enumerate(columns)
        ]
        table.append((name, f"{one['seconds']:.1f}", f"{one['bytes'] / 1e6:.0f}", *cells))
    figures, ratios = [], {}
    for scheme in SCHEMES:
        for streams in STREAMS:
            column = f"tokens_per_s {streams}"
            pairs = zip(results[f"adapter {scheme}"], results[f"merged {scheme}"], strict=True)
            found = [ours[column] / theirs[column] for ours, theirs in pairs]
            label = f"tokens/s of an adapter over merged, {scheme}, {streams} streams"
            ratios[label] = spread(found)
            figures.append(
                figure(label, found, f">= {LEAST_SPEED} x", median(found) >= LEAST_SPEED)
            )
    disk = [
        (own["adapter"] + prepared[f"adapter {scheme}"]["bytes"])
        / (own["merged"] + prepared[f"merged {scheme}"]["bytes"])
        for scheme in SCHEMES
    ]
    label = "disk that a version takes, an adapter over merged, files and prepared files"
    figures.append(figure(label, disk, f"<= {MOST_DISK} x", max(disk) <= MOST_DISK))
    record = {
        "rounds": options.rounds, "rank": options.rank, "prepared": prepared, "own_bytes": own,
        "results": results, "ratios": ratios,
    }  # fmt: skip
    finish("adapters", record, table, figures, save=not options.no_save)


if __name__ == "__main__":
    main()
