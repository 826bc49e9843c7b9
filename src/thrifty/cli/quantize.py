"""`thrifty quantize`: a model in fewer bits, by measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.cli.show import err, print_json, print_line, print_table, show_progress, tell
from thrifty.cli.texts import NONE, find_named
from thrifty.compress.divergence_evaluator import RecipeResult
from thrifty.compress.mix import choose_text, find_mix
from thrifty.compress.overlap import check_apart
from thrifty.compress.quantize.compressed_tensors import SCHEMES as VLLM_SCHEMES
from thrifty.compress.quantize.compressed_tensors import quantize_compressed_tensors
from thrifty.compress.quantize.gguf import quantize_gguf
from thrifty.compress.quantize.gguf_types import PLAIN
from thrifty.compress.quantize.gguf_types import SCHEMES as GGUF_SCHEMES
from thrifty.compress.quantize.openvino import BITS, quantize_openvino
from thrifty.errors import CompressionError
from thrifty.home import find_home
from thrifty.types import Family
from thrifty.units import format_bytes

SCHEMES = ("int8", "w8a8", "w7a8", "int4", *GGUF_SCHEMES, *VLLM_SCHEMES)


def run_quantize(
    model: str,
    *,
    scheme: str,
    out: str,
    text: Sequence[str],
    held_out: str | None,
    bits: float,
    tokens: int | None,
    as_json: bool,
) -> None:
    """Quantize a model."""
    if scheme not in SCHEMES:
        raise CompressionError(f"there is no scheme {scheme!r}; there are {', '.join(SCHEMES)}")
    if scheme != "int4" and bits != BITS:
        raise CompressionError(f"--bits is for int4; {scheme} has the bits it has")
    home = find_home()
    store = Store(home.models)
    with show_progress() as on_progress:
        version, artifact = fetch_model(store, model, on_progress=on_progress)
        learns = _learns(scheme)
        if not text and learns and artifact.description.family is Family.DECODER:
            text = choose_text(store, artifact)
        learned = None
        if text and list(text) != [NONE]:
            found = find_mix(text, home.data, store, on_progress)
            learned = check_apart(found, (), home, store, tell, on_progress)
        judged = find_named(held_out, home, store, on_progress)
        measured: list[RecipeResult] = []
        if scheme in GGUF_SCHEMES:
            new_version, new_artifact = quantize_gguf(
                store, version, artifact, scheme, out=out, calibration=learned, held_out=judged,
                tokens=tokens, on_progress=on_progress,
            )  # fmt: skip
        elif scheme in VLLM_SCHEMES:
            new_version, new_artifact = quantize_compressed_tensors(
                store, home, version, artifact, scheme, out=out, calibration=learned,
                held_out=judged, tokens=tokens, on_progress=on_progress,
            )  # fmt: skip
        else:
            new_version, new_artifact, measured = quantize_openvino(
                store, version, artifact, scheme, out=out, calibration=learned, held_out=judged,
                bits=bits, tokens=tokens, on_progress=on_progress,
            )  # fmt: skip
    if as_json:
        print_json(
            {
                "name": new_version.label,
                "bytes": new_artifact.size_bytes,
                "figures": new_version.lineage.figures,
                "recipes": [asdict(one) for one in measured],
            }
        )
        return
    if measured:
        rows = [
            (one.recipe, f"{one.bits_per_weight:.2f}", f"{one.kl_divergence:.4f}")
            for one in measured
        ]
        print_table(("recipe", "bits a weight", "KL divergence, calibration text"), rows)
        err.print(f"taken: {new_version.lineage.figures['recipe']}")
        for form, count in new_version.lineage.figures.get("forms", {}).items():
            err.print(f"  {count} matrices: {form}")
    if scheme in GGUF_SCHEMES:
        figures = new_version.lineage.figures
        types = ", ".join(f"{count} {name}" for name, count in figures["types"].items())
        err.print(
            f"{figures['bits_per_weight']:.2f} bits a weight of the layers' matrices; {types}"
        )
    made = new_artifact.description.weights
    if scheme not in GGUF_SCHEMES and scheme not in VLLM_SCHEMES and made != scheme:
        err.print(f"made as {made}: this processor would compute {scheme} wrongly")
    err.print(f"{new_version.label}: {format_bytes(new_artifact.size_bytes)}")
    print_line(new_version.label)


def _learns(scheme: str) -> bool:
    """Whether a scheme learns from text."""
    if scheme in VLLM_SCHEMES:
        return VLLM_SCHEMES[scheme].learns
    return scheme not in GGUF_SCHEMES or GGUF_SCHEMES[scheme].usual not in PLAIN
