"""Usage counts of keys in Redis, shared by gateway workers on all hosts.

The rules of `counts` as two Lua scripts, which Redis runs atomically. The time is that of Redis, so
the clocks of hosts do not matter. Each key has four entries, kept together by a hash tag:

    thrifty:limits:{ID}:window    requests (`r:SLOT`) and tokens (`t:SLOT`) of the last minute
    thrifty:limits:{ID}:running   running requests, with the end of their lease as score
    thrifty:limits:{ID}:reserved  the budget reserved for each running request
    thrifty:limits:{ID}:spend:M   spend of the month (`m`) and of its days (`DD`)

The slots of a worker that dies are freed after `LEASE_S`. Spend is never below what the database
knows, so budgets hold even if Redis loses its data.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from thrifty.db.keys import KeyLimits
from thrifty.gateway.admission.counts import (
    SLOT_S,
    SLOTS,
    Limit,
    QuotaRequest,
    QuotaUsage,
    Refusal,
)
from thrifty.gateway.state.shared_store import Argument, Script, SharedStore

LEASE_S = 60
RENEW_S = 20.0
"""Requests that run longer than this renew their lease."""
_NONE = -1
_MONTH_TTL_S = 40 * 86400

_TAKE = Script(
    f"""
local SLOT, SLOTS, LEASE = {SLOT_S}, {SLOTS}, {LEASE_S}
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
local slot = math.floor(now / SLOT)
local id = ARGV[1]
local rpm, tpm, concurrency = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local budget_day, budget_month = tonumber(ARGV[5]), tonumber(ARGV[6])
local tokens, cost = tonumber(ARGV[7]), tonumber(ARGV[8])
local day = ARGV[9]
local spent_day, spent_month = tonumber(ARGV[10]), tonumber(ARGV[11])

-- The minute: sums, and the slots in order.
local sums, slots, last = {{r = 0, t = 0}}, {{r = {{}}, t = {{}}}}, {{r = 0, t = 0}}
local dead = {{}}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local kind, number = string.sub(fields[i], 1, 1), tonumber(string.sub(fields[i], 3))
  local amount = tonumber(fields[i + 1])
  if number < slot - SLOTS then
    dead[#dead + 1] = fields[i]
  else
    sums[kind] = sums[kind] + amount
    table.insert(slots[kind], {{number, amount}})
    if number > last[kind] then last[kind] = number end
  end
end
for i = 1, #dead do redis.call('HDEL', KEYS[1], dead[i]) end

local function leaves(number) return math.max(0, math.ceil(((number + SLOTS + 1) * SLOT - now) * 1000)) end
local function reset(kind)
  if sums[kind] == 0 then return 0 end
  return leaves(last[kind])
end
local function wait(kind, excess)
  table.sort(slots[kind], function(a, b) return a[1] < b[1] end)
  local freed = 0
  for _, pair in ipairs(slots[kind]) do
    freed = freed + pair[2]
    if freed >= excess then return leaves(pair[1]) end
  end
  return SLOT * SLOTS * 1000
end
local function answer(verdict, used, wait_ms, where)
  return {{verdict, tostring(used), wait_ms, sums.r, sums.t, reset('r'), reset('t'), where}}
end

-- Running requests; leases of workers that died end here.
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('ZREM', KEYS[2], old)
  redis.call('HDEL', KEYS[3], old)
end
local running = redis.call('ZCARD', KEYS[2])
if concurrency >= 0 and running >= concurrency then return answer('concurrency', running, 1000, 0) end
if rpm >= 0 and sums.r >= rpm then
  return answer('requests', sums.r, wait('r', sums.r - rpm + 1), 0)
end
if tpm >= 0 then
  tokens = math.min(tokens, tpm)
  local excess = sums.t + tokens - tpm
  if excess > 0 then return answer('tokens', sums.t, wait('t', excess), 0) end
end

if budget_day >= 0 or budget_month >= 0 then
  local known_day = math.max(tonumber(redis.call('HGET', KEYS[4], day) or '0'), spent_day)
  local known_month = math.max(tonumber(redis.call('HGET', KEYS[4], 'm') or '0'), spent_month)
  redis.call('HSET', KEYS[4], day, string.format('%.17g', known_day), 'm', string.format('%.17g', known_month))
  redis.call('EXPIRE', KEYS[4], {_MONTH_TTL_S})
  local reserved = 0
  for _, amount in ipairs(redis.call('HVALS', KEYS[3])) do reserved = reserved + tonumber(amount) end
  if budget_day >= 0 then cost = math.min(cost, budget_day - known_day) end
  if budget_month >= 0 then cost = math.min(cost, budget_month - known_month) end
  cost = math.max(0, cost)
  local function check(name, budget, known)
    if budget < 0 then return nil end
    if known >= budget then return answer(name, known, -1, 0) end
    if reserved > 0 and known + reserved + cost > budget * (1 + 1e-9) then
      return answer(name, known + reserved, 1000, 0)
    end
    return nil
  end
  local refusal = check('budget_day', budget_day, known_day) or check('budget_month', budget_month, known_month)
  if refusal then return refusal end
  redis.call('HSET', KEYS[3], id, string.format('%.17g', cost))
  redis.call('EXPIRE', KEYS[3], 2 * LEASE)
end

redis.call('HINCRBY', KEYS[1], 'r:' .. slot, 1)
redis.call('HINCRBY', KEYS[1], 't:' .. slot, tokens)
redis.call('EXPIRE', KEYS[1], SLOT * (SLOTS + 2))
redis.call('ZADD', KEYS[2], now + LEASE, id)
redis.call('EXPIRE', KEYS[2], 2 * LEASE)
sums.r, sums.t, last.r, last.t = sums.r + 1, sums.t + tokens, slot, slot
return answer('ok', 0, 0, slot)
"""
)
"""KEYS: window, running, reserved, spend. ARGV: the request's id, the five limits (-1: none),
tokens, cost, the day of the month, the database's spend of day and month. Times are in ms."""

_SETTLE = Script(
    f"""
local SLOT, SLOTS = {SLOT_S}, {SLOTS}
local t = redis.call('TIME')
local slot = math.floor((tonumber(t[1]) + tonumber(t[2]) / 1000000) / SLOT)
local id, where, change, cost, day = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
redis.call('ZREM', KEYS[2], id)
redis.call('HDEL', KEYS[3], id)
if redis.call('HEXISTS', KEYS[1], 't:' .. where) == 0 then
  -- Redis has lost the reservation, or its minute is over.
  change = math.max(0, change)
end
if change ~= 0 then
  if where >= slot - SLOTS then
    redis.call('HINCRBY', KEYS[1], 't:' .. where, change)
  elseif change > 0 then
    redis.call('HINCRBY', KEYS[1], 't:' .. slot, change)
  end
  redis.call('EXPIRE', KEYS[1], SLOT * (SLOTS + 2))
end
if tonumber(cost) > 0 then
  redis.call('HINCRBYFLOAT', KEYS[4], day, cost)
  redis.call('HINCRBYFLOAT', KEYS[4], 'm', cost)
  redis.call('EXPIRE', KEYS[4], {_MONTH_TTL_S})
end
return 1
"""
)
"""KEYS: as for `_TAKE`. ARGV: the request's id, its slot, the change in tokens, its cost, the
day."""

_RENEW = Script(
    f"""
local t = redis.call('TIME')
local untils = tonumber(t[1]) + {LEASE_S}
for i = 1, #ARGV do redis.call('ZADD', KEYS[1], 'XX', untils, ARGV[i]) end
redis.call('EXPIRE', KEYS[1], {2 * LEASE_S})
redis.call('EXPIRE', KEYS[2], {2 * LEASE_S})
return 1
"""
)
"""KEYS: running, reserved. ARGV: ids of requests that still run."""


@dataclass(slots=True)
class SharedGrant:
    """A request counted in Redis."""

    id: str
    slot: int
    tokens: int
    usage: QuotaUsage


class SharedCounts:
    """The counts of limited keys in the shared store."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        # Request ids must differ between workers and hosts.
        self._prefix = secrets.token_hex(6)
        self._number = 0
        self._posts: set[asyncio.Future[Any]] = set()

    @property
    def available(self) -> bool:
        """Whether the store is available."""
        return self._store.available

    async def take(
        self, key_id: str, limits: KeyLimits, request: QuotaRequest, day: str
    ) -> SharedGrant | Refusal | None:
        """Count a request and reserve its estimated usage, or return a refusal. None if the store
        is unavailable. `day` is today (UTC), as `2026-11-23`.
        """
        self._number += 1
        ident = f"{self._prefix}-{self._number}"
        try:
            found = await self._store.run_script(
                _TAKE,
                _name_keys(key_id, day),
                [
                    ident,
                    *(_NONE if limit is None else limit for limit in vars(limits).values()),
                    request.tokens, repr(float(request.cost)), day[8:],
                    repr(float(request.spent_day)), repr(float(request.spent_month)),
                ],
            )  # fmt: skip
        except asyncio.CancelledError:
            # The client has gone; what Redis may have counted must be removed.
            self.settle(key_id, SharedGrant(ident, 0, 0, QuotaUsage()), 0, 0.0, day)
            raise
        return None if found is None else _read_answer(found, ident, limits, request)

    def settle(self, key_id: str, grant: SharedGrant, tokens: int, cost: float, day: str) -> None:
        """Replace a request's reservation by its actual usage. `day` is today. Does not wait."""
        self._post(
            _SETTLE,
            _name_keys(key_id, day),
            [grant.id, grant.slot, tokens - grant.tokens, repr(float(cost)), day[8:]],
        )

    def renew(self, key_id: str, grants: Iterable[SharedGrant]) -> None:
        """Extend the leases of running requests. Does not wait."""
        self._post(_RENEW, _name_keys(key_id, "")[1:3], [grant.id for grant in grants])

    async def finish(self) -> None:
        """Wait until everything has been sent."""
        if self._posts:
            await asyncio.wait(set(self._posts))

    def _post(self, script: Script, keys: list[str], arguments: list[Argument]) -> None:
        if not self._store.available:
            return
        post = asyncio.ensure_future(self._store.run_script(script, keys, arguments))
        self._posts.add(post)
        post.add_done_callback(self._posts.discard)


def _name_keys(key_id: str, day: str) -> list[str]:
    base = f"thrifty:limits:{{{key_id}}}"
    return [f"{base}:window", f"{base}:running", f"{base}:reserved", f"{base}:spend:{day[:7]}"]


def _read_answer(
    found: list[Any], ident: str, limits: KeyLimits, request: QuotaRequest
) -> SharedGrant | Refusal:
    verdict = found[0].decode()
    usage = QuotaUsage(int(found[3]), int(found[4]), int(found[5]) / 1e3, int(found[6]) / 1e3)
    if verdict != "ok":
        wait_ms = int(found[2])
        wait_s = None if wait_ms < 0 else max(0.001, wait_ms / 1e3)
        return Refusal(Limit(verdict), float(found[1]), wait_s, usage)
    tokens = request.tokens if limits.tpm is None else min(request.tokens, limits.tpm)
    return SharedGrant(ident, int(found[7]), tokens, usage)
