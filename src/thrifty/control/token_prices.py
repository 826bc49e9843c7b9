"""What tokens cost by the catalog `genai-prices`, for models that others serve."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

from thrifty.errors import Problem
from thrifty.spec.load import LoadedSpec
from thrifty.spec.models import PricesSpec

SMALL, LARGE = 1_000, 1_000_000
"""Prompts at which prices are compared: some models cost more beyond a length."""


def find_token_prices(loaded: LoadedSpec) -> PricesSpec:
    """The prices of a spec, those of the catalog looked up. Raises `SpecError`, naming the key."""
    prices = loaded.spec.prices
    if prices.catalog is None:
        return prices
    try:
        catalog = importlib.import_module("genai_prices")
    except ModuleNotFoundError:
        _refuse(loaded, "needs the catalog: pip install 'thrifty[prices]'")
        raise AssertionError("refused") from None
    provider, _, model = prices.catalog.partition("/")
    try:
        found = [
            _ask(catalog, provider, model, **usage)
            for usage in (
                {"input_tokens": SMALL}, {"input_tokens": SMALL, "cache_read_tokens": SMALL},
                {"output_tokens": SMALL}, {"input_tokens": LARGE},
            )
        ]  # fmt: skip
    except LookupError:
        release = version("genai-prices")
        _refuse(
            loaded,
            f"{prices.catalog!r} is not in genai-prices {release}; see "
            "https://pydantic.dev/genai-prices, or write 'input' and 'output'",
        )
        raise AssertionError("refused") from None
    text, cached, answer, long = found
    if abs(long - text) > 1e-9 * text:
        _refuse(
            loaded,
            f"{prices.catalog!r} costs more for long prompts, which one price cannot say; write "
            "'input', 'cached_input' and 'output'",
        )
    return PricesSpec(input=text, cached_input=cached, output=answer)


def _ask(catalog: Any, provider: str, model: str, **tokens: int) -> float:
    """The price of a million tokens of one kind."""
    usage = catalog.Usage(**tokens)
    price = catalog.calc_price(usage, model_ref=model, provider_id=provider).total_price
    count = tokens.get("input_tokens", 0) or tokens["output_tokens"]
    return float(price) * 1e6 / count


def _refuse(loaded: LoadedSpec, message: str) -> None:
    loaded.refuse([Problem("prices.catalog", message)])
