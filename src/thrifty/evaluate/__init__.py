"""How good a model is, with error bars: divergence from a reference, perplexity, tasks."""

from thrifty.evaluate.divergence import Divergence
from thrifty.evaluate.run import Evaluation, EvaluationOptions, evaluate, record_reference
from thrifty.evaluate.task_result import TaskResult

__all__ = [
    "Divergence",
    "Evaluation",
    "EvaluationOptions",
    "TaskResult",
    "evaluate",
    "record_reference",
]
