"""Parts the reasoning of models that think from their answers.

Such models write their reasoning between two tags at the beginning of an answer. Some templates
write the first tag into the prompt.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple


class Tags(NamedTuple):
    """What encloses a model's reasoning."""

    begin: str
    end: str


KNOWN_TAGS = (
    Tags("<think>", "</think>"),
    Tags("<thinking>", "</thinking>"),
    Tags("<thought>", "</thought>"),
    Tags("<reasoning>", "</reasoning>"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|begin_of_thought|>", "<|end_of_thought|>"),
    Tags("◁think▷", "◁/think▷"),
)


def find_tags(template: str, added_tokens: Container[str]) -> Tags | None:
    """The tags of a model, by its tokens and its chat template; None if it does not think."""
    for tags in KNOWN_TAGS:
        if all(tag in added_tokens for tag in tags) or all(tag in template for tag in tags):
            return tags
    return None


class ReasoningSplitter:
    """Parts text that grows. Each piece goes out as soon as it is certain where it belongs."""

    __slots__ = ("_blank", "_held", "_state", "_tags")

    def __init__(self, tags: Tags, *, begun: bool) -> None:
        """`begun`: the prompt ends within the reasoning."""
        self._tags = tags
        self._state = "reasoning" if begun else "before"
        self._held = ""
        self._blank = True
        """Whether nothing but space has come in this part; it is left out."""

    def feed(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """The reasoning and the text that are now certain."""
        self._held += text
        if self._state == "before":
            self._begin(last)
        reasoning = self._take_reasoning(last) if self._state == "reasoning" else ""
        content = ""
        if self._state == "text" and self._held:
            content = self._trim(self._held)
            self._held = ""
        return reasoning, content

    def _begin(self, last: bool) -> None:
        """Find out whether the answer begins with the first tag."""
        shown = self._held.lstrip()
        if shown.startswith(self._tags.begin):
            self._held = shown[len(self._tags.begin) :]
            self._state = "reasoning"
        elif last or (shown and not self._tags.begin.startswith(shown)):
            self._state, self._blank = "text", False

    def _take_reasoning(self, last: bool) -> str:
        found, mark, rest = self._held.partition(self._tags.end)
        if mark:
            self._state, self._held = "text", rest
            reasoning = self._trim(found.rstrip())
            self._blank = True
            return reasoning
        if last:
            self._held = ""
            return self._trim(found.rstrip())
        certain = found[: len(found) - _count_begun(found, self._tags.end)].rstrip()
        self._held = found[len(certain) :]
        return self._trim(certain)

    def _trim(self, text: str) -> str:
        """`text` without space at the beginning of its part."""
        if self._blank:
            text = text.lstrip()
            self._blank = not text
        return text


def _count_begun(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0
