"""How many replicas run, within which bounds, and for which objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from thrifty.spec.section import Bytes, Count, Duration, Integer, Number, Section

MAX_REPLICAS = 1024
IDLE_AFTER_S = 300.0
"""The default of `idle_after`."""
BOUNDS = ("min", "max", "idle_after")
"""The keys of an autoscaled number of replicas, which exclude `count`."""


class ReplicasSpec(Section):
    """How many copies of the model run, and what each may use."""

    count: Integer = Field(
        1,
        ge=1,
        le=MAX_REPLICAS,
        description="How many copies run. In its place, `min` and `max` let the number follow the "
        "load.",
    )
    min: Integer | None = Field(
        None,
        ge=0,
        le=MAX_REPLICAS,
        description="The fewest copies. 0: none run while nobody asks. Default, if `max` is given: 1.",
    )
    max: Integer | None = Field(
        None,
        ge=1,
        le=MAX_REPLICAS,
        description="The most copies, those that start included. Default, if `min` is given: as "
        "`min`, at least 1.",
    )
    idle_after: Duration | None = Field(
        None,
        gt=0,
        description="With `min: 0`: the last copies stop after so long without a request. Default: "
        "5m.",
    )
    standby: Literal["stopped", "cached", "parked"] = Field(
        "stopped",
        description="With `min: 0`: what is kept of the last copy while nobody asks. `stopped`: "
        "nothing. `cached`: its model's files, in the page cache of this machine. `parked`: its process with the model loaded, and as little memory as the engine "
        "can do with; a request then waits milliseconds instead of a start.",
    )
    cpus: Integer | None = Field(
        None,
        ge=1,
        description="Cores for each copy. Default: the machine's cores, shared evenly among all "
        "copies; of an autoscaled deployment `max` copies count.",
    )
    gpus: Integer | None = Field(
        None,
        ge=1,
        le=64,
        description="GPUs that each copy takes: Kubernetes and Ray are asked for them, and "
        "`capacity.gpus` counts them. On this machine, copies are spread over its GPUs. Default: none "
        "(of this machine's, as many as the engine spreads a copy over).",
    )
    memory_limit: Bytes | None = Field(
        None, description="A copy that grows past this is drained and started anew."
    )
    start_timeout: Duration = Field(
        600.0, gt=0, description="A copy that is not ready by then is killed and counted as dead."
    )
    slots: Count | None = Field(
        None,
        ge=1,
        description="How many requests each copy gets at once; more wait in the gateway, in a fair "
        "order. Default: what the engine runs at once; without a bound for servers that others run.",
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> ReplicasSpec:
        given = [key for key in BOUNDS if getattr(self, key) is not None]
        if given and "count" in self.model_fields_set:
            raise ValueError(
                f"has both 'count' and {_join(given)}; write 'count' for a fixed number of copies, "
                "or 'min' and 'max' for one that follows the load"
            )
        if self.idle_after is not None and self.min != 0:
            raise ValueError(
                "has 'idle_after' without 'min: 0'; it says when the last copy stops, so write "
                "'min: 0', or leave 'idle_after' out"
            )
        if self.standby != "stopped" and self.min != 0:
            raise ValueError(
                f"has 'standby: {self.standby}' without 'min: 0'; it says what is kept while no copy "
                "runs, so write 'min: 0', or leave 'standby' out"
            )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"has 'min' {self.min} above 'max' {self.max}; swap or change them")
        return self

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The fewest and the most copies; None where their number is fixed."""
        if self.min is None and self.max is None:
            return None
        fewest = 1 if self.min is None else self.min
        return fewest, max(1, fewest) if self.max is None else self.max

    @property
    def fewest(self) -> int:
        """How many copies run at first, and at least."""
        return self.bounds[0] if self.bounds is not None else self.count


class SloSpec(Section):
    """The latencies that 95 of 100 requests should stay within."""

    ttft_p95: Duration | None = Field(
        None,
        gt=0,
        description="The time to the first token, from the request's arrival at the gateway, "
        "waiting included. Default: none.",
    )
    tpot_p95: Duration | None = Field(
        None, gt=0, description="The time for each further token. Default: none."
    )


class CapacitySpec(Section):
    """What all autoscaled replicas may take together, across deployments. Fixed numbers of replicas
    count as well, and are not reduced.
    """

    cpus: Integer | None = Field(
        None,
        ge=1,
        description="Cores. Default: the machine's, for replicas that load a model or say `cpus`.",
    )
    gpus: Integer | None = Field(
        None,
        ge=1,
        description="GPUs, as `replicas.gpus` says what each copy takes. Default: no bound.",
    )
    memory: Bytes | None = Field(
        None, gt=0, description="Memory. Default: what the machine has free."
    )
    per_hour: Number | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Cost, in the currency of `price_per_hour`: each replica costs its share of the "
        "machine's cores. Default: no bound.",
    )


def _join(keys: list[str]) -> str:
    return " and ".join(f"'{key}'" for key in keys)
