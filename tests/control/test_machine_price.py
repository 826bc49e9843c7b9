"""What a spec says that machines and tokens cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thrifty.control.machine_price import MachinePrice, find_machine_price, find_price_here
from thrifty.control.prepare import make_service
from thrifty.control.token_prices import find_token_prices
from thrifty.db import open_database
from thrifty.db.desired import SERVICE, DesiredChange, read_desired_change, write_desired
from thrifty.errors import SpecError
from thrifty.home import Home
from thrifty.observe.rollups.roll import Keep
from thrifty.prices.table import load_prices
from thrifty.spec import LoadedSpec, load_spec


def load(folder: Path, **keys: Any) -> LoadedSpec:
    path = folder / "thrifty.yaml"
    path.write_text(json.dumps({"engine": "echo", **keys}))
    return load_spec(path, environment={})


def test_nobody_said_a_price(tmp_path: Path) -> None:
    assert find_machine_price(load(tmp_path)) == MachinePrice(None, "")
    service = make_service(load(tmp_path), {}, {})
    assert (service.capacity.price_per_hour, service.capacity.stated_per_hour) == (0.10, None)


def test_a_price_is_stated_read_from_the_table_or_measured(tmp_path: Path) -> None:
    stated = find_machine_price(load(tmp_path, price_per_hour=0.4))
    assert stated == MachinePrice(0.4, "price_per_hour of the spec")
    power = find_machine_price(load(tmp_path, machine={"watts": 65, "per_kwh": 0.3}))
    assert power.per_hour == pytest.approx(0.0195)
    assert "65 W at 0.3 a kWh" in power.basis
    one = next(one for one in load_prices().machines if one.spot_per_hour is not None)
    full = f"{one.cloud}/{one.region}/{one.instance}"
    found = find_machine_price(load(tmp_path, machine={"instance": full}))
    assert found.per_hour == one.per_hour
    assert str(load_prices().read) in found.basis
    spot = find_machine_price(load(tmp_path, machine={"instance": full, "spot": True}))
    assert spot.per_hour == one.spot_per_hour


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"machine": {"instance": "aws/nothing"}}, "'thrifty prices' shows"),
        ({"machine": {"instance": "aws/c7g.larg"}}, "is no machine of the table"),
        ({"machine": {"watts": 65}}, "needs both 'watts' and 'per_kwh'"),
        ({"machine": {"spot": True}}, "'spot' without 'instance'"),
        ({"machine": {"watts": 65, "per_kwh": 0.3}, "price_per_hour": 1}, "write one of them"),
        ({"prices": {"catalog": "openai/gpt-4o", "input": 1}}, "write one of them"),
        ({"prices": {"catalog": "gpt-4o"}}, "catalog"),
        ({"record": {"keep": {"requests": "7d", "texts": "30d"}}}, "texts go with their rows"),
        ({"record": {"keep": {"minutes": "120d"}}}, "longer than 'hours'"),
        ({"record": {"keep": {"minutes": "1h"}}}, "keep"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, keys: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        find_machine_price(load(tmp_path, **keys))


def test_tokens_cost_what_the_catalog_says(tmp_path: Path) -> None:
    pytest.importorskip("genai_prices", reason="needs the extra 'prices'")
    found = find_token_prices(load(tmp_path, prices={"catalog": "openai/gpt-4o"}))
    assert 0 < (found.cached_input or 0) < found.input < found.output
    with pytest.raises(SpecError, match="is not in genai-prices"):
        find_token_prices(load(tmp_path, prices={"catalog": "openai/no-such-model-at-all"}))
    plain = load(tmp_path, prices={"input": 2})
    assert find_token_prices(plain) is plain.spec.prices


def test_what_is_kept_and_budgeted_reaches_the_service(tmp_path: Path) -> None:
    keep = {"requests": "7d", "texts": "1d", "minutes": "1d", "hours": "30d", "days": "365d"}
    loaded = load(
        tmp_path, record={"keep": keep, "tenants": 5}, budget_month=20, budget_all_month=100
    )
    service = make_service(loaded, {"echo": None}, {})  # type: ignore[dict-item]
    assert Keep(**service.records) == Keep(86400.0, 30 * 86400.0, 365 * 86400.0, 5)
    assert service.budgets == {"echo": 20, "": 100}
    assert service.gateway["record_keep_s"] == 7 * 86400.0
    assert service.gateway["record_keep_texts_s"] == 86400.0
    assert service.gateway["record_keep_feedback_s"] is None
    short = load(tmp_path, record={"keep": "3d"})
    assert short.spec.record.keep.requests == 3 * 86400.0


def test_the_price_here_is_that_of_an_option_a_spec_the_environment_or_what_was_applied(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path)
    assert find_price_here(home, environment={}) == MachinePrice(None, "")
    assert not home.database.exists(), "a look makes no database"
    database = open_database(home.database_url, migrate=True)
    for keys in ({}, {"price_per_hour": 0.4}):
        service = make_service(load(tmp_path, **keys), {}, {})
        read = read_desired_change(database)
        write_desired(
            database, [DesiredChange(SERVICE, service)], read_change_id=read, kind="apply", who="t", why="t"
        )  # fmt: skip
        found = find_price_here(home, environment={})
        assert found.per_hour == keys.get("price_per_hour"), "a default is no price"
    assert found.basis == f"price_per_hour of the spec, as applied in {tmp_path}"
    database.close()
    variable = {"THRIFTY_PRICE_PER_HOUR": "0.3"}
    assert find_price_here(home, environment=variable) == MachinePrice(
        0.3, "THRIFTY_PRICE_PER_HOUR"
    )
    load(tmp_path, price_per_hour=0.2)
    spec = tmp_path / "thrifty.yaml"
    assert find_price_here(home, spec=spec, environment={}).per_hour == 0.2
    assert find_price_here(home, stated=0.1, environment=variable).per_hour == 0.1
    load(tmp_path)
    with pytest.raises(SpecError, match=r"price_per_hour.* is not set, and neither is 'machine'"):
        find_price_here(home, spec=spec, environment={})
