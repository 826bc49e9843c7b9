"""A server that someone else runs, which rewords, translates, invents and judges by simple rules."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = {"please": "kindly", "explain": "describe", "where": "at which place", "keeps": "stores",
         "could": "would", "somebody": "someone"}  # fmt: skip
GERMAN = "Könnte mir jemand bitte erklären, wo der Gärtner {} diese wunderbaren Blumen aufbewahrt?"
ENGLISH = "Would anybody be so kind and tell me where gardener {} has these wonderful flowers?"

Answer = Callable[[str, dict[str, Any]], Any]


def teach(said: str, body: dict[str, Any]) -> str:
    """The answer of a teacher that does what it is asked for."""
    number = re.search(r"\d+", said)
    which = number[0] if number else "0"
    if said.endswith("Reply with yes or no alone."):
        return "no" if "nonsense" in said else "Yes."
    asked = said.rpartition("Message:\n")[2]
    if said.startswith("Rewrite"):
        for word, other in WORDS.items():
            asked = re.sub(rf"\b{word}\b", other, asked, flags=re.IGNORECASE)
        return f'Sure, here is the message:\n"{asked}"' if body["seed"] % 2 else f"{asked} Thanks."
    if said.startswith("Translate"):
        return (GERMAN if "into German" in said else ENGLISH).format(which)
    if said.startswith("Below is what a user asks"):
        return (
            f"Which gardener other than number {which} grows roses in winter, and for what reason?"
        )
    if said.startswith("Users sent"):
        return f"Name a tree that stands beside house {body['seed']}, and say how old it is."
    if said.startswith("Query:"):
        return f"Tulips number {body['seed']} came from Turkey, and were sold in Holland."
    return "Because of the greenhouse behind the house."


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "teacher"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = str(body["messages"][-1]["content"])
        server: Any = self.server
        with server.lock:
            server.asked.append(said)
        found = server.answer(said, body)
        if isinstance(found, tuple):
            self._send(*found)
            return
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": found}}  # fmt: skip
        self._send(200, {"object": "chat.completion", "choices": [choice]})

    def _send(self, status: int, value: Any, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(answer: Answer = teach) -> Iterator[Any]:
    """The server, with `url` and `asked`: what users said last in its requests."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answer, server.asked, server.lock = answer, [], threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
