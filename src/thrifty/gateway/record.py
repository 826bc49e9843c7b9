"""What happened, written down: metrics at once, a row for the request log on a queue. The last
step; it never waits.
"""

from __future__ import annotations

from typing import Any

from thrifty.gateway.call import HIT, Call
from thrifty.observe.log_writer import LogWriter
from thrifty.observe.metrics import GatewayMetrics, Observation, Saved


class Recorder:
    """Counts and logs calls that have ended."""

    def __init__(self, metrics: GatewayMetrics, writer: LogWriter | None, *, prompts: bool) -> None:
        self._metrics = metrics
        self._writer = writer
        self._prompts = prompts

    @property
    def wants_text(self) -> bool:
        """Whether prompts and answers are kept."""
        return self._prompts

    def record(self, call: Call) -> None:
        """Take one call."""
        deployment = call.deployment.name if call.deployment else ""
        version = call.version or (call.deployment.version if call.deployment else "")
        replica = call.replica.id if call.replica else ""
        usage = call.usage
        e2e_s = call.ended_s - call.received_s
        sent_s = call.sent_s or call.ended_s
        overhead_s = max(0.0, sent_s - call.received_s - call.queue_s)
        ttft_s = call.first_byte_s - call.received_s if call.first_byte_s else None
        tpot_s = None
        completion = usage.completion_tokens if usage else 0
        if call.stream and completion > 1 and call.cache != HIT and call.first_byte_s:
            tpot_s = (call.last_byte_s - call.first_byte_s) / (completion - 1)
        generated = call.cache != HIT
        self._metrics.requests.observe(
            Observation(
                deployment=deployment,
                version=version,
                replica=replica,
                endpoint=call.endpoint.value,
                status=call.status,
                error=call.error,
                cache=call.cache,
                e2e_s=e2e_s,
                queue_s=call.queue_s,
                overhead_s=overhead_s,
                ttft_s=ttft_s,
                tpot_s=tpot_s,
                prompt_tokens=usage.prompt_tokens if usage and generated else 0,
                completion_tokens=completion if generated else 0,
                cached_tokens=usage.cached_tokens if usage and generated else 0,
                saved=_saved(call) if call.status == 200 and not generated else None,
                timed=not call.priority,
            )
        )
        if self._writer is not None:
            user = call.body.get("user")
            row = (
                call.started_at_s,
                call.request_id,
                call.endpoint.value,
                deployment or None,
                version or None,
                replica or None,
                call.key.tenant if call.key else None,
                call.key.id if call.key else None,
                user[:256] if isinstance(user, str) else None,
                call.status,
                call.error,
                call.stream,
                call.cache,
                call.attempts,
                usage.prompt_tokens if usage else None,
                usage.completion_tokens if usage else None,
                usage.cached_tokens if usage else None,
                _to_ms(call.queue_s),
                None if ttft_s is None else _to_ms(ttft_s),
                None if tpot_s is None else _to_ms(tpot_s),
                _to_ms(e2e_s),
                round(overhead_s * 1e6, 1),
            )
            self._writer.put(row, self._make_text(call))

    def _make_text(self, call: Call) -> dict[str, Any] | None:
        if not self._prompts or not call.body:
            return None
        return {
            "request_id": call.request_id,
            "at_s": call.started_at_s,
            "prompt": call.exchange.body.decode("utf-8", "replace"),
            "answer": call.answer_text,
        }


def _saved(call: Call) -> Saved:
    usage, cost = call.usage, 0.0
    if usage is None:
        return Saved(call.tier, call.saved_s, 0, 0, 0.0)
    if call.deployment is not None:
        prices = call.deployment.settings
        cached = usage.cached_tokens
        cost = (
            (usage.prompt_tokens - cached) * prices.price_input
            + cached * prices.price_cached
            + usage.completion_tokens * prices.price_output
        ) / 1e6
    return Saved(call.tier, call.saved_s, usage.prompt_tokens, usage.completion_tokens, cost)


def _to_ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
