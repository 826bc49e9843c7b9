"""Metrics as OTLP has them, from the families that `/metrics` shows. Counts are totals since the
worker began (cumulative), so that a message that is lost costs resolution and no counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from thrifty.observe.otlp import conventions as names
from thrifty.observe.otlp.spans import SCOPE, make_attributes
from thrifty.observe.recorder.messages import Family, Sample


def make_points(
    families: Iterable[Family], resource: Resource, began_s: float, at_s: float
) -> ResourceMetrics:
    """The families as they were at `at_s`, counted since `began_s` (seconds since 1970)."""
    times = round(began_s * 1e9), round(max(began_s, at_s) * 1e9)
    metrics = [metric for family in families if (metric := _make_metric(family, times)) is not None]
    return ResourceMetrics(
        resource=resource, scope_metrics=[ScopeMetrics(scope=SCOPE, metrics=metrics)]
    )


def _make_metric(family: Family, times: tuple[int, int]) -> Metric | None:
    """None for a family without samples."""
    if not family.samples:
        return None
    metric = Metric(
        name=names.name_metric(family.name),
        description=family.documentation,
        unit=names.find_unit(family.name),
    )
    if family.type == "histogram":
        points = _make_histograms(family, times)
        metric.histogram.CopyFrom(
            Histogram(
                data_points=points, aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE
            )
        )
        return metric
    numbers = [_make_number(sample, times) for sample in family.samples]
    if family.type == "counter":
        metric.sum.CopyFrom(
            Sum(
                data_points=numbers,
                aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE,
                is_monotonic=True,
            )
        )
    else:
        metric.gauge.CopyFrom(Gauge(data_points=numbers))
    return metric


def _make_number(sample: Sample, times: tuple[int, int]) -> NumberDataPoint:
    return NumberDataPoint(
        attributes=_make_labels(sample),
        start_time_unix_nano=times[0],
        time_unix_nano=times[1],
        as_double=sample.value,
    )


def _make_histograms(family: Family, times: tuple[int, int]) -> list[HistogramDataPoint]:
    """One point for each set of labels."""
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    samples: dict[tuple[tuple[str, str], ...], Sample] = {}
    for sample in family.samples:
        key = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
        samples.setdefault(key, sample)
        if sample.name.endswith("_bucket"):
            buckets.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[key] = sample.value
    return [
        HistogramDataPoint(
            attributes=_make_labels(samples[key]),
            start_time_unix_nano=times[0],
            time_unix_nano=times[1],
            count=round(bounds[-1][1]),
            sum=sums.get(key, 0.0),
            explicit_bounds=[bound for bound, _ in bounds[:-1]],
            bucket_counts=[
                round(count - before) for (_, before), (_, count) in pairwise([(0.0, 0.0), *bounds])
            ],
        )
        for key, bounds in buckets.items()
    ]


def _make_labels(sample: Sample) -> list[KeyValue]:
    return make_attributes({names.name_label(k): v for k, v in sample.labels.items() if k != "le"})
