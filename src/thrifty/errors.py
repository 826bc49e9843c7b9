"""Every error that Thrifty raises on purpose, in one tree.

    ThriftyError
    ├── SpecError              the spec asks for something that cannot be
    ├── ArtifactError          a model, as a thing on disk
    │   ├── SourceError        cannot be fetched
    │   ├── IntegrityError     is not what its checksum says
    │   └── FormatRefused      is in a form that is not loaded (pickle, unknown, not convertible)
    ├── EngineError            an engine cannot do this here
    ├── FleetError             processes: ports, replicas, a second controller
    ├── DatabaseError          the database is away, or is not ours
    │   └── BadDataError       it is there, and refuses what was to be written
    ├── ControlError           the desired state cannot be changed as asked
    │   └── StaleStateError    another writer changed it meanwhile
    ├── BenchError             a load test cannot be run as asked
    ├── BatchError             a batch cannot be run, or did not come to its end
    ├── EvaluationError        a model cannot be evaluated as asked
    └── CompressionError       a model cannot be made smaller as asked

A message says what was seen, what the rule is, and what to do next. Errors that cross HTTP are
`thrifty.openai.errors.WireError`; errors of libraries become one of these where they enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ThriftyError(Exception):
    """The root. The command line prints its message without a traceback and exits with `exit_code`."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One fault in a spec: where it is (a key path such as `cache.exact.ttl`) and what is wrong."""

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}, " if self.line else ""
        return f"{where}{self.path or 'the spec'}: {self.message}"


class SpecError(ThriftyError):
    """A spec that is refused; carries every fault that was found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem], source: str = "the spec") -> None:
        self.problems = list(problems)
        self.source = source
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source} cannot be used:\n{lines}")


class ArtifactError(ThriftyError):
    """A model, as a thing on disk, is missing or unfit."""


class SourceError(ArtifactError):
    """A model's source cannot be fetched."""


class IntegrityError(ArtifactError):
    """Bytes on disk are not the bytes that were stored."""


class FormatRefused(ArtifactError):
    """A file is in a form that Thrifty does not load."""


class EngineError(ThriftyError):
    """An engine cannot do what is asked, on this machine or at all."""


class FleetError(ThriftyError):
    """Processes cannot be started, found or stopped as asked."""


class DatabaseError(ThriftyError):
    """The database cannot be opened or is not one of ours."""


class BadDataError(DatabaseError):
    """The database refuses values, and will do so again: nothing is gained by another try."""


class ControlError(ThriftyError):
    """The desired state of a service cannot be changed as asked."""


class StaleStateError(ControlError):
    """The desired state was changed since it was read."""


class BenchError(ThriftyError):
    """A load test cannot be run as asked."""


class BatchError(ThriftyError):
    """A batch cannot be run as asked, or did not come to its proper end."""


class EvaluationError(ThriftyError):
    """A model cannot be evaluated as asked."""


class CompressionError(ThriftyError):
    """A model cannot be made smaller as asked."""
