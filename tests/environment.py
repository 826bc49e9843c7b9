"""Which environment variables reach the tests: none that change what is tested.

Whoever runs the tests may have settings for the libraries that Thrifty uses, for its clients or for
Thrifty itself. They are removed when pytest starts, before anything reads them. What says how this
machine reaches package indexes (proxies, certificates, pip's settings) stays, because the real
engine tests download their models; proxies are told to leave loopback alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import MutableMapping

KEEP_VARIABLE = "THRIFTY_TEST_KEEP"
"""Names, separated by commas, that stay all the same. For tests that start pytest."""

CLEARED_PREFIXES = (
    "ANTHROPIC_", "DATASETS_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_", "LANGCHAIN_", "LANGSMITH_",
    "LITELLM_", "LLM_", "LM_EVAL_", "MPL", "OPENAI_", "OPENVINO_", "OTEL_", "OV_", "PG",
    "REDIS_", "RICH_", "SQLALCHEMY_", "THRIFTY_", "TOKENIZERS_", "TRANSFORMERS_", "TYPER_",
    "_TYPER_", "XLLAMACPP_",
)  # fmt: skip
CLEARED = frozenset({
    "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "LINES", "NO_COLOR",
    "PY_COLORS", "RANK", "TERMINAL_WIDTH", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "WORLD_SIZE",
})  # fmt: skip
OURS = frozenset({
    "THRIFTY_TEST_HOME", "THRIFTY_TEST_ENVIRONMENTS", "THRIFTY_TEST_CRDS", "THRIFTY_TEST_CHROMIUM",
    "THRIFTY_TEST_KUBERNETES", KEEP_VARIABLE,
})  # fmt: skip
"""What the tests read themselves."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def clear_environment(environment: MutableMapping[str, str]) -> None:
    """Remove what would change results, and keep loopback from any proxy."""
    kept = OURS | set(environment.get(KEEP_VARIABLE, "").split(","))
    for name in list(environment):
        if (name.startswith(CLEARED_PREFIXES) or name in CLEARED) and name not in kept:
            del environment[name]
    for name in ("no_proxy", "NO_PROXY"):
        named = [host.strip() for host in environment.get(name, "").split(",") if host.strip()]
        environment[name] = ",".join([*named, *(host for host in LOOPBACK if host not in named)])


class TemporaryHome:
    """A `THRIFTY_HOME` for a whole run, so that no test touches that of whoever runs it."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._folder = tempfile.mkdtemp(prefix="thrifty-tests-")
        environment["THRIFTY_HOME"] = self._folder

    def remove(self) -> None:
        """Remove what tests left in it."""
        shutil.rmtree(self._folder, ignore_errors=True)
