"""A deployment's recorded conversations as a domain: what its clients asked, and what they got.

The texts are copied to a file of this home, and never leave the machine.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.parse import quote

from thrifty.db import Database
from thrifty.db.request_log import RecordedText, read_conversations
from thrifty.errors import EvaluationError
from thrifty.evaluate.told import read_told
from thrifty.files import write_atomically
from thrifty.home import make_private_folder
from thrifty.observe.texts import parse_answer, parse_prompt

MOST_CONVERSATIONS = 2000
"""The newest ones are used."""


def write_recorded(database: Database, deployment: str, folder: Path) -> Path:
    """Write the recorded conversations of a deployment to a `.jsonl` file in `folder`, in a random
    order that their content decides. Raises `EvaluationError` if there are none.
    """
    texts = read_conversations(database, deployment, MOST_CONVERSATIONS)
    lines = {line for text in texts if (line := _write_line(text))}
    if not lines:
        raise EvaluationError(
            f"the request log has no conversations of the deployment {deployment!r} with their "
            "texts; set 'record: {prompts: true}' in the spec, and wait for requests to "
            "/v1/chat/completions; or name a file (NAME=FILE.jsonl)"
        )
    ordered = sorted(lines, key=lambda line: hashlib.sha256(line.encode()).digest())
    path = make_private_folder(folder) / f"{quote(deployment, safe='')}.jsonl"
    write_atomically(path, "".join(ordered), mode=0o600)
    return path


def _write_line(text: RecordedText) -> str:
    """A record of the whole conversation; empty if its texts are not in our form."""
    try:
        messages, choices = parse_prompt(text.prompt), parse_answer(text.answer)
        told = read_told(text.facts)
    except ValueError:
        return ""
    if not messages or not choices or told is None:
        return ""
    return json.dumps({"messages": [*messages, choices[0]], **told}, ensure_ascii=False) + "\n"
