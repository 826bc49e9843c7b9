"""How much a service can take: a load generator, and the statistics of what it saw.

workload.py   what is asked: lengths, shared prefixes, repeats, traces
client.py     one request, with the time of every token
load.py       how requests arrive: in a closed loop, or on their own
summary.py    percentiles, throughput and goodput, with confidence intervals
plot.py       the same as a picture
"""

from thrifty.bench.load import LoadPlan, run_load
from thrifty.bench.summary import LevelSummary, summarize
from thrifty.bench.workload import Workload

__all__ = ["LevelSummary", "LoadPlan", "Workload", "run_load", "summarize"]
