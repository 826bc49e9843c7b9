"""Telemetry for others' collectors: traces and metrics by OTLP over HTTP.

    conventions   OpenTelemetry's names for what Thrifty knows, in one table
    spans         the spans of a request that has ended
    points        metrics as OTLP has them
    exporter      a bounded queue, and the thread that sends

Needs the extra `otel` (`opentelemetry-proto`), the messages of the protocol as their project
generates them. OpenTelemetry's SDK is not used: it makes spans while a request runs, drops without
counting, and keeps by chance alone.
"""
