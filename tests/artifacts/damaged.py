"""Read all parts of a possibly damaged model: this must work or be refused, never crash."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.artifacts.inspect import inspect_model
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.errors import ThriftyError

MUCH_BYTES = 64_000_000


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail if the block allocates an absurd amount of memory."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MUCH_BYTES, f"{peak} bytes were allocated"


def read_gguf(path: Path) -> ThriftyError | None:
    """Read everything that is ever read of a GGUF; returns the refusal, or None if all is readable.

    Any other exception is a bug, and so is a partial read that hides damage.
    """
    try:
        inspect_model(path.parent)
        file = GgufFile(path)
        for name in file.tensors:
            file.read_tensor(name)
        checkpoint = load_decoder(path.parent)
        for layer in range(min(checkpoint.shape.layers, 4)):
            for name in ("q_proj", "k_proj", "o_proj"):
                checkpoint.tensors.read_tensor(f"model.layers.{layer}.self_attn.{name}.weight")
        build_tokenizer(file)
    except ThriftyError as error:
        return _readable(error)
    return None


def read_safetensors(path: Path) -> ThriftyError | None:
    """Read everything of a safetensors file, as `read_gguf` does."""
    try:
        files = SafetensorsFiles([path])
        files.parameters()
        for name in files.names:
            files.read_tensor(name)
    except ThriftyError as error:
        return _readable(error)
    return None


def _readable(error: ThriftyError) -> ThriftyError:
    assert 20 < len(str(error)) < 1000, "the message must be readable"
    return error
