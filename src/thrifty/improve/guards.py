"""Which feedback the loop learns from: bounds against poisoning, each counted and told.

Judgements are thumbs, ratings and corrections. They are left out in this order:

    outlier      of a user whose share of likes cannot be chance beside that of the other users
                 (Fisher's exact test, Bonferroni's correction over users)
    long         corrections that are far longer than the others (by the median deviation of the
                 logarithm of their lengths)
    per_user     beyond the newest answers that one user judged
    per_tenant   beyond the newest answers that were judged in one tenant
    agree        of an answer, or a correction, on which too few users agree

Of the rows that these give, no user may have more than his share (`bound_users`): judgements are
many, and a method learns from a part of them.
The same answer to the same prompt that was liked in one response and disliked in another is one
answer, which the majority decides.
Feedback that names no user counts as that of one user of its tenant.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from thrifty.db.feedback import Judged, Judgement
from thrifty.feedback.export import decide
from thrifty.spec.improve import ImproveGuardsSpec

OPINIONS = ("thumbs", "rating", "correction")
LEAST_VOTES = 8
"""Of a user with fewer votes, and of fewer corrections, nothing is said."""
OUTLIER_ALPHA = 0.001
"""The chance that any user of one service is called an outlier by accident."""
LONG_DEVIATIONS = 6.0
LEAST_DEVIATION = 0.3
"""In e-folds of a length: corrections that all have nearly one length make none of them strange."""

Row = dict[str, Any]
"""One of `feedback.export`."""
FindKey = Callable[[Judged], bytes | None]
User = tuple[str, str]
NOBODY: User = ("", "")


@dataclass
class Sifted:
    """The responses that are learned from, and how many judgements were left out, by reason."""

    judged: list[Judged]
    users: int
    """Users whose judgements count."""
    left_out: Counter[str] = field(default_factory=Counter)


def keep_judgements(judged: Sequence[Judged], ids: Set[int]) -> list[Judged]:
    """The judged responses with these judgements alone; those that have none are left out."""
    kept = (
        replace(one, judgements=[said for said in one.judgements if said.id in ids])
        for one in judged
    )
    return [one for one in kept if one.judgements]


def sift_feedback(judged: Sequence[Judged], guards: ImproveGuardsSpec, find_key: FindKey) -> Sifted:
    """Judged responses without the judgements that must not count. `find_key` tells the same
    answers to the same prompt by a key, or None where texts are not known.
    """
    left_out: Counter[str] = Counter()
    found = list(judged)
    if guards.outliers:
        strange = find_outliers(found)
        long = find_long(found)
        found = _keep(found, lambda one, said: (one.tenant, said.user or "") not in strange, "outlier", left_out)  # fmt: skip
        found = _keep(found, lambda one, said: said.id not in long, "long", left_out)
    for name, bound, key in (
        ("per_user", guards.per_user, _user_of),
        ("per_tenant", guards.per_tenant, _tenant_of),
    ):
        late = _find_beyond(found, bound, key)
        found = _keep(found, lambda one, said, late=late: said.id not in late, name, left_out)  # type: ignore[misc]
    keys = {one.response: find_key(one) for one in found if _has_vote(one) or guards.agree > 1}
    if guards.agree > 1:
        found = _require_agreement(_pool(found, keys), guards.agree, left_out)
    else:
        found = _pool_contradictions(found, keys)
    users = {_user_of(one, said) for one, said in _list_opinions(found)}
    return Sifted(found, len(users), +left_out)


def find_outliers(judged: Sequence[Judged]) -> set[User]:
    """Users whose share of likes differs from that of all others by more than chance."""
    likes: dict[User, int] = defaultdict(int)
    votes: dict[User, int] = defaultdict(int)
    for one in judged:
        by_user: dict[str, list[Judgement]] = defaultdict(list)
        for said in one.judgements:
            by_user[said.user or ""].append(said)
        for user, given in by_user.items():
            liked = decide(given)
            if liked is not None:
                votes[one.tenant, user] += 1
                likes[one.tenant, user] += liked
    candidates = [user for user, count in votes.items() if count >= LEAST_VOTES]
    all_votes, all_likes = sum(votes.values()), sum(likes.values())
    bound = OUTLIER_ALPHA / max(1, len(candidates))
    return {
        user
        for user in candidates
        if all_votes - votes[user] >= LEAST_VOTES
        and compare_shares(likes[user], votes[user], all_likes, all_votes) < bound
    }


def compare_shares(likes: int, votes: int, all_likes: int, all_votes: int) -> float:
    """Fisher's exact test, two-sided: the chance that so many of all likes, or a less likely
    number, fall on `votes` votes that were drawn out of all.
    """

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    whole = log_choose(all_votes, votes)
    least, most = max(0, votes - (all_votes - all_likes)), min(votes, all_likes)
    chances = [
        log_choose(all_likes, k) + log_choose(all_votes - all_likes, votes - k) - whole
        for k in range(least, most + 1)
    ]
    seen = chances[likes - least] + 1e-9
    return min(1.0, sum(math.exp(one) for one in chances if one <= seen))


def find_long(judged: Sequence[Judged]) -> set[int]:
    """The ids of corrections that are far longer than the others."""
    lengths = {
        said.id: math.log1p(len(said.text))
        for _, said in _list_opinions(judged)
        if said.kind == "correction" and said.text
    }
    if len(lengths) < LEAST_VOTES:
        return set()
    middle = statistics.median(lengths.values())
    spread = 1.4826 * statistics.median(abs(one - middle) for one in lengths.values())
    bound = middle + LONG_DEVIATIONS * max(spread, LEAST_DEVIATION)
    return {name for name, length in lengths.items() if length > bound}


def _user_of(one: Judged, said: Judgement) -> User:
    return one.tenant, said.user or ""


def _tenant_of(one: Judged, said: Judgement) -> User:
    return one.tenant, ""


def _list_opinions(judged: Iterable[Judged]) -> list[tuple[Judged, Judgement]]:
    return [(one, said) for one in judged for said in one.judgements if said.kind in OPINIONS]


def _keep(
    judged: Iterable[Judged],
    keep: Callable[[Judged, Judgement], bool],
    reason: str,
    left_out: Counter[str],
) -> list[Judged]:
    """The responses with the judgements that `keep` takes; those without any are gone."""
    found = []
    for one in judged:
        kept = [said for said in one.judgements if said.kind not in OPINIONS or keep(one, said)]
        left_out[reason] += len(one.judgements) - len(kept)
        if any(said.kind in OPINIONS for said in kept):
            found.append(replace(one, judgements=kept))
    return found


def _find_beyond(
    judged: Sequence[Judged], bound: int, key: Callable[[Judged, Judgement], User]
) -> set[int]:
    """The ids of judgements of all but the newest `bound` responses of each key."""
    newest: dict[User, dict[int, float]] = defaultdict(dict)
    for one, said in _list_opinions(judged):
        of_key = newest[key(one, said)]
        of_key[one.response] = max(of_key.get(one.response, 0.0), said.updated_s)
    late = {
        name: set(sorted(times, key=lambda response: (-times[response], response))[bound:])
        for name, times in newest.items()
        if len(times) > bound
    }
    return {
        said.id
        for one, said in _list_opinions(judged)
        if one.response in late.get(key(one, said), ())
    }


def _has_vote(one: Judged) -> bool:
    return any(said.kind in ("thumbs", "rating") for said in one.judgements)


def _pool_contradictions(
    judged: Sequence[Judged], keys: Mapping[int, bytes | None]
) -> list[Judged]:
    """Answers that were liked here and disliked there, word for word and to the same prompt, as one
    response, which the majority decides; others as they are.
    """
    decided: dict[tuple[str, bytes], set[bool]] = defaultdict(set)
    for one in judged:
        key, liked = keys.get(one.response), decide(one.judgements)
        if key is not None and liked is not None:
            decided[one.tenant, key].add(liked)
    both = {place for place, said in decided.items() if len(said) > 1}
    contradictory = {
        one.response: key
        for one in judged
        if (key := keys.get(one.response)) is not None and (one.tenant, key) in both
    }
    return _pool(judged, contradictory)


def _pool(judged: Sequence[Judged], keys: Mapping[int, bytes | None]) -> list[Judged]:
    """The same answers to the same prompt as one response, with the judgements of all. `keys` are
    by response; one without a key stays by itself.
    """
    pooled: dict[object, Judged] = {}
    for one in judged:
        key = keys.get(one.response)
        place: object = one.response if key is None else (one.tenant, key)
        known = pooled.get(place)
        if known is None:
            pooled[place] = replace(one, judgements=list(one.judgements))
        else:
            known.judgements.extend(one.judgements)
    return list(pooled.values())


def _require_agreement(
    judged: Sequence[Judged], agree: int, left_out: Counter[str]
) -> list[Judged]:
    found = []
    for one in judged:
        kept = [said for said in one.judgements if said.kind not in OPINIONS]
        opinions = [said for said in one.judgements if said.kind in ("thumbs", "rating")]
        liked = decide(opinions)
        voters = {
            said.user or "" for said in opinions if decide([said]) is not None
            and decide([said]) == liked
        }  # fmt: skip
        if liked is not None and len(voters) >= agree:
            kept += opinions
        else:
            left_out["agree"] += len(opinions)
        by_text: dict[str, list[Judgement]] = defaultdict(list)
        for said in one.judgements:
            if said.kind == "correction":
                by_text[" ".join((said.text or "").split())].append(said)
        for same in by_text.values():
            if len({said.user or "" for said in same}) >= agree:
                kept += same
            else:
                left_out["agree"] += len(same)
        if any(said.kind in OPINIONS for said in kept):
            found.append(replace(one, judgements=kept))
    return found


def bound_users(rows: Sequence[Row], judged: Iterable[Judged], users: int) -> tuple[list[Row], int]:
    """The rows of which no user is behind more than one part in `users`, so that at least so many
    users are behind what is learned; and how many rows went. A row that several users are behind
    counts for the one who has the fewest.
    """
    by_response = {one.response: one for one in judged}
    behind = [_find_behind(row, by_response) for row in rows]
    counts: Counter[User] = Counter()
    counted = {}
    for number in sorted(range(len(rows)), key=lambda number: len(behind[number])):
        counted[number] = min(behind[number], key=lambda user: (counts[user], user), default=NOBODY)
        counts[counted[number]] += 1
    most = max(counts.values(), default=0)
    while sum(min(count, most) for count in counts.values()) < users * most:
        most -= 1
    kept = []
    room = Counter(dict.fromkeys(counts, most))
    for number, row in enumerate(rows):
        if room[counted[number]]:
            room[counted[number]] -= 1
            kept.append(row)
    return kept, len(rows) - len(kept)


def _find_behind(row: Row, by_response: Mapping[int, Judged]) -> set[User]:
    """The users by whose judgements a row is what it is: those who wrote the correction, or whose
    votes are those of the majority.
    """
    given = row["provenance"]
    found: set[User] = set()
    for entry in given if isinstance(given, list) else [given]:
        one = by_response.get(entry["response"])
        if one is None:
            continue
        if entry["source"] in ("correction", "corrected"):
            said = [said for said in one.judgements if said.kind == "correction" and said.text]
            newest = max(said, key=lambda said: said.updated_s)
            found |= {_user_of(one, other) for other in said if other.text == newest.text}
            continue
        liked = decide(one.judgements)
        by_user: dict[User, list[Judgement]] = defaultdict(list)
        for judgement in one.judgements:
            by_user[_user_of(one, judgement)].append(judgement)
        found |= {user for user, said in by_user.items() if decide(said) is liked}
    return found


def hash_answer(prompt: object, answer: object) -> bytes:
    """The same for the same answer to the same prompt."""
    text = json.dumps([prompt, answer], sort_keys=True)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
