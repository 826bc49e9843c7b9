"""The errors that Thrifty raises deliberately, in one tree.

    ThriftyError
    ├── SpecError              the spec asks for something impossible
    ├── ArtifactError          a stored model is missing or unusable
    │   ├── SourceError        a source cannot be fetched
    │   ├── RemoteError        a remote cannot be read or written
    │   ├── IntegrityError     the content does not match its checksum
    │   └── FormatRefused      the format is not supported (pickle, unknown, not convertible)
    ├── EngineError            an engine cannot do this here
    ├── FleetError             processes: ports, replicas, a second controller
    ├── DatabaseError          the database is unavailable, or not ours
    │   ├── BadDataError       the database refuses the values to be written
    │   └── TextKeyError       texts cannot be encrypted: their key is missing
    ├── RedactionError         texts cannot be redacted as the spec asks
    ├── NameTakenError         another entry has this name
    ├── ControlError           the desired state cannot be changed
    │   └── StaleStateError    another writer has changed it in the meantime
    ├── BenchError             a load test cannot run
    ├── BatchError             a batch cannot run, or did not finish
    ├── DataError              a data set cannot be built or read
    │   ├── NoRowsError        nothing is left to build it of
    │   └── LeakError          what is learned from holds what models are judged by
    ├── EvaluationError        a model cannot be evaluated
    ├── CompressionError       a model cannot be compressed
    │   └── TrainingError      a training cannot run, or went wrong
    └── SimulationError        traffic cannot be simulated

A message says what was found, what the rule is, and what to do next. Errors that cross HTTP are
`thrifty.openai.errors.WireError`; errors of libraries are converted where they enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ThriftyError(Exception):
    """The root. The command line prints the message without a traceback and exits with
    `exit_code`.
    """

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One fault in a spec: its key path, such as `cache.exact.ttl`, and a description."""

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}, " if self.line else ""
        return f"{where}{self.path or 'the spec'}: {self.message}"


class SpecError(ThriftyError):
    """A spec that cannot be used; contains every fault that was found."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem], source: str = "the spec") -> None:
        self.problems = list(problems)
        self.source = source
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source} cannot be used:\n{lines}")


class ArtifactError(ThriftyError):
    """A stored model is missing or unusable."""


class SourceError(ArtifactError):
    """A model's source cannot be fetched."""


class RemoteError(ArtifactError):
    """A store elsewhere cannot be read or written."""


class IntegrityError(ArtifactError):
    """The bytes on disk are not those that were stored."""


class FormatRefused(ArtifactError):
    """A file's format is not supported."""


class EngineError(ThriftyError):
    """An engine cannot do what was requested, on this machine or at all."""


class FleetError(ThriftyError):
    """Processes cannot be started, found or stopped."""


class DatabaseError(ThriftyError):
    """The database cannot be opened, or is not one of ours."""


class BadDataError(DatabaseError):
    """The database refuses values, and would refuse them again: retrying is useless."""


class TextKeyError(DatabaseError):
    """The keys of encrypted texts are missing or unusable."""


class RedactionError(ThriftyError):
    """Texts cannot be redacted as the spec asks; they are not written."""


class NameTakenError(ThriftyError):
    """Another entry has the name that was asked for."""


class ControlError(ThriftyError):
    """The desired state of a service cannot be changed."""


class StaleStateError(ControlError):
    """The desired state has changed since it was read."""


class BenchError(ThriftyError):
    """A load test cannot run."""


class BatchError(ThriftyError):
    """A batch cannot run, or did not finish."""


class DataError(ThriftyError):
    """A data set cannot be built or read."""


class NoRowsError(DataError):
    """Nothing is left of what a data set was to be built from."""


class LeakError(DataError):
    """Rows to learn from hold what models are judged by."""

    exit_code = 3


class EvaluationError(ThriftyError):
    """A model cannot be evaluated."""


class CompressionError(ThriftyError):
    """A model cannot be compressed."""


class TrainingError(CompressionError):
    """A training cannot run on what it was given, or went wrong."""


class SimulationError(ThriftyError):
    """A trace, rates or an objective with which nothing can be simulated."""


class GateError(ThriftyError):
    """A model drops further below its reference than is allowed."""

    exit_code = 3
