"""Pieces made by several processes. Each is given one piece at a time over its standard input and
answers with a line; one whose builder is gone reads the end of its input, and ends.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import IO, Any

from thrifty.curate.piece import PieceMaker, Settings
from thrifty.curate.sources import Piece, SourceFile, check_unchanged
from thrifty.errors import DataError, ThriftyError

OnPiece = Callable[[Piece], None]
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def make_pieces(
    settings: Settings,
    secrets: tuple[bytes, bytes],
    files: Sequence[SourceFile],
    pieces: Sequence[Piece],
    workers: int,
    on_piece: OnPiece,
) -> None:
    """Make all pieces, by so many processes. `on_piece` is told of each that is made, by one thread
    at a time. Raises `ThriftyError`, once no process works any more.
    """
    if workers <= 1 or len(pieces) <= 1:
        maker = PieceMaker(settings, secrets)
        for piece in pieces:
            make_piece(maker, files[piece.file], piece)
            on_piece(piece)
        return
    todo: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    for piece in pieces:
        todo.put(piece)
    faults: list[Exception] = []
    lock = threading.Lock()

    def drive() -> None:
        try:
            _drive(settings, secrets, files, todo, faults, lock, on_piece)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=drive) for _ in range(min(workers, len(pieces)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


def make_piece(maker: PieceMaker, file: SourceFile, piece: Piece) -> None:
    """Make one piece of a file. Raises `ThriftyError`."""
    try:
        maker.make(file, piece)
    except OSError as error:
        raise describe_disk_fault(error) from None
    except DataError:
        # A file that was cut off meanwhile cannot be read; that it changed says more.
        check_unchanged(file)
        raise
    except ThriftyError:
        raise
    except Exception as error:
        raise DataError(
            f"{file.path}, piece {piece.number}, cannot be built: {type(error).__name__}: {error}; "
            "this is a fault of Thrifty, so please report it. To go on, leave the file out"
        ) from error
    check_unchanged(file)


def describe_disk_fault(error: OSError) -> DataError:
    """What a failed write means for a build."""
    where = f" {error.filename}" if error.filename else ""
    return DataError(
        f"cannot write{where}: {error.strerror or error}; what is finished is kept, so make room and "
        "run this again"
    )


def _drive(
    settings: Settings,
    secrets: tuple[bytes, bytes],
    files: Sequence[SourceFile],
    todo: queue.SimpleQueue[Piece],
    faults: list[Exception],
    lock: threading.Lock,
    on_piece: OnPiece,
) -> None:
    """Start one process and give it pieces until there are none, or something failed."""
    environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
    command = [sys.executable, "-m", "thrifty.curate.workers"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            first = {"settings": asdict(settings), "secrets": [one.hex() for one in secrets]}
            tell(process.stdin, first)
            while not faults:
                try:
                    piece = todo.get_nowait()
                except queue.Empty:
                    return
                tell(process.stdin, {"file": asdict(files[piece.file]), "piece": asdict(piece)})
                answer = process.stdout.readline()
                if not answer:
                    raise DataError(
                        "a process of the build ended (killed, or out of memory); what is finished "
                        "is kept, so run this again, with fewer --workers"
                    )
                fault = json.loads(answer).get("error")
                if fault is not None:
                    raise DataError(fault)
                with lock:
                    on_piece(piece)
        except BrokenPipeError:
            raise DataError("a process of the build ended; run this again to continue") from None
        finally:
            process.stdin.close()


def tell(stream: IO[str], value: Any) -> None:
    """Write a value as a line of JSON."""
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def _work() -> None:
    """The life of one process."""
    first = json.loads(sys.stdin.readline())
    secrets = (bytes.fromhex(first["secrets"][0]), bytes.fromhex(first["secrets"][1]))
    maker: PieceMaker | None = None
    for line in sys.stdin:
        given = json.loads(line)
        try:
            maker = maker or PieceMaker(Settings(**first["settings"]), secrets)
            make_piece(maker, SourceFile(**given["file"]), Piece(**given["piece"]))
        except ThriftyError as error:
            tell(sys.stdout, {"error": str(error)})
        else:
            tell(sys.stdout, {})


if __name__ == "__main__":
    _work()
