"""Stand-ins for client programs that others wrote: they note what they were told, and fail when told to.

Each call is a line of JSON in the log. What a program made is a file in the folder of its world, so that
what is left after a failure can be looked at.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

_SCRIPT = """#!{python}
import json, os, signal, sys
from pathlib import Path
world, name = Path({world!r}), Path(sys.argv[0]).name
arguments = sys.argv[1:]
with (world / "log").open("a") as file:
    file.write(json.dumps([name, *arguments]) + "\\n")
words = " ".join(arguments)
for line in (world / "faults").read_text().splitlines():
    if line and line in words:
        os.kill(os.getppid(), signal.SIGKILL) if (world / "kill").exists() else None
        sys.exit("the platform says no")
thing = world / f"{{name}}.made"
if any(word in arguments for word in ("apply", "upgrade", "up", "replace", "deploy", "create", "update")):
    thing.write_text(words)
elif any(word in arguments for word in ("delete", "uninstall", "down", "delete-stack")):
    thing.unlink(missing_ok=True)
elif "status" in arguments or "show" in arguments or "describe" in arguments:
    if not thing.exists():
        sys.exit("it is not there")
print(f"{{name}} was told: {{words}}")
"""
PROGRAMS = ("kubectl", "helm", "docker", "gcloud", "aws", "az", "sky")


class World:
    """The programs, and what they did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.fail_at("")
        (folder / "log").touch()
        for name in PROGRAMS:
            path = self.bin / name
            path.write_text(_SCRIPT.format(python=sys.executable, world=str(folder)))
            path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    @property
    def calls(self) -> list[list[str]]:
        """What was called since the last look."""
        lines = (self.folder / "log").read_text().splitlines()
        (self.folder / "log").write_text("")
        return [json.loads(line) for line in lines]

    @property
    def made(self) -> list[str]:
        """The programs whose thing is there."""
        return sorted(path.stem for path in self.folder.glob("*.made"))

    def fail_at(self, words: str, *, kill: bool = False) -> None:
        """Have calls with these words fail, or kill whoever called."""
        (self.folder / "faults").write_text(words)
        if kill:
            (self.folder / "kill").touch()
        else:
            (self.folder / "kill").unlink(missing_ok=True)
