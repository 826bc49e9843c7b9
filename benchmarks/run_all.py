"""Every measurement, one after the other: `python benchmarks/run_all.py`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

NAMES = (
    "gateway_overhead", "gateway_memory", "gateway_tokens", "routing", "cache", "engines", "fairness",
    "version_shares", "releases", "rollback_latency", "batches", "compression", "compressed_forms", "compression_memory", "served_tokens", "distillation",
    "distillation_choices",
    "gateway_versions", "gateway_commits", "changes_under_load", "schemas", "stalls",
    "zero_to_first_token", "wakes", "lambda_cold_start", "image_start",
    "lm_eval_http", "install_size", "fuzz", "answer_faults", "optimize", "machine_model", "redaction",
    "rollups", "console", "telemetry", "recorded_texts", "answer_checks", "idle_memory", "kubernetes", "ray_fleet", "engine_auto", "speculation", "autoscaler_step",
    "gate_decisions", "quality_detection",
    "curation", "augmentation", "adapters",
    "simulated_routing", "autoscaling", "simulator_against_replicas", "autoscaled_echo",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measure everything.", epilog="Other options go to each measurement."
    )
    _, options = parser.parse_known_args()
    failed = []
    for name in NAMES:
        print(f"\n## {name}\n", flush=True)
        path = Path(__file__).parent / f"{name}.py"
        if subprocess.run([sys.executable, str(path), *options], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
