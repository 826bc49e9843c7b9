"""Decoders in the forms that vLLM loads: compressed-tensors, made by llm-compressor.

llm-compressor needs other versions of PyTorch's companions than Thrifty does, so it has an
environment of its own, which is made on first use. A worker there (`llm_compressor_worker`) gets
JSON and gives JSON; the text to calibrate on is tokenized here, from the same mix as for every other
scheme.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.artifacts.inspect import read_json
from thrifty.artifacts.settings import read_integer
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.compress.mix import Text, as_mix, read_tokens
from thrifty.compress.overlap import check_no_overlap
from thrifty.compress.quantize import llm_compressor_worker
from thrifty.engines.environments import EnginePackages, Environment
from thrifty.engines.plain_checkpoint import make_plain
from thrifty.errors import ArtifactError, CompressionError
from thrifty.home import Home
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, Format, OnProgress, Progress, ignore_progress

VERSION = 2
WINDOW = 512
CALIBRATION_TOKENS = 32_768
KEPT_LINES = 200
_LAYER = re.compile(r"\((\d+)/(\d+)\)")
_FAULT = re.compile(r"^\s*(?:[\w.]*(?:Error|Exception)): (.+)")
_REQUIREMENTS = Path(__file__).with_name("llmcompressor.txt")


@dataclass(frozen=True)
class Form:
    """One form of weights, by the name that llm-compressor and vLLM have for it."""

    name: str
    bytes_per_weight: float
    learns: bool
    """Whether it is calibrated on text."""


SCHEMES = {
    "vllm-w8a8": Form("w8a8", 1.0, learns=True),
    "vllm-w4a16": Form("w4a16", 0.6, learns=True),
    "vllm-fp8": Form("fp8", 1.0, learns=False),
}
"""`vllm-w8a8`: weights and activations in 8 bits. `vllm-w4a16`: weights in 4 bits. `vllm-fp8`: both in
8-bit floats, the activations scaled as they come."""
GROUPS = (128, 64, 32)
"""Columns that share a scale in 4 bits, best known to vLLM's kernels first."""


def find_environment(home: Home) -> Environment:
    """llm-compressor's environment in `home`, whether it is installed or not."""
    packages = EnginePackages(
        name="llmcompressor",
        requirements=_REQUIREMENTS.read_text(encoding="utf-8"),
        imports="llmcompressor",
        download_bytes=350_000_000,
        installed_bytes=1_200_000_000,
        complete=True,
        further_index="https://download.pytorch.org/whl/cpu",
    )
    return Environment(packages, home)


def quantize_compressed_tensors(
    store: Store,
    home: Home,
    version: NamedVersion,
    artifact: Artifact,
    scheme: str,
    *,
    out: str,
    calibration: Text | None = None,
    held_out: Path | None = None,
    tokens: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> tuple[NamedVersion, Artifact]:
    """The model in one of `SCHEMES`, registered as `out`. Installs llm-compressor if it is missing.
    Blocks.

    Args:
        store: Where models are kept.
        home: Where llm-compressor's environment is.
        version: The checkpoint to quantize, safetensors or GGUF.
        artifact: Its files.
        scheme: One of `SCHEMES`.
        out: The new model's name.
        calibration: Text to learn from; `vllm-fp8` learns nothing.
        held_out: Text that the result will be judged by, which the other must not hold.
        tokens: How much of the calibration text is used. Default: `CALIBRATION_TOKENS`.
        on_progress: Told of every step.

    Raises `CompressionError`, `EngineError` where llm-compressor cannot be installed, and what the
    store raises.
    """
    form = SCHEMES[scheme]
    _check_request(version, artifact, form, calibration)
    if calibration is not None and held_out is not None:
        check_no_overlap(calibration, held_out)
    tokens = tokens or CALIBRATION_TOKENS
    recipe: dict[str, Any] = {"step": "llm-compressor", "quantize": form.name, "version": VERSION}
    if calibration is not None:
        recipe |= {"calibration_sha256": as_mix(calibration).sha256, "tokens": tokens}
    made = store.find_made(artifact.id, recipe)
    if made is not None and made[0].name == out:
        return made
    environment = find_environment(home)
    environment.install(on_progress)
    _, plain = make_plain(store, version, artifact, on_progress)
    source = store.folder_of(plain.id)
    group = choose_group(source) if form.name == "w4a16" else 0
    needed = round(plain.description.parameters * form.bytes_per_weight)
    store.require_space(needed + 500_000_000, f"quantizing {version.label}")
    with store.stage(f"llm-compressor {artifact.id} {out}") as folder:
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        windows = []
        if calibration is not None:
            tokenizer = TextTokenizer.load(source)
            found = read_tokens(calibration, tokenizer, WINDOW, tokens)
            windows = [window.tolist() for window in found]
        settings = {
            "model": str(source), "out": str(target), "scheme": form.name, "group": group,
            "windows": windows,
        }  # fmt: skip
        versions = run_worker(environment.python, settings, on_progress)
        try:
            write_tokenizer(source, target, plain)
        except OSError as error:
            raise ArtifactError(f"the model could not be written to {target}: {error}") from None
        figures = {"made_by": versions, "windows": len(windows)}
        if group:
            figures["group"] = group
        parents = (Parent(artifact.id, version.label),)
        lineage = Lineage(parents=parents, recipe=recipe, figures=figures)
        return store.add(target, out, lineage, on_progress=on_progress)


def _check_request(
    version: NamedVersion, artifact: Artifact, form: Form, calibration: Text | None
) -> None:
    description = artifact.description
    if description.family is not Family.DECODER:
        raise CompressionError(f"{version.label} is an encoder; vLLM's forms are for decoders")
    if description.format is Format.OPENVINO:
        raise CompressionError(
            f"{version.label} is prepared for an engine already; take the checkpoint it was made from"
        )
    if form.learns and calibration is None:
        raise CompressionError(f"{form.name} learns from text; give it some (--text)")
    if not form.learns and calibration is not None:
        raise CompressionError(f"{form.name} learns nothing from text; leave --text away")


def choose_group(folder: Path) -> int:
    """How many columns share a scale in 4 bits: the most that divide the inputs of every matrix.
    Raises `CompressionError` where none does.
    """
    path = folder / "config.json"
    config = read_json(path)
    hidden = read_integer(config, "hidden_size", path)
    heads = read_integer(config, "num_attention_heads", path)
    head_dim = read_integer(config, "head_dim", path, default=hidden // heads)
    widths = (hidden, heads * head_dim, read_integer(config, "intermediate_size", path))
    for group in GROUPS:
        if not any(width % group for width in widths):
            return group
    raise CompressionError(
        f"the matrices have {', '.join(map(str, sorted(set(widths))))} columns, which groups of "
        f"{GROUPS[-1]} do not divide; take vllm-w8a8"
    )


def run_worker(python: Path, settings: dict[str, Any], on_progress: OnProgress) -> dict[str, str]:
    """Have the worker make the model; returns the versions that made it. Raises
    `CompressionError`.
    """
    script = llm_compressor_worker.__file__
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    versions: dict[str, str] | None = None
    with subprocess.Popen(
        # -I: neither the script's folder nor the user's packages count.
        [str(python), "-I", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
        env=make_environment(),
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        reader = threading.Thread(
            target=_read_errors, args=(process, lines, on_progress), daemon=True
        )
        reader.start()
        try:
            try:
                # It stays open: the worker ends when it closes.
                process.stdin.write(json.dumps(settings) + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                pass  # it has ended, and says why
            for line in process.stdout:
                said = json.loads(line)
                if "versions" in said:
                    versions = said["versions"]
                else:
                    on_progress(Progress(said["step"], said["done"], said["total"], "layers"))
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # what was not taken is still in its buffer
        except BaseException:
            process.kill()
            raise
        reader.join()
    if process.returncode or versions is None:
        raise CompressionError(f"llm-compressor failed: {find_fault(lines, process.returncode)}")
    return versions


def make_environment() -> dict[str, str]:
    """The variables of the worker: nothing is fetched or told to anybody."""
    return {
        **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def _read_errors(
    process: subprocess.Popen[str], lines: deque[str], on_progress: OnProgress
) -> None:
    """Keep what the worker says, and tell of the layers that it names."""
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line.rstrip())
        if (found := _LAYER.search(line)) is not None and "alibrat" in line:
            on_progress(Progress("calibrate", int(found[1]), int(found[2]), "layers"))


def find_fault(lines: deque[str], status: int) -> str:
    """The last error that the worker told of."""
    for line in reversed(lines):
        if (found := _FAULT.match(line)) is not None:
            return found[1].strip()[:500]
    if status < 0:
        return f"its process was ended by signal {-status}; it may have run out of memory"
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"its process ended with status {status}: {last[:300]}"
