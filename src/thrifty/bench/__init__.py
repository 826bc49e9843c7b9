"""Load tests: a load generator, and statistics of its measurements.

workload.py   what is requested: lengths, shared prefixes, repeats, traces
client.py     one request, with the time of every token
load.py       how requests arrive: in a closed loop or an open one
summary.py    percentiles, throughput and goodput, with confidence intervals
plot.py       plots of the same
"""

from thrifty.bench.load import LoadPlan, run_load
from thrifty.bench.summary import LevelSummary, summarize
from thrifty.bench.workload import Workload

__all__ = ["LevelSummary", "LoadPlan", "Workload", "run_load", "summarize"]
