"""Reading all there is of a model's files, which must work or be refused, whatever was done to them."""

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
    """Fail where the block allocates absurdly much."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MUCH_BYTES, f"{peak} bytes were allocated"


def read_gguf(path: Path) -> ThriftyError | None:
    """Everything that is ever read of a GGUF; the refusal, or None where all of it could be read.

    Any other exception is a fault of ours, and so is a half-right one that hides damage.
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
    """The same for safetensors."""
    try:
        files = SafetensorsFiles([path])
        files.parameters()
        for name in files.names:
            files.read_tensor(name)
    except ThriftyError as error:
        return _readable(error)
    return None


def _readable(error: ThriftyError) -> ThriftyError:
    assert 20 < len(str(error)) < 1000, "a message that nobody can read"
    return error
