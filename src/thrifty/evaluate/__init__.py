"""How good a model is, with error bars: divergence from a reference, perplexity, tasks."""

from thrifty.evaluate.divergence import Divergence
from thrifty.evaluate.run import Evaluation, TaskResult, evaluate, record_reference

__all__ = ["Divergence", "Evaluation", "TaskResult", "evaluate", "record_reference"]
