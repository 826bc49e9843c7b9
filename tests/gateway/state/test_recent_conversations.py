from __future__ import annotations

from thrifty.gateway.state.recent_conversations import GENERATION, RecentConversations


def test_the_newest_conversations_are_known_for_as_long_as_asked() -> None:
    now_s = 0.0
    recent = RecentConversations(lambda: now_s)
    recent.note("a", "old")
    recent.note("b", "old")
    now_s = 60.0
    recent.note("b", "new")
    assert dict(recent.list_since(30.0)) == {"b": "new"}
    assert dict(recent.list_since(90.0)) == {"a": "old", "b": "new"}


def test_memory_is_bounded_and_the_newest_stay() -> None:
    recent = RecentConversations()
    for number in range(5 * GENERATION + 1):
        recent.note(str(number), "old")
    known = [name for name, _ in recent.list_since(1e6)]
    assert len(known) == GENERATION + 1
    assert known[-1] == str(5 * GENERATION)
