"""Print what vLLM's own argument parser takes, and which architectures it knows, as JSON.

This runs with the interpreter of vLLM's environment, as a script, and imports nothing of Thrifty.
`make vllm-parser` writes its output to `parser.json`.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def describe() -> dict[str, Any]:
    """The version, the options by flag, and the architectures."""
    import vllm
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.model_executor.models import ModelRegistry
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    options: dict[str, Any] = {}
    for action in make_arg_parser(FlexibleArgumentParser())._actions:
        about: dict[str, Any] = {"values": _count_values(action)}
        if action.choices is not None:
            about["choices"] = [str(choice) for choice in action.choices]
        for flag in action.option_strings:
            options[flag] = about
    return {
        "version": vllm.__version__,
        "options": dict(sorted(options.items())),
        "architectures": sorted(ModelRegistry.get_supported_archs()),
    }


def _count_values(action: Any) -> str:
    """How many values follow a flag: `0`, `1` or `1+`."""
    if action.nargs in ("+", "*"):
        return "1+"
    return "0" if action.nargs == 0 else "1"


if __name__ == "__main__":
    # vLLM writes log lines to stdout.
    out, sys.stdout = sys.stdout, sys.stderr
    text = json.dumps(describe(), indent=1)
    out.write(f"{text}\n")
