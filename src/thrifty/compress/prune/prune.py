"""Prune a decoder to a share of its parameters: tokens, layers or widths, whichever costs least.

Several ways to reach the size are made and measured on calibration text that none of them was made
from (`search`). The one closest to the full model is written as a plain checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.compress.mix import as_mix, read_mix
from thrifty.compress.prune.report import PruningReport
from thrifty.compress.prune.request import PruningRequest, find_pruned, register
from thrifty.compress.prune.search import PruningSearch, SearchTexts
from thrifty.compress.prune.vocabulary import write_kept
from thrifty.engines.openvino.prepare import prepare_model
from thrifty.errors import CompressionError
from thrifty.evaluate.windows import TokenArray, TokenWindow
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, OnProgress, Progress, ignore_progress

WINDOW = 512
TRIAL_TOKENS = 1024
"""How much text each removal of a layer is tested on."""
SELECTION_TOKENS = 8192
"""How much text candidates are compared on."""
HELD_OUT_TOKENS = 65_536
"""On so much text it is measured how many more tokens it needs with a smaller vocabulary."""
COUNTED_TOKENS = 6_000_000
"""In at most so much text, tokens are counted."""
VERSION = 3
"""Increase it when pruning changes, so that models are pruned again."""


def prune_decoder(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    request: PruningRequest,
    on_progress: OnProgress = ignore_progress,
) -> tuple[NamedVersion, Artifact, PruningReport | None]:
    """Prune a decoder's checkpoint and register the result as `request.out`. Blocks.

    The report is None if the model was already made by the same request. Raises `CompressionError`
    and the store's errors.
    """
    request.check(version, artifact)
    if artifact.description.family is not Family.DECODER:
        raise CompressionError(
            f"{version.label} is {artifact.description.family.with_article}; only decoders are pruned "
            "so, and encoders by prune_encoder"
        )
    recipe = request.recipe(VERSION)
    made = find_pruned(store, artifact, request, recipe)
    if made is not None:
        return *made, None
    source = store.folder_of(artifact.id)
    checkpoint = load_decoder(source)
    base = prepare_model(store, version, artifact, "none", on_progress)
    folder = store.folder_of(base[1].id)
    tokenizer = TextTokenizer.load(folder)
    texts = _read_texts(request, tokenizer, on_progress)
    search = PruningSearch(checkpoint, tokenizer, folder, texts, request, on_progress)
    chosen, cut, report = search.run()

    def write(target: Path) -> None:
        write_decoder(chosen, target)
        write_tokenizer(source, target, artifact)
        if cut is not None:
            write_kept(target, source, cut.kept, cut.tokens_before)

    made = register(
        store, (version, artifact), request.out, recipe, report.to_lineage(), write, on_progress
    )
    return *made, report


def _read_texts(
    request: PruningRequest, tokenizer: TextTokenizer, on_progress: OnProgress
) -> SearchTexts:
    mix = as_mix(request.calibration)
    wanted = request.tokens + TRIAL_TOKENS + SELECTION_TOKENS
    counted = HELD_OUT_TOKENS + COUNTED_TOKENS if request.may_cut_vocabulary else 0
    stream = read_mix(mix, tokenizer, WINDOW, wanted + counted)
    selection = _take(stream, SELECTION_TOKENS)
    trials = _take(stream, TRIAL_TOKENS)
    calibration = _take(stream, request.tokens, least=0)
    held_out = _take(stream, HELD_OUT_TOKENS if counted else 0)
    if not calibration:
        raise CompressionError(
            f"{mix.name} has too little text: pruning needs more than "
            f"{TRIAL_TOKENS + SELECTION_TOKENS} tokens for calibration and selection"
        )
    shares = {one.name: mix.share(one) for one in mix.sources}
    by_source: dict[str, tuple[float, list[TokenArray]]] = {}
    read = 0
    for name, tokens in (*calibration, *(_tokens_of(stream) if counted else ())):
        by_source.setdefault(name, (shares[name], []))[1].append(tokens)
        read += len(tokens)
        on_progress(Progress("count", read, max(read, request.tokens + counted), "tokens"))
    return SearchTexts(
        [tokens for _, tokens in selection], [tokens for _, tokens in trials],
        [tokens for _, tokens in calibration], held_out or selection, by_source,
    )  # fmt: skip


def _tokens_of(stream: Iterator[tuple[str, TokenWindow]]) -> Iterator[tuple[str, TokenArray]]:
    return ((name, window.tokens) for name, window in stream)


def _take(
    stream: Iterator[tuple[str, TokenWindow]], tokens: int, least: int = WINDOW
) -> list[tuple[str, TokenArray]]:
    """The next windows, until they have so many tokens, or less than `least` are missing."""
    taken: list[tuple[str, TokenArray]] = []
    count = 0
    while count + least <= tokens and count < tokens:
        if (window := next(stream, None)) is None:
            break
        taken.append((window[0], window[1].tokens))
        count += len(window[1].tokens)
    return taken
