"""Alerts: what is found in a real request log, told once through real servers, and silenced."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from aiosmtpd.controller import Controller as MailServer
from aiosmtpd.smtp import AuthResult, LoginPassword
from sqlalchemy import delete, insert
from typer.testing import CliRunner

from thrifty.cli.app import app
from thrifty.control.alerting import describe_alerts, find_slow_faults, read_settings
from thrifty.db import Database, open_database
from thrifty.db.alerts import Silence, add_silence, count_verdicts, read_alerts, read_silences
from thrifty.db.audit import list_acts, verify_audit
from thrifty.db.desired import SERVICE, DesiredChange, change_desired
from thrifty.db.desired_state import DesiredService
from thrifty.db.drift import DriftLook, save_looks
from thrifty.db.keys import KeyLimits, create_key
from thrifty.db.quality_sums import QualitySum, write_checks
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.db.spend import exchange_spend
from thrifty.db.tables import alerts, rollups
from thrifty.errors import SpecError
from thrifty.fleet.ports import find_free_port
from thrifty.home import Home
from thrifty.observe.alerts import watch as watch_module
from thrifty.observe.alerts.book import OVER_S, Book
from thrifty.observe.alerts.counts import KEEP_MINUTES, Counts
from thrifty.observe.alerts.findings import (
    KINDS,
    RUNBOOKS,
    Finding,
    find_crash_loops,
    find_feedback_drops,
)
from thrifty.observe.alerts.settings import AlertSettings, Slo, Target
from thrifty.observe.alerts.targets import TargetError, send_notice
from thrifty.observe.alerts.watch import Watch
from thrifty.observe.burn import PAGE, TICKET
from thrifty.spec import parse_spec

ROOT = Path(__file__).parents[2]
NOW_S = 1_900_000_000.0
"""The tests' own time; the log's rows are around it."""
SLOS = [Slo("chat", "a", ttft_s=1.0)]
DEFAULTS = AlertSettings()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    yield database
    database.close()


class Log:
    """Rows of the request log."""

    def __init__(self, database: Database) -> None:
        self._log = RequestLog(database)
        self._number = 0

    def add(self, count: int, ago_s: float, **changes: Any) -> None:
        """So many requests, one after the other from `ago_s` before `NOW_S` on, a second each."""
        entries = []
        for index in range(count):
            self._number += 1
            values: dict[str, Any] = dict.fromkeys(COLUMNS)
            values |= {
                "id": self._number, "at_s": NOW_S - ago_s + index % 50, "origin": "client",
                "endpoint": "/v1/chat/completions", "deployment": "chat", "version": "a",
                "status": 200, "stream": True, "attempts": 1, "ttft_ms": 100.0, "tpot_ms": 10.0,
                "e2e_ms": 200.0, "rerouted": False, **changes,
            }  # fmt: skip
            entries.append(Entry(tuple(values.values())))
        assert not self._log.write(entries)


def test_requests_are_judged_as_the_metrics_judge_them(database: Database) -> None:
    log = Log(database)
    log.add(5, 60)
    log.add(2, 60, status=500, error="engine_error")
    log.add(1, 60, error="replica_lost")
    log.add(3, 60, ttft_ms=2000.0)
    log.add(3, 60, ttft_ms=2000.0, stream=False)
    log.add(9, 60, status=429, error="rate_limit_exceeded")
    log.add(4, 60, status=499, error="client_gone")
    log.add(7, 60, origin="batch", status=500)
    log.add(1, 60, version="b", ttft_ms=2000.0)
    counts = Counts(clock=lambda: NOW_S)
    counts.read(database, [watch_module._make_objective(SLOS[0])])
    totals = counts.sum_up(300)
    assert totals is not None
    first, other = totals["chat", "a"], totals["chat", "b"]
    assert (first.judged, first.failed, first.slow) == (14, 3, 3)
    assert (other.judged, other.failed, other.slow) == (1, 0, 0)


def find(database: Database, settings: AlertSettings = DEFAULTS) -> dict[str, str]:
    """Kinds and severities of what a fresh watch finds."""
    with database.begin() as connection:
        connection.execute(delete(alerts))  # what an earlier watch left
    watch = Watch(lambda: database, clock=lambda: NOW_S)
    watch.look(settings, SLOS, [])
    while not watch._counts.complete:
        watch.look(settings, SLOS, [])
    return {row.kind: row.severity for row in watch.alerts}


def test_a_fast_burn_is_a_page_and_a_slow_one_a_ticket(database: Database) -> None:
    log = Log(database)
    for hour in range(72):
        log.add(100, hour * 3600 + 120)
    assert find(database) == {}
    log.add(40, 120, status=500)
    assert find(database) == {"errors": PAGE}


def test_a_small_share_over_days_is_a_ticket(database: Database) -> None:
    log = Log(database)
    for hour in range(73):
        log.add(100, hour * 3600 + 120)
        log.add(2, hour * 3600 + 120, status=500)
    assert find(database) == {"errors": TICKET}


def test_what_is_over_in_the_short_window_and_little_traffic_are_no_alerts(
    database: Database,
) -> None:
    log = Log(database)
    log.add(400, 1800, status=500)
    log.add(50, 100)
    # It stopped half an hour ago: 5 minutes are fine, while 30 minutes and more are not.
    assert find(database) == {"errors": PAGE}
    log.add(400, 120)
    settings = AlertSettings(minimum=5000)
    assert find(database, settings) == {}


def test_answers_that_miss_the_slo_are_found_by_version(database: Database) -> None:
    log = Log(database)
    log.add(200, 120, version="b", ttft_ms=9000.0)
    assert find(database) == {}
    log.add(200, 120, ttft_ms=9000.0)
    assert find(database) == {"slow": PAGE}


def test_the_log_is_read_once_and_late_rows_count(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, now_s = Log(database), [NOW_S]
    log.add(10, 120)
    log.add(10, 3600 * 50)
    read: list[float] = []

    def note(database: Database, from_s: float, until_s: float, objectives: Any) -> Any:
        read.append(until_s - from_s)
        return count_verdicts(database, from_s, until_s, objectives)

    monkeypatch.setattr("thrifty.observe.alerts.counts.count_verdicts", note)
    counts = Counts(clock=lambda: now_s[0])
    while not counts.complete:
        counts.read(database, [])
    assert max(read) <= 1800
    read.clear()
    now_s[0] += 15
    log.add(5, 60, status=500)  # begun a minute ago, ended now
    counts.read(database, [])
    assert sum(read) <= 5 * 60
    for window_s, judged in ((3600, 15), (3 * 86400, 25)):
        totals = counts.sum_up(window_s)
        assert totals is not None
        assert totals["chat", "a"].judged == judged


def test_windows_that_were_not_read_yet_are_not_judged(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.observe.alerts.counts.BUDGET_S", 0.0)
    counts = Counts(clock=lambda: NOW_S)
    counts.read(database, [])
    assert not counts.complete
    assert counts.sum_up(3 * 86400) is None


@pytest.mark.parametrize("jump_s", [-86400.0, -30.0, 600.0, 86400.0, 400 * 86400.0])
def test_a_clock_that_jumps_raises_no_alert_and_loses_none(
    database: Database, jump_s: float
) -> None:
    log, now_s = Log(database), [NOW_S]
    log.add(500, 120)
    watch = Watch(lambda: database, clock=lambda: now_s[0])
    crash = [("chat", "a", "chat-0", "boom")]
    watch.look(AlertSettings(), SLOS, crash)
    assert [row.kind for row in watch.alerts] == ["crash_loop"]
    for _ in range(3):
        now_s[0] += jump_s
        watch.look(AlertSettings(), SLOS, crash)
        opened = [row for row in watch.alerts if row.resolved_s is None]
        assert [row.kind for row in opened] == ["crash_loop"]
        assert watch._counts._read_until == now_s[0] // 60
        assert len(watch._counts._minutes) <= KEEP_MINUTES + 1


def finding(severity: Any = PAGE, kind: str = "errors") -> Finding:
    return Finding(kind, severity, "chat", "a", "", "it fails")


def tell(book: Book, targets: list[Target], now_s: float, silences: Any = ()) -> list[str]:
    """Tell all that is due; gives the statuses."""
    due = book.list_due(targets, silences, 3600.0, now_s)
    for notice in due:
        book.note_told(notice, now_s)
    return [notice.status for notice in due]


def test_an_alert_is_told_once_then_again_after_a_while_then_its_end() -> None:
    book, targets = Book(), [Target("log")]
    book.note([finding()], {"errors"}, 1000.0)
    assert tell(book, targets, 1000.0) == ["firing"]
    for now_s in (1010.0, 1200.0, 4000.0):
        book.note([finding()], {"errors"}, now_s)
        assert tell(book, targets, now_s) == []
    book.note([finding()], {"errors"}, 4700.0)
    assert tell(book, targets, 4700.0) == ["firing"]
    book.note([], {"errors"}, 4800.0)
    assert tell(book, targets, 4800.0) == [], "it may come back"
    book.note([], {"errors"}, 4700.0 + OVER_S)
    assert tell(book, targets, 5100.0) == ["resolved"]
    assert tell(book, targets, 5200.0) == []
    book.note([finding()], {"errors"}, 9000.0)
    assert tell(book, targets, 9000.0) == ["firing"]


def test_what_was_not_looked_for_is_not_over_and_what_gets_worse_is_told() -> None:
    book, targets = Book(), [Target("log"), Target("log", severity="page", server="second")]
    book.note([finding(TICKET)], {"errors"}, 0.0)
    assert tell(book, targets, 0.0) == ["firing"]
    book.note([], {"budget"}, 10_000.0)
    assert all(row.resolved_s is None for row in book.rows)
    book.note([finding(PAGE)], {"errors"}, 100.0)
    assert tell(book, targets, 100.0) == ["firing", "firing"]


def test_silences_hold_until_they_end() -> None:
    book, targets = Book(), [Target("log")]
    book.note([finding()], {"errors"}, 0.0)
    for silence in (
        Silence(None, None, None, 100.0, ""),
        Silence("errors", "chat", None, 100.0, ""),
    ):
        assert tell(book, targets, 50.0, [silence]) == []
    assert tell(book, targets, 50.0, [Silence("slow", None, None, 100.0, "")]) == ["firing"]
    assert tell(book, targets, 50.0, [Silence(None, None, "b", 100.0, "")]) == []


def test_budgets_that_are_nearly_spent_are_found(database: Database) -> None:
    limits = KeyLimits(budget_day=10.0, budget_month=1000.0)
    key, _ = create_key(database, "ann", "user", None, limits)
    day = time.strftime("%Y-%m-%d", time.gmtime(NOW_S))
    exchange_spend(database, {(key.id, day): 7.9}, day, 0.0)
    assert find(database) == {}
    exchange_spend(database, {(key.id, day): 0.2}, day, 0.0)
    assert find(database) == {"budget": TICKET}
    exchange_spend(database, {(key.id, day): 2.0}, day, 0.0)
    assert find(database) == {"budget": PAGE}
    assert find(database, AlertSettings(budget=None)) == {}


def test_thumbs_that_turn_are_found_and_chance_is_not(database: Database) -> None:
    def add(ago_s: float, up: int, down: int, version: str = "a") -> None:
        empty = {column.name: 0 for column in rollups.columns if not column.nullable}
        row = empty | {
            "step_s": 3600, "at_s": int((NOW_S - ago_s) // 3600 * 3600), "deployment": "chat",
            "version": version, "up": up, "down": down,
        }  # fmt: skip
        with database.begin() as connection:
            connection.execute(insert(rollups).values(row))

    add(3 * 86400, 800, 200)
    add(7200, 70, 30)  # 10 points, of 100: it may be chance
    assert find(database) == {}
    add(7200, 100, 100, "b")
    assert find(database) == {"feedback": TICKET}
    few = {("chat", "a"): (0, 49)}
    assert not find_feedback_drops(few, {("chat", "a"): (900, 100)}, 0.1)


def test_alerts_outlive_the_controller_and_the_database(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [NOW_S]
    crash = [("chat", "a", "chat-0", "line one\nboom")]
    first = Watch(lambda: database, clock=lambda: now_s[0])
    first.look(AlertSettings(), [], crash)
    (row,) = read_alerts(database)
    assert (row.kind, row.severity, row.summary) == (
        "crash_loop", PAGE, "chat-0 ends again and again: boom",
    )  # fmt: skip
    now_s[0] += 60
    second = Watch(lambda: database, clock=lambda: now_s[0])
    second.look(AlertSettings(), [], crash)
    (known,) = second.alerts
    assert (known.since_s, known.told) == (row.since_s, row.told), "it is not told twice"
    # A database that takes nothing, as on a full disk: alerts go on, and are saved later.
    gone = open_database(f"sqlite:///{tmp_path}/t.db", migrate=False)
    with gone.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = 1")
    monkeypatch.setattr(watch_module, "AWAY_S", 0.0)
    third = Watch(lambda: gone, clock=lambda: now_s[0])
    monkeypatch.setattr(watch_module, "read_silences", _refuse)
    third.look(AlertSettings(), [], crash)
    third.look(AlertSettings(), [], crash)
    assert {row.kind for row in third.alerts} == {"crash_loop", "database"}
    gone.close()


def _refuse(database: Database) -> Any:
    raise OSError("no space left on device")


class Hook(http.server.BaseHTTPRequestHandler):
    got: list[dict[str, Any]]
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(json.loads(body))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running_hook() -> Iterator[Any]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    server.got, server.status = [], 200  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_webhooks_and_slack_are_told_what_happens_and_tried_again(database: Database) -> None:
    with running_hook() as hook:
        url = f"http://127.0.0.1:{hook.server_port}/secret-path"
        targets = (Target("webhook", url_env="HOOK"), Target("slack", url_env="SLACK"))
        settings = AlertSettings(targets=targets)
        watch = Watch(lambda: database, environment={"HOOK": url, "SLACK": url})
        crash = [("chat", "a", "chat-0", "<boom> & more")]
        hook.status = 500
        watch.look(settings, [], crash)
        assert len(hook.got) == 2
        hook.status = 200
        watch.look(settings, [], crash)
        watch.look(settings, [], crash)
        assert len(hook.got) == 4, "told once, after the failure"
        told, slack = hook.got[2], hook.got[3]
        assert told["source"] == "thrifty"
        assert (told["status"], told["kind"], told["version"]) == ("firing", "crash_loop", "a")
        assert told["runbook"].startswith(RUNBOOKS)
        assert set(slack) == {"text"}
        assert "&lt;boom&gt; &amp; more" in slack["text"]
        assert "secret-path" not in json.dumps([row.told for row in watch.alerts])


def test_a_target_that_cannot_be_told_is_an_error_without_its_secret() -> None:
    row = Book().rows
    assert row == []
    alert = make_row()
    with pytest.raises(TargetError, match="HOOK is not set"):
        send_notice(Target("webhook", url_env="HOOK"), alert, "test", {})
    url = "http://127.0.0.1:1/token-1234"
    with pytest.raises(TargetError) as error:
        send_notice(Target("slack", url_env="HOOK"), alert, "test", {"HOOK": url})
    assert "token-1234" not in str(error.value)
    with pytest.raises(TargetError):
        send_notice(Target("webhook", url_env="HOOK"), alert, "test", {"HOOK": "no url"})


def make_row() -> Any:
    book = Book()
    book.note([finding()], {"errors"}, NOW_S)
    return book.rows[0]


class Mailbox:
    """What a mail server keeps."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(envelope)
        return "250 OK"


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
def test_mail_goes_through_a_real_server_with_a_user() -> None:
    mailbox = Mailbox()

    def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        right = isinstance(data, LoginPassword) and data.password == b"open sesame"
        return AuthResult(success=right, handled=False)

    server = MailServer(
        mailbox, hostname="127.0.0.1", port=find_free_port(), authenticator=check, auth_required=True,
        auth_require_tls=False,
    )  # fmt: skip
    server.start()
    try:
        target = Target(
            "mail", server=f"127.0.0.1:{server.port}", tls="none", sender="thrifty@example.com",
            to=("ops@example.com", "two@example.com"), user_env="USER_NAME", password_env="PASSWORD",
        )  # fmt: skip
        environment = {"USER_NAME": "ann", "PASSWORD": "open sesame"}
        send_notice(target, make_row(), "firing", environment)
        (mail,) = mailbox.mails
        assert mail.rcpt_tos == ["ops@example.com", "two@example.com"]
        text = mail.content.decode()
        assert "Subject: Thrifty: [PAGE] chat a: it fails" in text
        assert "runbook: docs/runbooks.md#errors-burn" in text
        with pytest.raises(TargetError, match="SMTPAuthenticationError 535") as error:
            send_notice(target, make_row(), "firing", {**environment, "PASSWORD": "wrong one"})
        assert "wrong one" not in str(error.value)
    finally:
        server.stop()


def test_every_kind_has_a_section_in_the_runbooks() -> None:
    headings = {
        line[3:].lower().replace(" ", "-").replace(",", "")
        for line in (ROOT / "docs" / "runbooks.md").read_text().splitlines()
        if line.startswith("## ")
    }
    assert set(KINDS.values()) <= headings
    page = (ROOT / "docs" / "observe.md").read_text()
    assert all(f"| `{kind}` |" in page for kind in KINDS)


SPEC = """
name: chat
engine: echo
alerts:
  availability: 0.995
  repeat: 1h
  to:
    - {kind: webhook, url_env: HOOK, severity: page}
    - {kind: mail, server: "mail.example.com:25", sender: a@b.c, to: d@e.f}
"""


def test_a_spec_comes_to_settings() -> None:
    service = DesiredService(alerts=describe_alerts(parse_spec(yaml.safe_load(SPEC)).spec.alerts))
    settings = read_settings(service)
    assert (settings.availability, settings.repeat_s) == (0.995, 3600.0)
    assert [target.kind for target in settings.targets] == ["webhook", "mail"]
    assert settings.targets[1].to == ("d@e.f",)
    assert read_settings(DesiredService()) == AlertSettings()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{availability: 0.5}", "0.94"),
        ("{to: [{kind: webhook}]}", "needs 'url_env'"),
        ("{to: [{kind: slack, url_env: 'https://hooks.slack.com/T1'}]}", "url_env"),
        ("{to: [{kind: mail, server: x}]}", "needs 'server', 'sender' and 'to'"),
        ("{to: [{kind: log, server: x}]}", "has no server"),
        ("{to: [{kind: mail, server: x, sender: nobody, to: a@b.c}]}", "not the address"),
    ],
)
def test_wrong_targets_are_refused(written: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(yaml.safe_load(f"engine: echo\nalerts: {written}\n"))


def test_the_commands_list_silence_and_test(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.root.mkdir(parents=True)
    database = open_database(home.database_url, migrate=True)

    def run(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["alerts", *words])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    assert "No alert is open" in run("list").stdout
    Watch(lambda: database).look(AlertSettings(), [], [("chat", "a", "chat-0", "boom")])
    (shown,) = json.loads(run("list", "--json").stdout)["alerts"]
    assert (shown["kind"], shown["status"], shown["silenced_until"]) == (
        "crash_loop",
        "firing",
        None,
    )
    assert "chat-0 ends" in run("list").stdout
    run("silence", "crash_loop", "--deployment", "chat", "--for", "2h", "--why", "known")
    found = json.loads(run("list", "--json").stdout)
    assert found["alerts"][0]["silenced_until"]
    (silence,) = read_silences(database)
    assert (silence.kind, silence.deployment, silence.why) == ("crash_loop", "chat", "known")
    assert "no kind" in str(run("silence", "nonsense", code=1).exception)
    run("unsilence", str(silence.id))
    assert not read_silences(database)
    run("unsilence", "99", code=1)
    assert [act.act for act in list_acts(database, 10)] == ["alert.unsilence", "alert.silence"]
    assert verify_audit(database).fault is None
    assert "nothing is deployed" in str(run("test", code=1).exception)
    with running_hook() as hook:
        alerts = describe_alerts(
            parse_spec(yaml.safe_load(SPEC.partition("    - {kind: mail")[0])).spec.alerts
        )
        service = DesiredService(alerts=alerts)
        change_desired(
            database, lambda _: [DesiredChange(SERVICE, service)], kind="apply", who="test", why=""
        )
        assert json.loads(run("test", "--json", code=1).stdout)[0]["told"] is False
        monkeypatch.setenv("HOOK", f"http://127.0.0.1:{hook.server_port}/")
        assert json.loads(run("test", "--json").stdout)[0]["told"] is True
        assert hook.got[0]["status"] == "test"
    database.close()


def test_silences_that_are_over_are_gone(database: Database) -> None:
    add_silence(database, Silence(None, None, None, time.time() - 1, "old"), "me")
    assert read_silences(database) == []


def test_crash_loops_without_a_message_are_told() -> None:
    (one,) = find_crash_loops([("d", "v", "d-0", "  ")])
    assert one.summary == "d-0 ends again and again"


def test_worse_answers_and_drift_are_alerts(home: Home) -> None:
    database = open_database(home.database_url, migrate=True)
    good, bad = QualitySum(), QualitySum()
    good.add("refusal", 3000, 30, 3000, 30)
    bad.add("refusal", 3000, 300, 3000, 300)
    day = int(time.time() // 86400) * 86400
    sums = {(day, "chat", "a"): good, (day, "chat", "b"): bad}
    write_checks(database, 0, [], [], [], [], sums, None)
    save_looks(database, [DriftLook(day, "chat", "", "prompt_tokens", 900, 300, 0.3, 1e-9, True)])
    versions = {("chat", "a"), ("chat", "b")}
    settings = AlertSettings()
    found = find_slow_faults(database, settings, versions)
    assert [(one.kind, one.version, one.subject) for one in found] == [
        ("quality", "b", "refusal"), ("drift", "", "prompt_tokens"),
    ]  # fmt: skip
    assert "refusal: 10.0% of 3000 conversations, and 1.0% of 3000" in found[0].summary
    watch = Watch(lambda: database)
    watch.look(settings, [], [], found)
    assert {row.kind for row in watch.alerts if row.resolved_s is None} == {"quality", "drift"}
    off = msgspec.structs.replace(settings, quality_drop=None, drift=False)
    assert find_slow_faults(database, off, versions) == []
    assert find_slow_faults(database, settings, {("chat", "a")})[0].kind == "drift"
    database.close()
