"""`thrifty keys`: make, list, revoke."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from thrifty.cli.show import err, print_json, print_line, print_table, tell
from thrifty.control.service_api import Actor
from thrifty.db import open_database
from thrifty.db.keys import (
    NO_LIMITS,
    Key,
    KeyLimits,
    Scope,
    create_key,
    keep_key,
    list_keys,
    revoke_key,
    rotate_key,
)
from thrifty.errors import ThriftyError
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.types import Role
from thrifty.units import parse_duration_s

_LAST_S = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


def run_create(
    name: str,
    role: str,
    tenant: str | None,
    limits: KeyLimits = NO_LIMITS,
    deployments: Sequence[str] | None = None,
    expires: str | None = None,
) -> None:
    """Make a key; print it alone on stdout. `expires` is a duration."""
    expires_s = None if expires is None else time.time() + _parse_duration(expires)
    scope = Scope(tuple(deployments) if deployments else None, expires_s)
    # The first key may come before the first service.
    with open_home(find_home(), create=True) as database:
        key, secret = create_key(
            database, name, role, tenant, limits, scope=scope,
            who=Actor.from_user("thrifty keys create").who,
        )  # fmt: skip
    print_line(secret)  # first: whatever comes after it, it is not lost
    shown = ", ".join(filter(None, (_describe_limits(key.limits), _describe_scope(key))))
    tell(
        f"This is the key {key.name!r} (role {key.role.value}, tenant {key.tenant}"
        f"{', ' + shown if shown else ''}). It is shown only now."
    )


def keep_keys(database_url: str, wanted: Sequence[str]) -> None:
    """Have an API key for each `ROLE=VARIABLE`, with the secret in that environment variable. Its
    name is the variable's. Raises `ThriftyError`.
    """
    if not wanted:
        return
    pairs = [_parse_kept(one) for one in wanted]
    database = open_database(database_url, migrate=True)
    try:
        for role, variable in pairs:
            secret = os.environ.get(variable)
            if not secret:
                raise ThriftyError(
                    f"--key {role}={variable}: the environment variable {variable} is not set; put "
                    "the key's secret in it"
                )
            keep_key(database, variable, role, secret)
    finally:
        database.close()


def _parse_kept(text: str) -> tuple[str, str]:
    role, equals, variable = text.partition("=")
    if not equals or not variable.isidentifier() or role not in list(Role):
        raise ThriftyError(
            f"--key {text}: write ROLE=VARIABLE, such as admin=ADMIN_KEY, with one of the roles "
            f"{', '.join(Role)} and the name of an environment variable"
        )
    return role, variable


def run_list(*, as_json: bool) -> None:
    """List keys."""
    with open_home(find_home()) as database:
        keys = list_keys(database)
    if as_json:
        print_json(
            {
                "keys": [
                    {"id": k.id, "name": k.name, "role": k.role.value, "tenant": k.tenant,
                     "hint": k.hint, "created_s": k.created_s, "limits": vars(k.limits),
                     "deployments": k.deployments, "expires_s": k.expires_s}
                    for k in keys
                ]
            }
        )  # fmt: skip
        return
    if not keys:
        print_line(
            "There are no keys: whoever reaches the gateway may call. Make one: "
            "thrifty keys create --name NAME"
        )
        return
    rows = [
        (k.name, k.role.value, k.tenant, k.hint, _describe_limits(k.limits) or "none",
         _describe_scope(k) or "none", _show_time(k.created_s))
        for k in keys
    ]  # fmt: skip
    print_table(("name", "role", "tenant", "key", "limits", "bounds", "created"), rows)


def run_rotate(name: str, keep: str) -> None:
    """Give a key another secret; print it alone on stdout. `keep` is a duration."""
    keep_s = _parse_duration(keep)
    with open_home(find_home()) as database:
        key, secret = rotate_key(
            database, name, keep_s, who=Actor.from_user("thrifty keys rotate").who
        )
    print_line(secret)
    until = "is refused from now on"
    if keep_s > 0 and key.previous_until_s is not None:
        until = f"stays good until {_show_time(key.previous_until_s)}"
    tell(
        f"This is the secret of the key {name!r} now; the one before {until}. It is shown only now."
    )


def run_revoke(name: str) -> None:
    """End a key."""
    with open_home(find_home()) as database:
        revoke_key(database, name, who=Actor.from_user("thrifty keys revoke").who)
    err.print(f"The key {name!r} is revoked; gateways refuse it from now on.")


def _parse_duration(text: str) -> float:
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise ThriftyError(str(error)) from None


def _show_time(at_s: float) -> str:
    # Keys that were made before there was a bound may have any time.
    return datetime.fromtimestamp(min(at_s, _LAST_S), UTC).isoformat(timespec="seconds")


def _describe_scope(key: Key) -> str:
    """What a key is bound to, and until when."""
    found = []
    if key.deployments is not None:
        found.append(f"only {', '.join(key.deployments)}")
    if key.expires_s is not None:
        over = key.expires_s <= time.time()
        found.append(f"{'expired' if over else 'expires'} {_show_time(key.expires_s)}")
    return ", ".join(found)


def _describe_limits(limits: KeyLimits) -> str:
    shown = {
        "rpm": limits.rpm, "tpm": limits.tpm, "concurrency": limits.concurrency,
        "a day": limits.budget_day, "a month": limits.budget_month,
    }  # fmt: skip
    return ", ".join(f"{value:,.10g} {name}" for name, value in shown.items() if value is not None)
