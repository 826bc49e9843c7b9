"""The checkpoint from before the learning rate fell, from which a longer training goes on.

It lies beside the training's own checkpoint, as links to the files that were written then:

    trunk-state.json        what state.json was
    trunk.safetensors       the weights and the optimizer
    trunk-best.safetensors  the best weights so far, if there were any
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from thrifty.files import write_atomically

NOTE, WEIGHTS, BEST = "trunk-state.json", "trunk.safetensors", "trunk-best.safetensors"


def keep_trunk(folder: Path) -> None:
    """Keep the checkpoint that a training has just written."""
    note = (folder / "state.json").read_text()
    (folder / NOTE).unlink(missing_ok=True)
    _link(folder / f"{json.loads(note)['file']}.safetensors", folder / WEIGHTS)
    _link(folder / "best.safetensors", folder / BEST)
    write_atomically(folder / NOTE, note)


def restore_trunk(folder: Path) -> None:
    """Go back to that checkpoint, if there is one. A call that was killed is repeated."""
    if not (folder / NOTE).exists():
        return
    note = (folder / NOTE).read_text()
    _link(folder / WEIGHTS, folder / f"{json.loads(note)['file']}.safetensors")
    _link(folder / BEST, folder / "best.safetensors")
    write_atomically(folder / "state.json", note)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    if source.exists():
        os.link(source, target)
