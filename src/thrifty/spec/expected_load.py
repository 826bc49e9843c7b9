"""The section `load`: what a replica is expected to get, which `auto` decides for."""

from __future__ import annotations

from pydantic import Field

from thrifty.spec.section import Count, Integer, Number, Section

DEFAULT_STREAMS = (1, 8)
"""What `auto` decides for where the spec states no load: a single user, and several."""
MAX_STREAMS = 1024


class LoadSpec(Section):
    """The load that `auto` decides for: what a replica is expected to get."""

    streams: Integer | None = Field(
        None,
        ge=1,
        le=MAX_STREAMS,
        description="Requests at once. Default: 1 and 8, by the geometric mean of both speeds.",
    )
    prompt_tokens: Count = Field(64, ge=1, le=100_000, description="Tokens of a prompt, about.")
    output_tokens: Count = Field(48, ge=2, le=10_000, description="Tokens of an answer.")
    copying: Number = Field(
        0.0,
        ge=0,
        le=1,
        description="The share of requests whose answers repeat their prompts, as summaries and edits "
        "do. It decides `speculation: auto`.",
    )

    @property
    def levels(self) -> tuple[int, ...]:
        """The numbers of streams to measure."""
        return DEFAULT_STREAMS if self.streams is None else (self.streams,)
