"""Runs a batch from the command line: upload, wait, download. A run that was killed can be resumed.

A note beside the output records which batch was made from which input. As long as the note exists,
the same command resumes that batch and does not create a second one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests
from requests_toolbelt import MultipartEncoder

from thrifty.errors import BatchError
from thrifty.files import replace_atomically, write_atomically

POLL_S = 0.5
TIMEOUT_S = 60.0
GIVE_UP_S = 120.0
"""A service that is unreachable for this long is considered gone, not merely restarting."""
CHUNK_BYTES = 1 << 20
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})

OnProgress = Callable[[dict[str, Any]], None]
"""Called periodically with the batch as the service describes it."""


@dataclass(frozen=True)
class Note:
    """The batch that belongs to an output."""

    url: str
    batch_id: str
    input_sha256: str


class BatchClient:
    """A client of the Files and Batch API at one URL."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._session = requests.Session()
        if key:
            self._session.headers["authorization"] = f"Bearer {key}"

    def upload(self, path: Path) -> str:
        """Upload an input file; returns its id."""
        with path.open("rb") as file:
            # Streamed, because a file may be larger than the memory.
            form = MultipartEncoder(
                {"purpose": "batch", "file": (path.name, file, "application/jsonl")}
            )
            headers = {"content-type": form.content_type}
            answer = self._request("POST", "/v1/files", data=form, headers=headers)
        return str(answer["id"])

    def create(self, file_id: str, endpoint: str, window: str) -> dict[str, Any]:
        """Create a batch."""
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}
        return self._request("POST", "/v1/batches", json=body)

    def find(self, batch_id: str) -> dict[str, Any] | None:
        """The current state of a batch; None if it does not exist."""
        return self._request("GET", f"/v1/batches/{batch_id}", missing_ok=True) or None

    def fetch(self, file_id: str | None, target: Path) -> None:
        """Write a file's contents to `target` atomically; without a file id, write an empty
        file.
        """
        with replace_atomically(target) as temporary, temporary.open("wb") as file:
            if file_id is None:
                return
            url = f"{self.url}/v1/files/{file_id}/content"
            with self._session.get(url, stream=True, timeout=TIMEOUT_S) as reply:
                if reply.status_code != 200:
                    raise _make_error(reply)
                for data in reply.iter_content(CHUNK_BYTES):
                    file.write(data)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _request(
        self, method: str, path: str, *, missing_ok: bool = False, **fields: Any
    ) -> dict[str, Any]:
        reply = self._session.request(method, self.url + path, timeout=TIMEOUT_S, **fields)
        if reply.status_code == 404 and missing_ok:
            return {}
        if reply.status_code != 200:
            raise _make_error(reply)
        answer: dict[str, Any] = reply.json()
        return answer


def run_batch(
    source: Path,
    output: Path,
    errors: Path,
    *,
    url: str,
    key: str | None,
    window: str,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Run a file of requests as a batch; returns the batch when it has ended. Blocks. Raises
    `BatchError`.
    """
    service = BatchClient(url, key)
    note_path = output.with_name(f"{output.name}.batch")
    try:
        digest = _hash_file(source)
        batch = _resume(service, note_path, digest)
        if batch is None:
            endpoint = _read_endpoint(source)
            batch = service.create(service.upload(source), endpoint, window)
            _write_note(note_path, Note(service.url, batch["id"], digest))
        batch = _wait(service, batch, on_progress)
        service.fetch(batch["output_file_id"], output)
        if batch["error_file_id"] is not None:
            service.fetch(batch["error_file_id"], errors)
        else:
            errors.unlink(missing_ok=True)
        note_path.unlink(missing_ok=True)
    except requests.RequestException as error:
        raise BatchError(
            f"{service.url} cannot be reached: {_describe(error)}. Run the same command again to resume "
            "the batch."
        ) from None
    except OSError as error:
        raise BatchError(f"{error.filename or source}: {error.strerror or error}") from None
    finally:
        service.close()
    return batch


def _wait(service: BatchClient, batch: dict[str, Any], on_progress: OnProgress) -> dict[str, Any]:
    away_since_s: float | None = None
    while True:
        on_progress(batch)
        if batch["status"] in ENDED:
            return batch
        time.sleep(POLL_S)
        try:
            found = service.find(batch["id"])
            away_since_s = None
        except (requests.RequestException, BatchError):
            # A gateway that restarts is unreachable for a moment; the batch continues afterwards.
            away_since_s = away_since_s or time.monotonic()
            if time.monotonic() - away_since_s > GIVE_UP_S:
                raise
            continue
        if found is None:
            raise BatchError(f"the batch {batch['id']} no longer exists at {service.url}")
        batch = found


def _resume(service: BatchClient, note_path: Path, digest: str) -> dict[str, Any] | None:
    """The batch that an earlier run of the same command created, if it still exists."""
    try:
        note = Note(**json.loads(note_path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise BatchError(f"{note_path} is not a valid batch note; move it away") from None
    if note.input_sha256 != digest:
        raise BatchError(
            f"{note_path} belongs to a batch of another input ({note.batch_id}). Choose another "
            "--out, or delete that file if you do not need that batch's answers"
        )
    if note.url != service.url:
        raise BatchError(
            f"{note_path} belongs to a batch at {note.url}; pass --url {note.url} to resume it, or "
            "delete that file"
        )
    return service.find(note.batch_id)


def _write_note(path: Path, note: Note) -> None:
    write_atomically(path, json.dumps(asdict(note)))


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_endpoint(path: Path) -> str:
    """The `url` of the first line that has one."""
    with path.open("rb") as file:
        for data in file:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                url = json.loads(data)["url"]
                if isinstance(url, str):
                    return url
    raise BatchError(f"{path} has no line with a 'url' such as /v1/chat/completions")


def _make_error(reply: requests.Response) -> BatchError:
    try:
        message = reply.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = reply.text[:300]
    hint = "; pass the key with --key or THRIFTY_KEY" if reply.status_code == 401 else ""
    return BatchError(f"{reply.url} answered {reply.status_code}: {message}{hint}")


def _describe(error: requests.RequestException) -> str:
    inner = error.args[0] if error.args else error
    reason = getattr(inner, "reason", inner)
    return str(reason)[:200]
