"""`python -m demo [--short] [--shuffled] [--seed N] [--home FOLDER] [--out demo.json]`; see `make demo`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from demo.acts import Demo
from demo.service import Failed
from demo.sizes import SHORT, WHOLE

MARK = ".thrifty-demo"


def main() -> int:
    """Play the demo and write demo.json; with a terminal, keep serving afterwards."""
    options = argparse.ArgumentParser(prog="demo", description=__doc__)
    options.add_argument("--short", action="store_true", help="fewer of everything")
    options.add_argument("--shuffled", action="store_true", help="thumbs that say nothing")
    options.add_argument("--only-turn", action="store_true", help="neither poisoned nor worse")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--home", type=Path, default=Path(".make/demo"), help="made anew")
    options.add_argument("--out", type=Path, default=Path("demo.json"))
    given = options.parse_args()
    home = make_home(given.home.absolute())
    demo = Demo(home, SHORT if given.short else WHOLE, given.seed, given.shuffled)
    keep = sys.stdout.isatty() and os.environ.get("DEMO_KEEP") != "0"
    try:
        result = demo.play(only_turn=given.only_turn)
        given.out.write_text(json.dumps(result, indent=2) + "\n")
        details = given.out.with_name(f"{given.out.stem}-details.json")
        facts = {"seed": given.seed, "stages_s": demo.stages, **demo.details}
        details.write_text(json.dumps(facts, indent=2) + "\n")
        print(json.dumps(result, indent=2))
        if keep:
            print(f"\nIt keeps serving until Ctrl-C. The console: {demo.service.url}/console")
            demo.service.wait()
    except KeyboardInterrupt:
        print("\nstopping", file=sys.stderr)
    except Failed as fault:
        print(f"The demo cannot go on: {fault}", file=sys.stderr)
        return 1
    finally:
        demo.service.stop()
    return 0


def make_home(path: Path) -> Path:
    """An empty home; one that an earlier demo left is removed, and nothing else ever is."""
    if path.exists() and any(path.iterdir()):
        if not (path / MARK).exists():
            raise SystemExit(f"{path} is not empty and not of an earlier demo; name another --home")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / MARK).touch()
    return path


if __name__ == "__main__":
    sys.exit(main())
