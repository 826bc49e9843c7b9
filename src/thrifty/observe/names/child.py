"""The process that finds names and addresses: presidio with a model of spaCy.

    python -m thrifty.observe.names.child SOCKET-FD MODEL

It sends `{"ready": true}`, or `{"error": TEXT}` as its last message. Then it answers each list of
texts with `{"names": [...], "addresses": [...]}`, passages as they stand in the texts. It ends
when the other side of the socket does. Messages are JSON behind their length in four bytes.

Of a pipeline only what finds names runs: the rest (lemmas, syntax) takes most of the time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from thrifty.observe.names.addresses import Span, find_addresses
from thrifty.observe.names.frames import read_frame, write_frame
from thrifty.observe.names.people import (
    clean_name,
    find_introduced,
    find_recipients,
    find_siblings,
    list_forms,
)

PIECE_CHARS = 10_000
"""Longer texts are cut between words: the memory that a model takes grows with the text."""
_NICE = 10
"""Serving comes first."""
_PERSON, _PLACE = "PERSON", "LOCATION"
_BREAK = re.compile(r"\s")

Finder = Callable[[Sequence[str]], dict[str, list[str]]]


def main(arguments: Sequence[str]) -> None:
    """Answer until the other side ends."""
    channel = socket.socket(fileno=int(arguments[0]))
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    try:
        find = load_finder(arguments[1])
    except Exception as error:
        write_frame(channel, {"error": f"{type(error).__name__}: {error}"})
        return
    write_frame(channel, {"ready": True})
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            write_frame(channel, find(read_frame(channel)))


def load_finder(model: str) -> Finder:
    """A function that finds what is in texts, by an installed pipeline of spaCy. Raises
    `ImportError` or `ValueError` where it cannot be had.
    """
    import spacy
    from presidio_analyzer import AnalyzerEngine, BatchAnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    if not spacy.util.is_package(model):  # presidio would download it
        raise ImportError(f"there is no package {model}")
    language = model.partition("_")[0]
    labels = {"PERSON": _PERSON, "PER": _PERSON, "GPE": _PLACE, "LOC": _PLACE, "LOCATION": _PLACE}
    labels |= {"persName": _PERSON, "placeName": _PLACE, "geogName": _PLACE}
    engine = SpacyNlpEngine(
        [{"lang_code": language, "model_name": model}],
        NerModelConfiguration(
            model_to_presidio_entity_mapping=labels,
            low_score_entity_names=[],
            labels_to_ignore=["O"],
        ),
    )
    engine.load()
    pipeline = engine.nlp[language]
    if "ner" not in pipeline.pipe_names:
        raise ValueError(f"the pipeline {model} finds no names; it has {pipeline.pipe_names}")
    keep = {"ner"}
    for name, part in pipeline.pipeline:
        if "ner" in getattr(part, "listening_components", ()):
            keep.add(name)
    pipeline.select_pipes(enable=sorted(keep))
    found = set(pipeline.get_pipe("ner").labels)
    if not any(labels.get(label) == _PERSON for label in found):
        raise ValueError(f"the pipeline {model} finds no people; its labels are {sorted(found)}")
    registry = RecognizerRegistry(
        recognizers=[
            SpacyRecognizer(supported_language=language, supported_entities=[_PERSON, _PLACE])
        ],
        supported_languages=[language],
    )
    analyzer = BatchAnalyzerEngine(
        AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])
    )

    def is_common(word: str) -> bool:
        return bool(pipeline.vocab[word].is_stop)

    def find(texts: Sequence[str]) -> dict[str, list[str]]:
        pieces = [piece for text in texts for piece in cut(text)]
        results = analyzer.analyze_iterator(pieces, language=language, entities=[_PERSON, _PLACE])
        names: set[str] = set()
        addresses: set[str] = set()
        for piece, found in zip(pieces, results, strict=True):
            spans = _sort(found)
            places = [span for kind, span in spans if kind == _PLACE]
            own = find_addresses(piece, places)
            addresses |= {piece[begin:end] for begin, end in own}
            people = [
                (begin, end)
                for kind, (begin, end) in spans
                # Streets are often named after people.
                if kind == _PERSON and not any(a < end and begin < b for a, b in own)
            ]
            passages = [piece[begin:end] for begin, end in people]
            passages += [*find_recipients(piece, own), *find_siblings(piece, people)]
            cleaned = (clean_name(passage, is_common) for passage in passages)
            names |= {name for name in cleaned if name is not None}
            names |= set(find_introduced(piece, is_common))
        forms = list_forms(names, is_common)
        return {"names": forms, "addresses": sorted(addresses, key=len, reverse=True)}

    return find


def cut(text: str) -> Iterator[str]:
    """Pieces of at most `PIECE_CHARS`, cut at white space where there is some."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = start + PIECE_CHARS
        breaks = [match.start() for match in _BREAK.finditer(text, end - PIECE_CHARS // 4, end)]
        end = breaks[-1] if breaks else end
        yield text[start:end]
        start = end
    yield text[start:]


def _sort(results: Any) -> list[tuple[str, Span]]:
    found = [(one.entity_type, (one.start, one.end)) for one in results]
    return sorted(found, key=lambda one: one[1])


if __name__ == "__main__":
    main(sys.argv[1:])
