"""`thrifty deploy`: list targets, render files, compare machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.cli.show import print_json, print_line, print_table, tell
from thrifty.deploy.base import Request, parse_target_options, refuse_fleet
from thrifty.deploy.registry import find_target, target_names
from thrifty.deploy.service import make_service
from thrifty.deploy.write import write_files
from thrifty.errors import ThriftyError
from thrifty.home import find_home
from thrifty.spec import load_spec


def run_targets(name: str | None, *, as_json: bool) -> None:
    """List targets, or show one."""
    shown = [find_target(one) for one in ([name] if name else target_names())]
    if as_json:
        print_json(
            {
                "targets": [
                    {
                        "name": one.name,
                        "summary": one.summary,
                        "cannot": list(one.cannot),
                        "options": {
                            key: field.description
                            for key, field in one.options.model_fields.items()
                        },
                    }
                    for one in shown
                ]
            }
        )
        return
    if name is None:
        print_table(("target", "what it writes"), [(one.name, one.summary) for one in shown])
        print_line("\nthrifty deploy targets NAME shows a target's options and what it cannot do.")
        return
    (target,) = shown
    print_line(f"{target.name}: {target.summary}\n\nOptions (--set KEY=VALUE):")
    for key, field in target.options.model_fields.items():
        default = "" if field.is_required() or field.default is None else f" [{field.default}]"
        print_line(f"  {key}{default}: {field.description}")
    print_line("\nWhat it cannot do:")
    for sentence in target.cannot:
        print_line(f"  - {sentence}")


def run_render(
    name: str, path: Path, out: Path, settings: Sequence[str], *, diff: bool, as_json: bool
) -> None:
    """Write a target's files, or show what would change."""
    target = find_target(name)
    options = parse_target_options(target, parse_settings(settings))
    # Nothing of this machine's environment may go into the files.
    service = make_service(load_spec(path, environment={}))
    refuse_fleet(target, service)
    request = Request(service, options, Store(find_home().models))
    written = write_files(target.render(request), out, dry_run=diff)
    if as_json:
        print_json(
            {
                "target": target.name, "checksum": f"sha256:{request.checksum}", "folder": str(out),
                "written": not diff, "added": list(written.added), "changed": list(written.changed),
                "removed": list(written.removed), "unchanged": list(written.unchanged),
                "diff": written.diff,
            }
        )  # fmt: skip
        return
    if diff:
        print_line(written.diff.rstrip("\n") or "Nothing would change.")
        return
    for verb, names in (
        ("Wrote", written.added), ("Changed", written.changed), ("Removed", written.removed),
    ):  # fmt: skip
        for one in names:
            print_line(f"{verb} {out / one}")
    if written.unchanged:
        print_line(f"Unchanged: {len(written.unchanged)} of {len(target.render(request))} files")
    tell(f"Next: {target.next_steps.replace('DIR', str(out))}")
    for sentence in target.cannot:
        tell(f"Note: {sentence}")


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """The options that `--set KEY=VALUE` gave. Raises `ThriftyError`."""
    values = {}
    for one in settings:
        key, equals, value = one.partition("=")
        if not equals or not key:
            raise ThriftyError(f"--set {one}: write KEY=VALUE, such as image=registry/thrifty:1")
        values[key] = value
    return values
