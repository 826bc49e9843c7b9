"""Pieces made on the nodes of a Ray cluster, by Ray Data.

Nodes read the sources and write the pieces themselves, so that both are on a file system that all
nodes see under the same paths; a node that does not is told. What is made of a piece depends on the
piece alone: the result is that of a build on one machine. Ray's driver has a process of its own
(`ray_driver`), because it prints, and ends its process when the head stays away.
"""

from __future__ import annotations

import json
import secrets as random
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thrifty.curate.piece import PieceMaker, Settings
from thrifty.curate.sources import Piece, SourceFile
from thrifty.curate.workers import make_piece, tell
from thrifty.errors import DataError, ThriftyError
from thrifty.version import __version__

OnPiece = Callable[[Piece], None]


def make_pieces_on_ray(
    address: str,
    settings: Settings,
    secrets: tuple[bytes, bytes],
    files: Sequence[SourceFile],
    pieces: Sequence[Piece],
    on_piece: OnPiece,
) -> None:
    """Make all pieces on the cluster whose head is at `address` (HOST:PORT). `on_piece` is told of
    each that is made. Blocks. Raises `DataError`.
    """
    if not pieces:
        return
    mark = Path(settings.work) / f"seen-{random.token_hex(8)}"
    mark.touch()
    job = {
        "address": address, "settings": asdict(settings), "secrets": [one.hex() for one in secrets],
        "files": [asdict(one) for one in files], "pieces": [asdict(one) for one in pieces],
        "mark": str(mark), "version": __version__,
    }  # fmt: skip
    known = {one.number: one for one in pieces}
    command = [sys.executable, "-m", "thrifty.curate.ray_driver"]
    try:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                tell(process.stdin, job)
                for line in process.stdout:
                    answer = json.loads(line)
                    if answer.get("error"):
                        raise DataError(answer["error"])
                    on_piece(known.pop(answer["piece"]))
            finally:
                process.stdin.close()  # its end ends the driver
        if known:
            raise DataError(
                f"the connection with the Ray cluster at {address} ended before {len(known)} of "
                f"{len(pieces)} pieces were made; what is finished is kept, so run this again"
            )
    finally:
        mark.unlink(missing_ok=True)


class NodeMaker:
    """Makes pieces on a node, one at a time; see `ray.data.Dataset.map_batches`."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._pieces = {one["number"]: Piece(**one) for one in job["pieces"]}
        self._files = [SourceFile(**one) for one in job["files"]]
        self._maker: PieceMaker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row a piece: its `piece` (number), and an `error`, empty where it was made."""
        number = int(batch["piece"][0])
        try:
            self._make(self._pieces[number])
        except ThriftyError as error:
            return {"piece": [number], "error": [str(error)]}
        return {"piece": [number], "error": [""]}

    def _make(self, piece: Piece) -> None:
        if self._maker is None:
            self._check_node()
            given = self._job["secrets"]
            keys = (bytes.fromhex(given[0]), bytes.fromhex(given[1]))
            self._maker = PieceMaker(Settings(**self._job["settings"]), keys)
        make_piece(self._maker, self._files[piece.file], piece)

    def _check_node(self) -> None:
        if self._job["version"] != __version__:
            raise DataError(
                f"the node {socket.gethostname()} has Thrifty {__version__}, and this machine "
                f"{self._job['version']}; install the same release everywhere"
            )
        if not Path(self._job["mark"]).exists():
            raise DataError(
                f"the node {socket.gethostname()} does not see {self._job['settings']['work']}; put "
                "THRIFTY_HOME and the sources on a file system that all nodes mount at the same path"
            )
