"""Records ended calls: metrics at once, and a row for the request log, which the recorder gets. The
last step; it never waits.
"""

from __future__ import annotations

from thrifty.gateway.state.call import HIT, Call, Origin
from thrifty.gateway.state.estimate import compute_cost
from thrifty.observe.metrics import GatewayMetrics
from thrifty.observe.recorder.line import RecorderLine
from thrifty.observe.recorder.messages import RawTexts
from thrifty.observe.request_metrics import Observation, Saved, Verdict
from thrifty.observe.trace import Ended, Tracer
from thrifty.openai.fields import MAX_USER, Endpoint, encode_tags, read_user


class Recorder:
    """Counts and logs ended calls."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        line: RecorderLine | None,
        *,
        prompts: bool,
        tracer: Tracer | None = None,
    ) -> None:
        """`line` is None where there is no request log, `tracer` where traces are off."""
        self._metrics = metrics
        self._line = line
        self._prompts = prompts
        self._tracer = tracer

    def record(self, call: Call) -> None:
        """Record one call."""
        target, delivery, outcome, cache = call.target, call.delivery, call.outcome, call.cache
        deployment = target.deployment.name if target is not None else ""
        label, endpoint = call.label, call.endpoint.value
        replica = cache.replica or (delivery.replica.id if delivery.replica else "")
        usage = outcome.usage
        e2e_s = outcome.ended_s - call.received_s
        sent_s = delivery.sent_s or outcome.ended_s
        overhead_s = max(0.0, sent_s - call.received_s - delivery.queue_s)
        ttft_s = delivery.first_byte_s - call.received_s if delivery.first_byte_s else None
        tpot_s = None
        prompt = completion = cached = cost = None
        if usage is not None:
            prompt, completion = usage.prompt_tokens, usage.completion_tokens
            cached, cost = usage.cached_tokens, _find_cost(call)
        generated = cache.result != HIT
        stream = call.parsed is not None and call.parsed.stream
        if stream and completion and completion > 1 and generated and delivery.first_byte_s:
            tpot_s = (delivery.last_byte_s - delivery.first_byte_s) / (completion - 1)
        verdict = _judge(call, ttft_s if stream else None, tpot_s)
        if call.origin.counts:
            self._metrics.requests.observe(
                # By position: names would take four times as long.
                Observation(
                    deployment,
                    label,
                    replica,
                    endpoint,
                    outcome.status,
                    outcome.error,
                    cache.result,
                    e2e_s,
                    delivery.queue_s,
                    overhead_s,
                    ttft_s if stream else None,
                    tpot_s,
                    prompt or 0 if generated else 0,
                    completion or 0 if generated else 0,
                    cached or 0 if generated else 0,
                    _saved(call) if outcome.status == 200 and not generated else None,
                    not call.priority,
                    verdict,
                    call.tenant,
                )
            )
        if self._line is None and call.trace is None:
            return
        user = tags = limit = None
        if call.parsed is not None:
            body = call.parsed.body
            user = read_user(body)
            limit = body.get("max_completion_tokens") or body.get("max_tokens")
            if call.endpoint is Endpoint.CHAT:
                tags = body.get("metadata")
        row = (
            call.response_id.number,
            call.started_at_s,
            call.client_request_id,
            target.conversation_id or None if target is not None else None,
            call.origin.value,
            call.shadow_of,
            target is not None and (target.rerouted or target.fell_back),
            endpoint,
            deployment or None,
            label or None,
            replica or None,
            call.key.tenant if call.key else None,
            call.key.id if call.key else None,
            user[:MAX_USER] if isinstance(user, str) else None,
            outcome.status,
            outcome.error,
            stream,
            cache.result,
            delivery.attempts,
            prompt,
            completion,
            cached,
            # Rounded to whole microseconds: rounding to digits goes by way of a decimal text.
            round(delivery.queue_s * 1e6) / 1e3,
            None if ttft_s is None else round(ttft_s * 1e6) / 1e3,
            None if tpot_s is None else round(tpot_s * 1e6) / 1e3,
            round(e2e_s * 1e6) / 1e3,
            round(overhead_s * 1e7) / 10,
            encode_tags(tags) if tags else None,
            cost,
            limit if type(limit) is int and 0 < limit <= _MOST_TOKENS else None,
        )
        if self._tracer is not None and call.trace is not None:
            late_s = ttft_s if ttft_s is not None else e2e_s
            notable = verdict in _NOTABLE or late_s >= self._tracer.slow_s
            if self._tracer.keeps(call.trace, notable=notable):
                self._tracer.put(
                    Ended(
                        call.trace, row, call.response_id.text, call.received_s, delivery.sent_s,
                        delivery.first_byte_s, delivery.last_byte_s, outcome.ended_s, cache.tier,
                        notable,
                    )
                )  # fmt: skip
        if self._line is None:
            return
        recorded = call.origin.counts or call.origin is Origin.SHADOW
        if not self._prompts or call.parsed is None or not recorded:
            self._line.put(row)
            return
        texts = RawTexts(
            endpoint, call.exchange.body, outcome.answer, outcome.streamed, call.tenant
        )
        self._line.put(row, texts)


_MOST_TOKENS = 2**31 - 1
_NOTABLE = (Verdict.FAILED, Verdict.SLOW)


def _judge(call: Call, ttft_s: float | None, tpot_s: float | None) -> Verdict | None:
    """How a call counts for the objectives of the version that answered."""
    status, error = call.outcome.status, call.outcome.error
    if 400 <= status < 500:
        return None
    if status >= 500 or error is not None:
        return Verdict.FAILED
    if call.target is None:
        return Verdict.GOOD
    settings = call.target.version.settings
    if (
        ttft_s is not None
        and settings.ttft_objective_s is not None
        and ttft_s > settings.ttft_objective_s
    ) or (
        tpot_s is not None
        and settings.tpot_objective_s is not None
        and tpot_s > settings.tpot_objective_s
    ):
        return Verdict.SLOW
    return Verdict.GOOD


def _saved(call: Call) -> Saved:
    usage = call.outcome.usage
    tier, saved_s = call.cache.tier, call.cache.saved_s
    if usage is None:
        return Saved(tier, saved_s, 0, 0, 0.0)
    return Saved(
        tier, saved_s, usage.prompt_tokens, usage.completion_tokens, _find_cost(call) or 0.0
    )


def _find_cost(call: Call) -> float | None:
    """What the call's tokens cost by the prices of its version, from a cache or not; None where
    there are no prices.
    """
    usage, target = call.outcome.usage, call.target
    if usage is None or target is None:
        return None
    return (
        compute_cost(
            target.version.settings, usage.prompt_tokens, usage.completion_tokens,
            usage.cached_tokens,
        )
        or None
    )  # fmt: skip
