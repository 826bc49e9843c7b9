"""The text between a prompt and a suffix, for models that were trained to fill in the middle.

Such models have tokens of their own that say which part is which. Their names differ from family to
family; a model whose vocabulary has none of them cannot do this.
"""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.openai.errors import bad_request
from thrifty.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Markers:
    """One family's tokens, by their names in its vocabulary."""

    prefix: str
    suffix: str
    middle: str | None
    """What stands before the text to be made. None: the suffix comes first, and the prefix last."""
    ends: tuple[str, ...] = ()
    """Tokens that end that text, beside the model's own ends."""


MARKERS = (
    Markers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",
            ("<|fim_pad|>", "<|file_sep|>", "<|file_separator|>", "<|repo_name|>")),
    Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<file_sep>")),
    Markers("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<fim-pad>",)),
    Markers("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),
    Markers("<PRE>", "<SUF>", "<MID>", ("<EOT>",)),
    Markers("<\uff5cfim▁begin\uff5c>", "<\uff5cfim▁hole\uff5c>", "<\uff5cfim▁end\uff5c>"),
    Markers("[PREFIX]", "[SUFFIX]", None),
)  # fmt: skip
"""In order: Qwen and CodeGemma; StarCoder and StableCode; SantaCoder; CodeLlama; the same without
SentencePiece's space; DeepSeek-Coder; Codestral."""


def infill_prompts(
    prompts: list[list[int]], suffix: str, tokenizer: TextTokenizer
) -> tuple[list[list[int]], tuple[int, ...]]:
    """The prompts that ask for what stands between each of `prompts` and `suffix`, and the tokens
    that end such an answer. Raises a 400 where the model does not know how.
    """
    id_of = tokenizer.tokenizer.token_to_id
    for markers in MARKERS:
        names = [name for name in (markers.prefix, markers.suffix, markers.middle) if name]
        ids = [one for one in map(id_of, names) if one is not None]
        if len(ids) < len(names):
            continue
        after = tokenizer.encode(suffix, add_special_tokens=False)
        start = tokenizer.encode("")[:1]
        made = []
        for prompt in prompts:
            before = prompt[1:] if start and prompt[:1] == start else prompt
            if markers.middle is None:
                made.append([*start, ids[1], *after, ids[0], *before])
            else:
                made.append([*start, ids[0], *before, ids[1], *after, ids[2]])
        ends = (id_of(name) for name in markers.ends)
        return made, tuple(one for one in ends if one is not None)
    raise bad_request(
        "this model has no tokens to fill in the middle of a text with, so it cannot honour "
        "'suffix'.",
        "suffix",
        "unsupported_parameter",
    )
