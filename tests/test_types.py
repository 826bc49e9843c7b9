"""Roles: who may do what."""

from __future__ import annotations

import pytest

from thrifty.types import Role

ALLOWED = {
    Role.VIEWER: {Role.VIEWER},
    Role.USER: {Role.USER},
    Role.OPERATOR: {Role.OPERATOR, Role.USER, Role.VIEWER},
    Role.ADMIN: set(Role),
}


@pytest.mark.parametrize("role", Role)
def test_a_role_may_act_as_those_below_it(role: Role) -> None:
    assert {other for other in Role if role.may_act_as(other)} == ALLOWED[role]
    assert role in role.holders()
    assert Role.ADMIN in role.holders()


def test_the_earlier_name_of_viewers_is_read() -> None:
    assert Role("monitor") is Role.VIEWER
    assert [str(role) for role in Role] == ["viewer", "user", "operator", "admin"]
    with pytest.raises(ValueError, match="'boss' is not a valid Role"):
        Role("boss")
