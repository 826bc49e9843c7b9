"""A recipe: what a data set is built of and how, as typed sections.

The file is YAML and closed to keys that it does not know; every fault is reported with its line, as
in a spec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from thrifty.curate.augment_section import Augment, Names, Share, as_list, short
from thrifty.data.sets import SETS
from thrifty.spec.faults import suggest
from thrifty.spec.own_file import load_file, parse_data
from thrifty.spec.section import Integer, Number, Section

Kind = Literal["sft", "dpo", "kto", "contrastive", "text"]
Format = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "text"]
Shape = Literal[
    "auto", "messages", "sharegpt", "alpaca", "pair", "judged", "prompt", "texts", "text"
]
Group = Literal["conversation", "user", "source"]
Positive = Annotated[Integer, Field(ge=1)]
NEAR_SIMILARITY = 0.8


class Fields(Section):
    """The names of a source's own fields, where they are others than usual."""

    text: str | None = Field(None, description="The text of a row of text.")
    messages: str | None = Field(None, description="The list of messages.")
    prompt: str | None = Field(None, description="What is asked.")
    answer: str | None = Field(None, description="What is answered.")
    user: str = Field("user", description="Who the row is of: kept as a pseudonym.")
    conversation: str = Field("conversation", description="Which rows belong together.")
    time: str = Field("time", description="When it was: seconds since 1970, or ISO 8601.")


class Source(Section):
    """One source of rows: a path, a set of `thrifty data fetch`, or the request log."""

    name: str = Field("", description="In reports and provenances. Default: the file, set or log.")
    path: str | None = Field(None, description="A file, a folder or a pattern (`logs/*.jsonl`).")
    set: str | None = Field(None, description="A set of `thrifty data list`, fetched if need be.")
    log: str | None = Field(
        None, description="Judged answers of a deployment, `*` for all (`record.prompts: true`)."
    )
    tenant: str | None = Field(None, description="Of the log: only this tenant's.")
    version: str | None = Field(None, description="Of the log: only this version's.")
    format: Format = Field("auto", description="How files are written. Default: by their names.")
    shape: Shape = Field("auto", description="What records are. Default: by their fields.")
    fields: Fields = Field(Fields(), description="Names of fields.")
    weight: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="Its share of the rows, relative to other sources. Default: all of it."
    )

    @model_validator(mode="after")
    def _check(self) -> Source:
        kinds = [key for key in ("path", "set", "log") if getattr(self, key) is not None]
        if len(kinds) != 1:
            raise ValueError(f"a source has one of 'path', 'set' and 'log'; this has {kinds}")
        if self.set is not None and self.set not in SETS:
            raise ValueError(f"{self.set!r} is not a set; {suggest(self.set, list(SETS))}")
        kind = SETS[self.set].kind if self.set is not None else ""
        if kind in ("questions", "pairs"):
            raise ValueError(f"{self.set!r} holds {kind} to judge by, which is not learned from")
        if self.log is None and (self.tenant is not None or self.version is not None):
            raise ValueError("'tenant' and 'version' are of the request log ('log')")
        return self


class Clean(Section):
    """What changes a text, and what removes a row for what it says."""

    unicode: Literal["nfc", "nfkc", "none"] = Field(
        "nfc", description="The normal form of Unicode. Control characters go, but with `none`."
    )
    mojibake: bool = Field(False, description="Repair wrongly decoded text (ftfy).")
    html: bool = Field(
        False, description="Take the article out of texts that are web pages (trafilatura)."
    )
    languages: Names = Field((), description="Keep these, as ISO 639-1 codes such as `en`.")
    confidence: Share = Field(0.5, description="A language counts from this probability on.")
    quality: Names = Field(
        (), description="Tables of rules: gopher, c4, fineweb, or a file of your own."
    )


class Length(Section):
    """Bounds of a row's length."""

    tokenizer: str | None = Field(
        None, description="The model that is trained, as `thrifty pull` names it. Default: words."
    )
    least: Annotated[Integer, Field(ge=0)] = Field(1, description="Shorter rows go.")
    most: Positive | None = Field(None, description="Longer rows go.")


class Near(Section):
    """Near-duplicates: rows that share most of their sequences of words (MinHash, then exact)."""

    similarity: Share = Field(
        NEAR_SIMILARITY, description="The Jaccard similarity from which on a row goes."
    )
    words: Positive = Field(5, description="Words in a sequence.")


class Embeddings(Section):
    """Rows with nearly the same embedding."""

    encoder: str = Field(description="An encoder, as `thrifty pull` names it.")
    similarity: Share = Field(0.95, description="The cosine from which on a row goes.")


class Deduplicate(Section):
    """What counts as the same row. The first one stays."""

    exact: bool = Field(
        True, description="The same words and symbols, whatever their case and marks."
    )
    near: Annotated[Near | None, short("similarity")] = Field(
        Near(), description="Near-duplicates: a similarity, or false."
    )
    embeddings: Annotated[Embeddings | None, short("encoder")] = Field(
        None, description="By an encoder."
    )


class Redact(Section):
    """Pseudonyms in the place of personal data."""

    targets: Literal["drop", "keep"] = Field(
        "drop", description="What becomes of answers that then hold a pseudonym."
    )


class Decontaminate(Section):
    """No row may hold what models are judged by."""

    leaks: Literal["error", "drop"] = Field(
        "error", description="What a leak is: the end of the build, or of the row."
    )
    accept: Names = Field((), description="Evaluation sets whose leaks are counted and stay.")
    against: Names = Field((), description="More files of .jsonl or .txt to keep apart from.")
    encoder: str | None = Field(None, description="An encoder that also finds paraphrases.")
    similarity: Share = Field(0.9, description="The cosine from which on it is a paraphrase.")


class Split(Section):
    """What is held out."""

    test: Share = Field(0.05, description="The share of the groups that is held out.")
    by: Annotated[tuple[Group, ...], BeforeValidator(as_list)] = Field(
        ("conversation", "user"), description="Rows that share one of these stay on one side."
    )
    stratify: Literal["source", "language", "label"] | None = Field(
        None, description="Hold out the same share of each."
    )
    time: bool = Field(False, description="Hold out the newest rows, and keep rows in order.")


class Balance(Section):
    """As many rows of each kind."""

    by: Literal["source", "language", "label"] = Field(description="Of what.")
    most: Annotated[Number, Field(ge=1)] = Field(
        1.0, description="A kind may have so many times the rows of the smallest one."
    )


class Recipe(Section):
    """All of a recipe."""

    kind: Kind = Field("sft", description="What the rows are for.")
    sources: Annotated[tuple[Source, ...], Field(min_length=1)] = Field(
        description="What is read, in this order."
    )
    seed: Integer = Field(0, description="Decides on what is held out, and on the order.")
    clean: Clean = Field(Clean(), description="Texts.")
    redact: Annotated[Redact | None, short("targets")] = Field(
        Redact(), description="Personal data; false leaves them."
    )
    length: Length = Field(Length(), description="Lengths.")
    deduplicate: Deduplicate = Field(Deduplicate(), description="Rows that say the same.")
    decontaminate: Annotated[Decontaminate | None, short("leaks")] = Field(
        Decontaminate(), description="What models are judged by; false looks for nothing."
    )
    split: Annotated[Split, short("test")] = Field(Split(), description="What is held out.")
    balance: Annotated[Balance | None, short("by")] = Field(None, description="Rows of a kind.")
    mix: Literal["rows", "tokens"] = Field("rows", description="What weights of sources count.")
    augment: Annotated[Augment | None, short("keep")] = Field(
        None, description="Other forms of the rows that are learned."
    )
    pack: Positive | None = Field(None, description="Put rows together up to so many tokens.")
    evaluation: bool = Field(
        False, description="Register it as an evaluation set, which later builds keep apart from."
    )

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        names = [name_source(one) for one in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are called {name!r}; give one another 'name'")
        weights = [one.weight is not None for one in self.sources]
        if any(weights) and not all(weights):
            raise ValueError("either every source has a 'weight' or none has")
        if self.pack is not None and self.length.most is not None and self.length.most > self.pack:
            raise ValueError(
                f"'length.most' ({self.length.most}) is more than a pack holds ({self.pack})"
            )
        if self.pack is not None and self.length.tokenizer is None:
            raise ValueError("'pack' counts tokens and needs 'length.tokenizer'")
        if self.mix == "tokens" and self.length.tokenizer is None:
            raise ValueError("'mix: tokens' needs 'length.tokenizer'")
        if self.mix == "tokens" and not any(weights):
            raise ValueError("'mix: tokens' says what weights count, and no source has a 'weight'")
        if self.clean.html and self.kind != "text":
            raise ValueError(
                f"'clean.html' takes the article out of rows of text, and the kind is {self.kind}"
            )
        label = "label" in (self.split.stratify, self.balance and self.balance.by)
        if label and self.kind != "kto":
            raise ValueError("only rows of the kind kto have a label")
        if self.kind == "contrastive" and any(one.log is not None for one in self.sources):
            raise ValueError("the request log ('log') holds no rows of the kind contrastive")
        if self.augment is not None:
            fault = self.augment.refuse(self.kind)
            if fault is not None:
                raise ValueError(f"'augment' {fault}")
            if self.pack is not None and self.augment.methods:
                raise ValueError(
                    "'pack' puts rows together as they are, and 'augment' adds others; leave one out"
                )
        return self


def name_source(source: Source) -> str:
    """A source's name in reports and provenances."""
    if source.name:
        return source.name
    if source.path is not None:
        return Path(source.path).stem if "*" not in source.path else source.path
    return source.set or f"log:{source.log}"


def load_recipe(path: Path) -> Recipe:
    """Read the recipe at `path`. Raises `SpecError` with every fault and its line."""
    return load_file(Recipe, path, "the recipe")


def parse_recipe(data: Mapping[str, Any]) -> Recipe:
    """The recipe that a mapping holds. Raises `SpecError` with every fault."""
    return parse_data(Recipe, dict(data), "the recipe")


def write_recipe(recipe: Recipe) -> str:
    """A recipe as YAML, with every value that it comes to."""
    return yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False)
