"""`thrifty models push` and `thrifty models pull`."""

from __future__ import annotations

import msgspec

from thrifty.artifacts import Store
from thrifty.artifacts.remotes import pull, push
from thrifty.cli.models import describe_model
from thrifty.cli.show import print_json, print_line, show_progress, tell
from thrifty.home import find_home
from thrifty.units import format_bytes


def run_push(name: str, url: str, *, rename: str | None, verify: bool, as_json: bool) -> None:
    """Push a model."""
    store = Store(find_home().models)
    with show_progress() as on_progress:
        pushed = push(store, name, url, rename=rename, verify=verify, on_progress=on_progress)
    if as_json:
        print_json(msgspec.to_builtins(pushed))
        return
    what = "pushed" if pushed.created else "was there already"
    tell(f"{name} {what}: {_say_moved('sent', pushed.moved_bytes, pushed.present_bytes)}")
    print_line(pushed.reference)


def run_remote_pull(url: str, *, name: str | None, as_json: bool) -> None:
    """Pull a model."""
    store = Store(find_home().models)
    with show_progress() as on_progress:
        pulled = pull(store, url, name=name, on_progress=on_progress)
    if as_json:
        print_json(
            {
                **describe_model(store, pulled.version, pulled.artifact),
                "moved_bytes": pulled.moved_bytes,
                "present_bytes": pulled.present_bytes,
            }
        )
        return
    moved = _say_moved("received", pulled.moved_bytes, pulled.present_bytes)
    tell(f"{pulled.version.label}: {moved}")
    print_line(pulled.version.label)


def _say_moved(done: str, moved: int, present: int) -> str:
    kept = f", {format_bytes(present)} were there already" if present else ""
    return f"{format_bytes(moved)} {done}{kept}"
