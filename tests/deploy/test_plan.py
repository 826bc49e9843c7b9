"""Plans: what a hand calculation from the same tables gives, and how near the model is to what was
measured.
"""

from __future__ import annotations

import json
import math
from datetime import date, timedelta
from pathlib import Path
from statistics import median

import pytest

from tests.deploy.specs import ONE_MODEL, TWO_VERSIONS
from tests.parts import run_thrifty
from thrifty.deploy.machine_model import (
    FITTED_ERROR,
    GB_S_PER_VCPU,
    GFLOPS_PER_VCPU,
    OVERHEAD_PER_LAYER_S,
    SHARE_GB_S_PER_VCPU,
    ModelSize,
    Speed,
    fit_speed,
    predict_step_s,
    split_step_s,
)
from thrifty.deploy.plan import Load, Shape, choose_version, find_shape, make_plan
from thrifty.deploy.service import make_service
from thrifty.errors import SpecError, ThriftyError
from thrifty.prices.table import OLD_AFTER_DAYS, clouds, load_prices
from thrifty.spec.load import parse_spec

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SMOL = Shape(134_515_008, 30, 2 * 30 * 3 * 64)
EIGHT = Shape(8_190_735_360, 36, 73_728)
FORMS = {
    "thrifty 16-bit": ("none", 2.0),
    "thrifty int8": ("int8", 1.06),
    "thrifty int4": ("int4", 0.56),
}


def make(cloud: str, shape: Shape = SMOL, **load: float):
    version = choose_version(make_service(parse_spec(ONE_MODEL)), None)
    wanted = Load(**{"tokens_per_s": 500, "tpot_s": 0.1, "context": 1024, **load})
    table = load_prices()
    return make_plan(version, shape, wanted, table.of_cloud(cloud), table), wanted


def test_the_model_reproduces_what_it_was_fitted_to() -> None:
    record = json.loads((RESULTS / "engines.json").read_text())
    checked = 0
    for served, (scheme, per_weight) in FORMS.items():
        size = ModelSize(
            SMOL.parameters, SMOL.layers, round(SMOL.parameters * per_weight),
            SMOL.kv_values_per_token, scheme,
        )  # fmt: skip
        for streams in (1, 8, 32):
            measured_s = median(
                one[str(streams)]["tpot_p50_ms"] / 1000 for one in record["results"][served]
            )
            predicted_s = predict_step_s(size, streams, 200, 2)
            assert abs(predicted_s / measured_s - 1) <= FITTED_ERROR, (served, streams)
            checked += 1
    assert checked == 9


def test_the_speed_of_a_processor_is_found_from_two_steps() -> None:
    size = ModelSize(SMOL.parameters, 30, 140_000_000, SMOL.kv_values_per_token, "int8")
    real = Speed(memory=1.4, compute=2.5)
    measured = [predict_step_s(size, streams, 200, 2, speed=real) for streams in (1, 32)]
    found = fit_speed([split_step_s(size, streams, 200, 2) for streams in (1, 32)], measured)
    assert found.memory == pytest.approx(1.4)
    assert found.compute == pytest.approx(2.5)


def test_a_hand_calculation_agrees_on_a_processor() -> None:
    choices, load = make("gcp")
    one = next(one for one in choices if one.instance == "c4-highcpu-16")
    # By hand: 16 vCPUs, 32 GiB, $0.68042.
    weights = round(SMOL.parameters * _per_weight("int8"))
    bandwidth = min(GB_S_PER_VCPU * 16, SHARE_GB_S_PER_VCPU * 16) * 1e9
    rate = GFLOPS_PER_VCPU["int8"] * 1e9 * 16
    steps = {}
    for streams in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        read = weights + streams * 1024 * SMOL.kv_values_per_token
        steps[streams] = (
            OVERHEAD_PER_LAYER_S * 30 + read / bandwidth + streams * 2 * SMOL.parameters / rate
        )
    most = max(streams for streams, step_s in steps.items() if step_s <= load.tpot_s)
    speed = most / steps[most]
    count = math.ceil(500 / (0.8 * speed))
    assert one.streams == most
    assert one.tokens_per_s == pytest.approx(speed)
    assert one.count == count
    assert one.per_hour == pytest.approx(count * 0.68042)
    assert one.per_million_tokens == pytest.approx(count * 0.68042 / (500 * 3600) * 1e6)
    assert one.meets_slo


def _per_weight(scheme: str) -> float:
    from thrifty.engines.registry import find_engine

    return find_engine("openvino").traits.schemes[scheme].bytes_per_weight


def test_a_hand_calculation_agrees_on_accelerators() -> None:
    choices, load = make("azure", EIGHT, tpot_s=0.05, tokens_per_s=3000)
    one = next(one for one in choices if one.instance == "Standard_NC24ads_A100_v4")
    # By hand: 16.4 GB of weights over 1.9 TB/s, and 64 streams of 1,024 tokens.
    steps = {}
    for streams in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        read = 2 * EIGHT.parameters + streams * 1024 * 2 * EIGHT.kv_values_per_token
        steps[streams] = max(read / 1.9e12, streams * 2 * EIGHT.parameters / 312e12)
    room = (80e9 / 1.25 - 2 * EIGHT.parameters) / (1024 * 2 * EIGHT.kv_values_per_token)
    most = max(n for n, step_s in steps.items() if step_s <= load.tpot_s and n <= room)
    assert one.streams == most
    assert one.tokens_per_s == pytest.approx(most / steps[most])
    assert one.count == math.ceil(3000 / (0.8 * most / steps[most]))
    assert "upper bound" in one.source
    assert "remote" in one.source


def test_what_does_not_fit_or_is_too_slow_is_ruled_out_with_numbers() -> None:
    choices, _ = make("azure", EIGHT, tpot_s=0.02)
    by_name = {one.instance: one for one in choices}
    t4 = by_name["Standard_NC4as_T4_v3"]
    assert not t4.meets_slo
    assert t4.why_not == ("16.4 GB of 16-bit weights and keys and values do not fit 1 x 16 GB")
    slow = by_name["Standard_M32ts"]
    assert "one stream alone takes" in (slow.why_not or "")
    assert [one.meets_slo for one in choices] == sorted(
        (one.meets_slo for one in choices), reverse=True
    )


def test_the_cheapest_that_meets_the_objective_comes_first() -> None:
    for cloud in clouds():
        choices, _ = make(cloud)
        meeting = [one.per_hour for one in choices if one.meets_slo]
        assert meeting
        assert meeting == sorted(meeting)


def test_the_table_is_typed_dated_and_sourced() -> None:
    table = load_prices()
    assert clouds() == ["aws", "azure", "gcp"]
    assert len({(one.cloud, one.region, one.instance) for one in table.machines}) == len(
        table.machines
    )
    for one in table.machines:
        assert one.cloud in table.sources
        assert one.per_hour > 0
        assert one.spot_per_hour is None or 0 < one.spot_per_hour <= one.per_hour
        assert (one.accelerator is None) == (one.accelerators == 0)
        assert one.accelerator is None or table.accelerators[one.accelerator].source
    late = table.read + timedelta(days=OLD_AFTER_DAYS + 1)
    assert "they are old" in table.describe_age(late)
    assert "they are old" not in table.describe_age(table.read)
    assert table.age_days(table.read) == 0
    assert isinstance(table.read, date)


def test_a_plan_needs_one_version_of_a_known_size() -> None:
    with pytest.raises(
        ThriftyError, match="name one version with --version; the spec has chat/int8"
    ):
        choose_version(make_service(parse_spec(TWO_VERSIONS)), None)
    version = choose_version(make_service(parse_spec(TWO_VERSIONS)), "int4")
    from thrifty.artifacts import Store

    with pytest.raises(SpecError, match="--parameters 8B --layers 36 --kv-values 73728"):
        find_shape(version, Store(Path("/nonexistent")))


def test_the_commands(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text(json.dumps(ONE_MODEL))
    size = ["--parameters", "8.2B", "--layers", "36", "--kv-values", "73728"]
    done = run_thrifty(tmp_path, "deploy", "plan", "azure", str(spec), *size, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["choices"][0]) >= {
        "instance", "accelerator", "count", "tokens_per_s", "per_hour", "per_million_tokens",
        "meets_slo", "why_not", "source",
    }  # fmt: skip
    wrong = run_thrifty(tmp_path, "deploy", "plan", "azur", str(spec), *size)
    assert wrong.returncode == 1
    assert "azure" in wrong.stderr
    half = run_thrifty(tmp_path, "deploy", "plan", "azure", str(spec), "--layers", "3")
    assert "belong together" in half.stderr
    shown = run_thrifty(tmp_path, "prices", "--json")
    assert json.loads(shown.stdout)["machines"]
