"""`--max-drop` of the commands that make a model: judge what they made."""

from __future__ import annotations

from thrifty.artifacts import Store
from thrifty.cli.show import show_progress, tell
from thrifty.engines.machine import detect_machine
from thrifty.errors import GateError
from thrifty.evaluate.gate import check_max_drop
from thrifty.home import find_home
from thrifty.model_maker import Compressor


def judge_made(name: str, max_drop: float | None) -> None:
    """Measure the newest version of `name` beside the model that it was made from, and record the
    verdict. Raises `GateError` if it drops by more than `max_drop`; None judges nothing.
    """
    if max_drop is None:
        return
    check_max_drop(max_drop)
    home = find_home()
    store = Store(home.models)
    version, artifact = store.find(name)
    with show_progress() as on_progress:
        compressor = Compressor(home, store, detect_machine(), tell)
        verdict, message = compressor.judge(version, artifact, max_drop, on_progress)
    for note in verdict.notes:
        tell(note)
    if not verdict.passed:
        raise GateError(message)
    tell(message)
