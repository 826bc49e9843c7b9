"""Workers hand over rows, texts and traces to a recorder: nothing is lost or doubled when it is
killed, and what is lost is counted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from tests import parts
from tests.db.databases import KINDS, open_kind
from tests.db.test_database import row, url
from thrifty.db import Database, open_database
from thrifty.db.request_log import COLUMNS
from thrifty.db.tables import request_texts, requests
from thrifty.observe import log_state
from thrifty.observe.log_state import LogHealth
from thrifty.observe.metrics import GatewayMetrics
from thrifty.observe.recorder import line as lines
from thrifty.observe.recorder import recorder as recorders
from thrifty.observe.recorder.line import RecorderLine
from thrifty.observe.recorder.messages import Kind, RawTexts, Reader, Status, make_message
from thrifty.observe.recorder.recorder import Recorder
from thrifty.observe.recorder.sockets import End
from thrifty.observe.settings import ObserveSettings, OtlpSettings, RecorderSettings
from thrifty.observe.trace import Ended, Trace
from thrifty.unix_sockets import connect_to, listen_at

until = functools.partial(parts.until, timeout_s=120.0)
MAIL = "ann.example@example.com"
ENDPOINT = "/v1/chat/completions"


@pytest.fixture(params=KINDS)
def any_database(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


class RunningRecorder:
    """A recorder in a process of its own, which is killed and started anew behind its socket."""

    def __init__(self, folder: Path, database_url: str, **settings: Any) -> None:
        self.path = folder / "recorder.sock"
        self.log = folder / "recorder.log"
        self._listening = listen_at(self.path)
        self._settings = msgspec.json.encode(RecorderSettings(**settings)).decode()
        self._environment = {
            **os.environ, "THRIFTY_DATABASE_URL": database_url, "THRIFTY_ID_SECRET": "ab" * 32,
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        descriptor = self._listening.fileno()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "thrifty.observe.recorder", str(descriptor), self._settings],
                pass_fds=[descriptor], env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self, number: int = signal.SIGTERM) -> int:
        assert self._process is not None
        self.send(number)
        return await asyncio.to_thread(self._process.wait, 60)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._listening.close()


@contextlib.contextmanager
def recorder_of(folder: Path, database_url: str, **settings: Any) -> Iterator[RunningRecorder]:
    made = RunningRecorder(folder, database_url, **settings)
    made.start()
    try:
        yield made
    finally:
        made.close()


@contextlib.asynccontextmanager
async def line_to(recorder: RunningRecorder) -> AsyncIterator[tuple[RecorderLine, GatewayMetrics]]:
    metrics = GatewayMetrics()
    line = RecorderLine(functools.partial(connect_to, recorder.path), "worker", metrics)
    metrics.watch_log(lambda: line.state)
    line.start()
    try:
        yield line, metrics
    finally:
        await line.stop(0.1)


def read(metrics: GatewayMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"thrifty_{name}", labels) or 0.0


def names(database: Database) -> list[str]:
    with database.begin() as connection:
        found = connection.execute(select(requests.c.client_request_id)).scalars()
        return sorted(name for name in found if name)


def texts(question: str) -> RawTexts:
    body = {"model": "m", "messages": [{"role": "user", "content": question}]}
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}}]}
    return RawTexts(ENDPOINT, json.dumps(body).encode(), json.dumps(answer).encode(), False, "t")


def ended(*, notable: bool = False) -> Ended:
    values: dict[str, Any] = dict.fromkeys(COLUMNS)
    values |= {"at_s": 1e9, "endpoint": ENDPOINT, "status": 200, "cache": "miss"}
    trace = Trace("a" * 32, None, b"", True)
    return Ended(trace, tuple(values.values()), "id", 1.0, 1.1, 1.2, 1.4, 1.5, "", notable)


async def test_rows_and_texts_are_written_and_counted(
    any_database: Database, tmp_path: Path
) -> None:
    with recorder_of(tmp_path, str(any_database.engine.url.render_as_string(False))) as recorder:
        async with line_to(recorder) as (line, metrics):
            for number in range(300):
                line.put(row(f"{number:03d}"), texts(f"Is {MAIL} number {number}?"))
            await until(lambda: read(metrics, "log_rows_written_total") == 300)
            assert line.state.health is LogHealth.OK
            assert line.state.waiting_rows == 0
    assert names(any_database) == [f"{number:03d}" for number in range(300)]
    with any_database.begin() as connection:
        prompts = list(connection.execute(select(request_texts.c.prompt)).scalars())
    assert len(prompts) == 300
    assert all("<EMAIL_" in prompt and MAIL not in prompt for prompt in prompts)


async def test_a_killed_recorder_loses_and_doubles_no_row(
    any_database: Database, tmp_path: Path
) -> None:
    with recorder_of(tmp_path, str(any_database.engine.url.render_as_string(False))) as recorder:
        async with line_to(recorder) as (line, metrics):
            put = 0

            def put_some(count: int) -> None:
                nonlocal put
                for _ in range(count):
                    line.put(row(f"{put:05d}"))
                    put += 1

            for turn in range(4):
                put_some(700)
                # Killed before, within and after writing.
                await asyncio.sleep(0.1 * turn)
                before = read(metrics, "log_rows_written_total")
                put_some(300)
                await recorder.end(signal.SIGKILL)
                put_some(100)
                recorder.start()
                await until(lambda before=before: read(metrics, "log_rows_written_total") > before)
            await until(lambda: read(metrics, "log_rows_written_total") == put)
            assert line.state.waiting_rows == 0
            assert read(metrics, "log_rows_dropped_total", reason="queue_full") == 0
            assert read(metrics, "log_rows_dropped_total", reason="bad_row") == 0
    assert names(any_database) == [f"{number:05d}" for number in range(put)]


async def test_a_status_that_comes_first_on_a_connection_is_counted_once() -> None:
    metrics = GatewayMetrics()
    line = RecorderLine(lambda: pytest.fail("it is not started"), "worker", metrics)

    def tell(lost: int) -> None:
        line._receive(Kind.STATUS, memoryview(msgspec.msgpack.encode(Status(texts_lost=lost))))

    ours, theirs = socket.socketpair()
    with theirs:
        _, end = await asyncio.get_running_loop().create_connection(
            lambda: End(line._receive, lambda: None), sock=ours
        )
        line._note_connected(end)
        tell(5)
        line._note_lost()
        tell(2)  # of the next recorder, before the line goes on with it
        line._note_connected(end)
        tell(3)
        assert read(metrics, "log_texts_lost_total") == 8
        end.transport.abort()


async def test_rows_wait_for_a_recorder_that_is_away_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "QUEUE_ROWS", 1000)
    open_database(url(tmp_path), migrate=True).close()
    recorder = RunningRecorder(tmp_path, url(tmp_path))
    recorder.path.unlink()
    async with line_to(recorder) as (line, metrics):
        for number in range(1007):
            line.put(row(str(number)))
        assert read(metrics, "log_rows_dropped_total", reason="queue_full") == 7
        state = line.state
        assert (state.health, state.waiting_rows) == (LogHealth.BEHIND, 1000)
        assert "away" in state.reason
        monkeypatch.setattr(log_state, "STOPPED_S", 0.0)
        assert line.state.health is LogHealth.STOPPED
        assert (read(metrics, "log_up"), read(metrics, "log_rows_waiting")) == (0, 1000)
        monkeypatch.undo()
        recorder.close()
        with recorder_of(tmp_path, url(tmp_path)):
            await until(lambda: read(metrics, "log_rows_written_total") == 1000)
            assert line.state.health is LogHealth.OK


async def test_texts_are_bounded_and_rows_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_database(url(tmp_path), migrate=True).close()
    one = texts("x" * 1000)
    size = len(one.request) + len(one.answer)
    monkeypatch.setattr(lines, "QUEUE_TEXT_BYTES", size * 10)
    recorder = RunningRecorder(tmp_path, url(tmp_path))
    async with line_to(recorder) as (line, metrics):
        for number in range(25):
            line.put(row(str(number)), one)
        assert read(metrics, "log_texts_lost_total") == 15
        recorder.start()
        await until(lambda: read(metrics, "log_rows_written_total") == 25)
        line.put(row("later"), one)
        await until(lambda: read(metrics, "log_rows_written_total") == 26)
        assert read(metrics, "log_texts_lost_total") == 15
    recorder.close()


async def test_a_recorder_that_does_not_answer_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "SILENT_S", 0.2)
    open_database(url(tmp_path), migrate=True).close()
    with recorder_of(tmp_path, url(tmp_path)) as recorder:
        async with line_to(recorder) as (line, metrics):
            line.put(row("first"))
            await until(lambda: read(metrics, "log_rows_written_total") == 1)
            recorder.send(signal.SIGSTOP)
            line.put(row("second"))
            await until(lambda: line.state.health is LogHealth.BEHIND)
            assert "does not answer" in line.state.reason
            recorder.send(signal.SIGCONT)
            await until(lambda: read(metrics, "log_rows_written_total") == 2)
            assert line.state.health is LogHealth.OK


async def test_a_database_that_is_away_delays_rows_and_loses_none(tmp_path: Path) -> None:
    open_database(url(tmp_path), migrate=True).close()
    with recorder_of(tmp_path, url(tmp_path)) as recorder:
        async with line_to(recorder) as (line, metrics):
            line.put(row("before"))
            await until(lambda: read(metrics, "log_rows_written_total") == 1)
            locker = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
            locker.execute("BEGIN EXCLUSIVE")
            for number in range(6000):
                line.put(row(f"{number:04d}"))
            await until(lambda: line.state.health is not LogHealth.OK)
            await until(lambda: read(metrics, "database_up") == 0)
            assert "lock" in line.state.reason
            locker.execute("ROLLBACK")
            locker.close()
            await until(lambda: read(metrics, "log_rows_written_total") == 6001)
            assert read(metrics, "database_up") == 1
            assert read(metrics, "log_rows_dropped_total", reason="queue_full") == 0
    database = open_database(url(tmp_path), migrate=False)
    assert len(names(database)) == 6001
    database.close()


async def test_all_is_written_when_worker_and_recorder_are_told_to_stop(tmp_path: Path) -> None:
    open_database(url(tmp_path), migrate=True).close()
    with recorder_of(tmp_path, url(tmp_path)) as recorder:
        async with line_to(recorder) as (line, _):
            for number in range(5000):
                line.put(row(str(number)))
            await line.stop(60.0)
            assert line.state.health is LogHealth.STOPPED
        assert await recorder.end() == 0
    database = open_database(url(tmp_path), migrate=False)
    assert len(names(database)) == 5000
    database.close()


async def test_a_recorder_that_ends_first_leaves_rows_to_the_next(tmp_path: Path) -> None:
    """As when its settings change: it writes what it has, and the next one gets the rest."""
    open_database(url(tmp_path), migrate=True).close()
    with recorder_of(tmp_path, url(tmp_path)) as recorder:
        async with line_to(recorder) as (line, metrics):
            line.put(row("0000"))
            await until(lambda: read(metrics, "log_rows_written_total") == 1)
            for number in range(1, 2000):
                line.put(row(f"{number:04d}"))
                if number == 1000:
                    await asyncio.sleep(0.1)
            ending = asyncio.ensure_future(recorder.end())
            for number in range(2000, 3000):
                line.put(row(f"{number:04d}"))
                await asyncio.sleep(0)
            assert await ending == 0
            recorder.start()
            await until(lambda: read(metrics, "log_rows_written_total") == 3000)
    database = open_database(url(tmp_path), migrate=False)
    assert names(database) == [f"{number:04d}" for number in range(3000)]
    database.close()


async def test_no_file_holds_a_text_that_is_not_redacted(tmp_path: Path) -> None:
    open_database(url(tmp_path), migrate=True).close()
    with recorder_of(tmp_path, url(tmp_path)) as recorder:
        async with line_to(recorder) as (line, metrics):
            for number in range(200):
                line.put(row(str(number)), texts(f"{MAIL} {number}"))
            await until(lambda: read(metrics, "log_rows_written_total") > 0)
            await recorder.end(signal.SIGKILL)
            recorder.start()
            await until(lambda: read(metrics, "log_rows_written_total") == 200)
            files = [path for path in tmp_path.iterdir() if path.is_file()]
            assert {path.name for path in files} >= {"t.db", "recorder.log"}
            assert not [path for path in files if MAIL.encode() in path.read_bytes()]


async def test_texts_whose_names_cannot_be_found_are_left_out_and_counted(tmp_path: Path) -> None:
    database = open_database(url(tmp_path), migrate=True)
    with recorder_of(
        tmp_path, url(tmp_path), record_prompts=True, record_names="xx_no_such_model"
    ) as recorder:
        async with line_to(recorder) as (line, metrics):
            line.put(row("a"), texts("My name is Ann."))
            await until(lambda: read(metrics, "log_rows_written_total") == 1)
            assert read(metrics, "log_texts_lost_total") == 1
    with database.begin() as connection:
        assert not connection.execute(select(request_texts.c.id)).all()
    database.close()


async def test_what_no_message_holds_costs_that_row_alone(tmp_path: Path) -> None:
    database = open_database(url(tmp_path), migrate=True)
    with recorder_of(tmp_path, url(tmp_path)) as recorder:
        async with line_to(recorder) as (line, metrics):
            line.put(row("half", tenant="\ud800"))
            line.put(row("large", id=2**70))
            line.put(row("wrong", status="none"))
            line.put(row("good"))
            await until(lambda: read(metrics, "log_rows_written_total") == 2)
            await until(lambda: read(metrics, "log_rows_dropped_total", reason="bad_row") == 2)
            assert line.state.waiting_rows == 0
    assert names(database) == ["good", "half"]
    database.close()


async def test_traces_that_a_killed_recorder_had_are_counted(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        open_database(url(tmp_path), migrate=True).close()
        observe = ObserveSettings(otlp=OtlpSettings(nobody))
        with recorder_of(tmp_path, url(tmp_path), observe=observe) as recorder:
            async with line_to(recorder) as (line, metrics):
                line.put(row("first"))
                await until(lambda: read(metrics, "log_rows_written_total") == 1)
                for _ in range(50):
                    line.put_trace(ended())
                await until(lambda: b"takes nothing" in recorder.log.read_bytes())
                await recorder.end(signal.SIGKILL)
                await until(
                    lambda: sum(
                        read(metrics, "traces_dropped_total", reason=reason)
                        for reason in ("recorder_ended", "collector_away")
                    ) == 50
                )  # fmt: skip
                assert read(metrics, "traces_exported_total") == 0


async def test_traces_wait_up_to_a_bound_and_notable_ones_longer(tmp_path: Path) -> None:
    recorder = RunningRecorder(tmp_path, url(tmp_path))
    recorder.path.unlink()
    async with line_to(recorder) as (line, metrics):
        for _ in range(lines.QUEUE_TRACES):
            line.put_trace(ended())
        assert read(metrics, "traces_dropped_total", reason="queue_full") == lines.QUEUE_TRACES / 2
        for _ in range(lines.QUEUE_TRACES):
            line.put_trace(ended(notable=True))
        assert read(metrics, "traces_dropped_total", reason="queue_full") == lines.QUEUE_TRACES
    recorder.close()


async def test_a_worker_without_a_recorder_process_has_one_within(tmp_path: Path) -> None:
    database = open_database(url(tmp_path), migrate=True)
    recorder = Recorder(RecorderSettings(), url(tmp_path), b"s" * 32)
    await recorder.start()
    line = RecorderLine(recorder.connect, "worker", GatewayMetrics())
    line.start()
    for number in range(100):
        line.put(row(f"{number:03d}"))
    await line.stop(60.0)
    await recorder.stop()
    assert len(names(database)) == 100
    database.close()


def test_messages_are_cut_at_any_place() -> None:
    whole = b"".join(make_message(Kind.ROWS, ["x" * size]) for size in (0, 1, 300, 70_000))
    for step in (1, 7, 4096, len(whole)):
        reader, found = Reader(), []
        for start in range(0, len(whole), step):
            for kind, body in reader.feed(whole[start : start + step]):
                assert kind == Kind.ROWS
                found += msgspec.msgpack.decode(body)
        assert [len(text) for text in found] == [0, 1, 300, 70_000]


def test_a_message_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="4294967295"):
        list(Reader().feed(b"\x02\xff\xff\xff\xff"))


def test_a_socket_is_reached_however_long_its_path_is(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with listen_at(folder / "recorder.sock"), listen_at(folder / "recorder.sock") as listening:
        with connect_to(folder / "recorder.sock") as connected:
            accepted, _ = listening.accept()
            with accepted:
                accepted.send(b"x")
                time.sleep(0)
                connected.setblocking(True)
                assert connected.recv(1) == b"x"
        assert (folder / "recorder.sock").stat().st_mode & 0o777 == 0o600


async def test_a_recorder_takes_workers_after_it_could_open_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorders, "ACCEPT_PAUSE_S", 0.02)
    database = open_database(url(tmp_path), migrate=True)
    listening = listen_at(tmp_path / "recorder.sock")
    recorder = Recorder(RecorderSettings(), url(tmp_path), b"s" * 32)
    await recorder.start(listening)
    worker = socket.socket(socket.AF_UNIX)
    worker.setblocking(False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        worker.connect(str(tmp_path / "recorder.sock"))
        await until(lambda: "cannot be taken" in caplog.text)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    line = RecorderLine(lambda: worker, "worker", GatewayMetrics())
    line.start()
    line.put(row("after"))
    await line.stop(60.0)
    await recorder.stop()
    listening.close()
    assert names(database) == ["after"]
    database.close()


async def test_what_a_client_calls_its_request_is_redacted(tmp_path: Path) -> None:
    database = open_database(url(tmp_path), migrate=True)
    with recorder_of(tmp_path, url(tmp_path)) as recorder:
        async with line_to(recorder) as (line, metrics):
            line.put(row(MAIL))
            line.put(row("7d1f9f3e-6c0e-4f6a-9d27-2f6d0a3b1c55"))
            await until(lambda: read(metrics, "log_rows_written_total") == 2)
    written = names(database)
    assert "7d1f9f3e-6c0e-4f6a-9d27-2f6d0a3b1c55" in written
    assert [name for name in written if name.startswith("<EMAIL_")]
    database.close()
