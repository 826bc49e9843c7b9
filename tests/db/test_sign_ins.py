"""People who are signed in through an identity provider, as gateways read them."""

from __future__ import annotations

import time
from pathlib import Path

from thrifty.db import open_database
from thrifty.db.audit import list_acts
from thrifty.db.fleet import read_fleet
from thrifty.db.sign_ins import (
    Person,
    add_sign_in,
    end_sign_in,
    end_sign_ins,
    list_sign_ins,
)
from thrifty.types import Role

ANN = Person("0123456789abcdef", "oidc:ann@example.com", Role.OPERATOR, "console", "rules")


def test_a_person_counts_as_a_key_that_nobody_holds_until_the_end(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    before = read_fleet(database).change
    first, second = add_sign_in(database, ANN, 60.0), add_sign_in(database, ANN, 60.0)
    assert first != second
    state = read_fleet(database)
    assert state.change > before
    assert state.keys == [], "keys are something else"
    key = state.sign_ins[0].key
    assert (key.hash, key.name, key.role, key.tenant) == (
        first, "oidc:ann@example.com", Role.OPERATOR, "console",
    )  # fmt: skip
    assert abs(state.sign_ins[0].until_s - time.time() - 60) < 30
    assert end_sign_in(database, first)
    assert not end_sign_in(database, first)
    assert [one.key.hash for one in list_sign_ins(database)] == [second]
    add_sign_in(database, ANN, -1.0)
    assert [one.key.hash for one in list_sign_ins(database)] == [second], "the other one is over"
    assert end_sign_ins(database, "oidc:bob", "root") == 0
    assert end_sign_ins(database, "oidc:ann@example.com", "root") == 2
    assert list_sign_ins(database) == []
    acts = [one.act for one in list_acts(database, 10)]
    assert acts.count("console.sign_in") == 3
    assert acts.count("console.sign_out") == 2
    assert not any("ann" in one.details for one in list_acts(database, 10))
    database.close()
