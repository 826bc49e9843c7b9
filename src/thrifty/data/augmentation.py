"""Which other forms of its rows a training learns from, as `--augment` and recipes name them.

Noise is drawn while a training reads (`noise`). What models made of rows is in the data: other
wordings and negative texts stand in their row, under `made`, and new rows name the rows that they
were made from in their provenance (`curate.made`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from thrifty.data.noise import KINDS, Noise
from thrifty.errors import DataError

NOISE, NONE, AUTO = "noise", "none", "auto"
REWORDED = ("paraphrase", "back_translation")
"""Other wordings of what a user says last. They stand in the row that they were made from."""
NEW_ROWS = ("evolve", "self_instruct")
NEGATIVES = "negatives"
MADE = (*REWORDED, *NEW_ROWS, NEGATIVES)
"""What models make."""


@dataclass(frozen=True)
class Augmentation:
    """What a training uses. Without `auto`, all of it; with `auto`, what a trial shows to gain."""

    noise: Noise | None = None
    made: tuple[str, ...] = MADE
    """Of what models made, these methods; what the data do not hold changes nothing."""
    auto: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As JSON, which `read_augmentation` reads."""
        noise = None if self.noise is None else {**asdict(self.noise), "kinds": [*self.noise.kinds]}
        return {"noise": noise, "made": [*self.made], "auto": self.auto}


PLAIN = Augmentation(None, ())
AS_IT_IS = Augmentation()
"""Everything that the data hold, and no noise."""


def read_augmentation(value: dict[str, Any]) -> Augmentation:
    """What `as_dict` wrote."""
    noise = value["noise"]
    found = None if noise is None else Noise(**{**noise, "kinds": tuple(noise["kinds"])})
    return Augmentation(found, tuple(value["made"]), value["auto"])


def parse_augmentation(text: str) -> Augmentation:
    """`none`, `auto`, or names with commas between them: `noise` and methods of `MADE`.

    `auto` may be followed by what it tries, such as `auto,noise`; alone it tries everything. Noise
    takes settings: `noise:rows=0.8:words=0.1:kinds=typing+case`. Raises `DataError`.
    """
    names = [one.strip().replace("-", "_") for one in text.split(",") if one.strip()]
    if names == [NONE]:
        return PLAIN
    auto = AUTO in names
    names = [one for one in names if one != AUTO]
    if auto and not names:
        return Augmentation(Noise(), MADE, auto=True)
    noise, made = None, []
    for name in names:
        if name.partition(":")[0] == NOISE:
            noise = _parse_noise(name)
        elif name in MADE:
            made.append(name)
        else:
            raise DataError(
                f"{name!r} is no augmentation; take {NONE}, {AUTO}, {NOISE}, {', '.join(MADE)}"
            )
    if not names:
        raise DataError(f"an augmentation is {NONE}, {AUTO}, {NOISE}, {', '.join(MADE)}")
    return Augmentation(noise, tuple(made), auto)


def _parse_noise(text: str) -> Noise:
    settings: dict[str, Any] = {}
    for part in text.split(":")[1:]:
        key, _, value = part.partition("=")
        try:
            if key in ("rows", "words"):
                settings[key] = float(value)
            elif key == "seed":
                settings[key] = int(value)
            elif key == "kinds":
                settings[key] = tuple(value.split("+"))
            else:
                raise ValueError
        except ValueError:
            raise DataError(
                f"{part!r} is no setting of noise; take rows=SHARE, words=SHARE, seed=NUMBER, or "
                f"kinds= with some of {'+'.join(KINDS)}"
            ) from None
    return Noise(**settings)


def list_candidates(wanted: Augmentation, there: Iterable[str]) -> dict[str, Augmentation]:
    """What a trial compares with plain training, by name: each thing alone, and all together.

    `there` are the methods of which the data hold something.
    """
    found = {} if wanted.noise is None else {NOISE: Augmentation(wanted.noise, ())}
    held = set(there)
    methods = tuple(name for name in wanted.made if name in held)
    found |= {name: Augmentation(None, (name,)) for name in methods}
    if len(found) > 1:
        found["all"] = Augmentation(wanted.noise, methods)
    return found
