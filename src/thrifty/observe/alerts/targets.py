"""Tells targets: a webhook, Slack's incoming webhook, mail, or the controller's log.

Secrets are read from the environment when something is sent, and are in no message or error.
"""

from __future__ import annotations

import logging
import os
import smtplib
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import msgspec
import requests

from thrifty.db.alerts import AlertRow
from thrifty.errors import ThriftyError
from thrifty.observe.alerts.book import FIRING, RESOLVED
from thrifty.observe.alerts.settings import Target
from thrifty.observe.burn import PAGE
from thrifty.untrusted_text import sanitize_line
from thrifty.version import __version__

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
TEST = "test"
MAX_SUMMARY = 500
_PORTS = {"starttls": 587, "tls": 465, "none": 25}


class TargetError(ThriftyError):
    """A target could not be told; the message has no secret."""


def send_notice(
    target: Target, alert: AlertRow, status: str, environment: Mapping[str, str] = os.environ
) -> None:
    """Tell a target that an alert is `firing`, `resolved` or a `test`. Blocks, for seconds at most.
    Raises `TargetError`.
    """
    _SENDERS[target.kind](target, alert, status, environment)


def describe_alert(row: AlertRow, status: str) -> dict[str, Any]:
    """An alert as webhooks and scripts get it. Times are ISO 8601 in UTC."""
    return {
        "status": status,
        "key": row.key,
        "kind": row.kind,
        "severity": row.severity,
        "deployment": row.deployment or None,
        "version": row.version or None,
        "summary": row.summary,
        "since": write_time(row.since_s),
        "resolved": None if row.resolved_s is None else write_time(row.resolved_s),
        "runbook": row.runbook,
    }


def write_title(row: AlertRow, status: str) -> str:
    """One line."""
    place = " ".join(part for part in (row.deployment, row.version) if part)
    heads = {FIRING: row.severity.upper(), RESOLVED: "RESOLVED", TEST: "TEST"}
    title = f"[{heads[status]}] {place + ': ' if place else ''}{row.summary}"
    return sanitize_line(title, MAX_SUMMARY)


def write_time(at_s: float) -> str:
    """A time in ISO 8601; of a clock that is out of its mind, the number."""
    try:
        return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return repr(at_s)


def _send_webhook(
    target: Target, alert: AlertRow, status: str, environment: Mapping[str, str]
) -> None:
    _post(target, {"source": "thrifty", **describe_alert(alert, status)}, environment)


def _send_slack(
    target: Target, alert: AlertRow, status: str, environment: Mapping[str, str]
) -> None:
    mark = ":large_green_circle:" if status == RESOLVED else ":red_circle:"
    if status == TEST or (status == FIRING and alert.severity != PAGE):
        mark = ":large_yellow_circle:"
    title = write_title(alert, status)
    for plain, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        title = title.replace(plain, escaped)
    text = f"{mark} {title}\nsince {write_time(alert.since_s)}, {alert.runbook}"
    _post(target, {"text": text}, environment)


def _post(target: Target, body: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    url = _read(target.url_env, environment)
    try:
        answer = requests.post(
            url, data=msgspec.json.encode(body), timeout=TIMEOUT_S, allow_redirects=False,
            headers={"content-type": "application/json", "user-agent": f"thrifty/{__version__}"},
        )  # fmt: skip
    except (requests.RequestException, ValueError) as error:
        # The library's message holds the URL, which is a secret.
        raise TargetError(f"{target.name}: {type(error).__name__}") from None
    if not 200 <= answer.status_code < 300:
        raise TargetError(f"{target.name}: it answered with status {answer.status_code}")


def _send_mail(
    target: Target, alert: AlertRow, status: str, environment: Mapping[str, str]
) -> None:
    message = EmailMessage()
    message["Subject"] = f"Thrifty: {write_title(alert, status)}"
    message["From"] = target.sender or ""
    message["To"] = ", ".join(target.to)
    lines = [f"{name}: {value}" for name, value in describe_alert(alert, status).items()]
    message.set_content("\n".join(lines) + "\n")
    host, _, port = (target.server or "").partition(":")
    number = int(port or _PORTS[target.tls])
    try:
        context = ssl.create_default_context()
        if target.tls == "tls":
            connection: smtplib.SMTP = smtplib.SMTP_SSL(
                host, number, timeout=TIMEOUT_S, context=context
            )
        else:
            connection = smtplib.SMTP(host, number, timeout=TIMEOUT_S)
        with connection:
            if target.tls == "starttls":
                connection.starttls(context=context)
            if target.user_env is not None:
                user = _read(target.user_env, environment)
                connection.login(user, _read(target.password_env, environment))
            connection.send_message(message)
    except (smtplib.SMTPException, OSError, ValueError) as error:
        code = getattr(error, "smtp_code", None)
        reason = f"{type(error).__name__}{f' {code}' if code else ''}"
        raise TargetError(f"{target.name}: {reason}") from None


def _send_log(target: Target, alert: AlertRow, status: str, _: Mapping[str, str]) -> None:
    write = log.info if status in (RESOLVED, TEST) else log.warning
    write("%s (%s)", write_title(alert, status), alert.runbook)


def _read(name: str | None, environment: Mapping[str, str]) -> str:
    value = environment.get(name or "")
    if not value:
        raise TargetError(
            f"the environment variable {name} is not set; set it where 'thrifty up' starts"
        )
    return value


_SENDERS: dict[str, Callable[[Target, AlertRow, str, Mapping[str, str]], None]] = {
    "webhook": _send_webhook,
    "slack": _send_slack,
    "mail": _send_mail,
    "log": _send_log,
}
