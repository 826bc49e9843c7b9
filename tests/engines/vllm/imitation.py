"""What vLLM's server says, without vLLM: started as vLLM is, it answers on the same socket.

It takes the command line of the real one, and answers in the bytes that vLLM 0.32 was seen to
write. What a request asks for is in its prompt:

    [1, ...]   so many tokens as allowed, each the number of its place
    [2]        a refusal before the stream, [3] one within it, [4] an early end of the process
    [5]        tokens without end, until the connection closes
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

REFUSAL = {"error": {"message": "it will not do", "type": "BadRequestError", "param": None,
                     "code": 400}}  # fmt: skip
ASKED: list[dict[str, Any]] = []
SLEEPING = threading.Event()
RUNNING: set[int] = set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        return "socket"

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, b"")
        elif self.path == "/v1/models":
            self.answer(200, json.dumps({"data": [{"id": "model", "max_model_len": 512}]}).encode())
        elif self.path == "/metrics/":
            lines = [f'vllm:num_requests_running{{engine="0"}} {len(RUNNING)}.0',
                     'vllm:kv_cache_usage_perc{engine="0"} 0.25',
                     'vllm:cache_config_info{kv_cache_size_tokens="4096"} 1.0', ""]  # fmt: skip
            self.answer(200, "\n".join(lines).encode())
        elif self.path == "/asked":
            self.answer(200, json.dumps(ASKED).encode())
        elif self.path == "/is_sleeping":
            self.answer(200, json.dumps({"is_sleeping": SLEEPING.is_set()}).encode())
        else:
            self.answer(404, b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path.startswith("/sleep"):
            SLEEPING.set()
            self.answer(200, b"{}")
        elif self.path == "/wake_up":
            SLEEPING.clear()
            self.answer(200, b"{}")
        else:
            self.generate(json.loads(body))

    def generate(self, asked: dict[str, Any]) -> None:
        ASKED.append(asked)
        assert not SLEEPING.is_set()
        first, sampling = asked["token_ids"][0], asked["sampling_params"]
        if first == 2:
            self.answer(400, json.dumps(REFUSAL).encode())
        elif first == 4:
            print("ValueError: the end was asked for", file=sys.stderr, flush=True)
            os._exit(3)
        elif not asked.get("stream"):
            prompt = [{str(t): {"logprob": -1.0}} for t in asked["token_ids"]]
            whole = {"choices": [{"token_ids": [0], "finish_reason": "length"}],
                     "prompt_logprobs": [None, *prompt[1:]]}  # fmt: skip
            self.answer(200, json.dumps(whole).encode())
        else:
            self.stream(first, sampling["max_tokens"] if first != 5 else 10**9)

    def stream(self, first: int, count: int) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        RUNNING.add(id(self))
        try:
            for place in range(count):
                if first == 3 and place == 1:
                    self.event(json.dumps(REFUSAL))
                    break
                end = "length" if place == count - 1 else None
                choice = {"index": 0, "finish_reason": end, "token_ids": [place]}
                self.event(json.dumps({"usage": None, "choices": [choice]}))
                time.sleep(0.001)
            else:
                details = {"prompt_tokens_details": {"cached_tokens": 7}}
                self.event(json.dumps({"usage": details, "choices": []}))
            self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        finally:
            RUNNING.discard(id(self))

    def event(self, data: str) -> None:
        text = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(text), text))
        self.wfile.flush()

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    print("INFO it starts")
    if "--fail" in sys.argv:
        print("(EngineCore pid=1) ERROR [core.py:1] ValueError: no such model", file=sys.stderr)
        print("RuntimeError: Engine core initialization failed. See root cause above.")
        sys.exit(1)
    path = sys.argv[sys.argv.index("--uds") + 1]
    assert Path(path).parent.stat().st_mode & 0o077 == 0, "others can reach the socket"
    Server(path, Handler).serve_forever()
