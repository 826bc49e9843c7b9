"""A Helm chart from the same objects as the plain manifests.

Objects are made once more with marks in place of what a chart's values keep open. In the text, each
mark becomes an expression of Helm's template language.
"""

from __future__ import annotations

import json
import re
from typing import Any

from thrifty.deploy.base import Files, Request, Target, make_header
from thrifty.deploy.commands import LINES, Commands, Place, Step
from thrifty.deploy.kubernetes import CANNOT, Group, make_groups
from thrifty.deploy.kubernetes_front import find_hpa_fault
from thrifty.deploy.kubernetes_options import KubernetesOptions
from thrifty.deploy.yaml_text import dump_documents, dump_yaml
from thrifty.version import __version__

_MARK = re.compile(r"XHELMX(\d+)X")
_REPLICAS = re.compile(r"^( *)replicas: XHELMX(\d+)X\n", re.MULTILINE)


class ChartValues:
    """Collects what stays open, and the expressions for it."""

    everything = True

    def __init__(self) -> None:
        self.defaults: dict[str, Any] = {}
        """The chart's values, nested."""
        self.expressions: list[str] = []
        self._replicas: set[int] = set()

    def text(self, path: str, default: Any) -> Any:
        """A quoted text."""
        self.set_default(path, default)
        return self._mark(f"{{{{ .Values.{path} | quote }}}}")

    def number(self, path: str, default: int) -> Any:
        """A number; Helm reads those of a file as floats."""
        self.set_default(path, default)
        return self._mark(f"{{{{ int .Values.{path} }}}}")

    def total(self, each: int, replicas: str, count: int, most: int, autoscaled: bool) -> Any:
        """By the autoscaler's maximum where one is chosen."""
        self.set_default(replicas, count)
        self.set_default("autoscale.max", most)
        chosen = (
            f'(ternary .Values.{replicas} .Values.autoscale.max (eq .Values.autoscale.kind "none"))'
        )
        return self._mark(f"{{{{ mul {each} (int {chosen}) }}}}")

    def replicas(self, path: str, count: int, autoscaled: bool) -> dict[str, Any]:
        """The key, but for charts with an autoscaler."""
        self.set_default(path, count)
        return {"replicas": self._mark(f"{{{{ int .Values.{path} }}}}")}

    def on_demand(self, least: int) -> Any:
        """By the values: their `autoscale.min` may be 0."""
        self.set_default("autoscale.min", least)
        scales = '(ne .Values.autoscale.kind "none")'
        return self._mark(f"{{{{ and {scales} (eq (int .Values.autoscale.min) 0) }}}}")

    def annotations(self) -> dict[str, Any]:
        """A checksum over all values."""
        return {"thrifty/values-checksum": self._mark("{{ toJson .Values | sha256sum }}")}

    def set_default(self, path: str, default: Any) -> None:
        """What a value is where nobody sets it."""
        *parents, last = path.split(".")
        section = self.defaults
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = default

    def fill(self, text: str) -> str:
        """`text` with expressions in place of marks; what looks like one otherwise is kept as it is."""
        text = re.sub(r"\{\{|\}\}", lambda found: f'{{{{ "{found.group()}" }}}}', text)
        text = _REPLICAS.sub(
            r'\1{{- if eq .Values.autoscale.kind "none" }}'
            "\n\\1replicas: XHELMX\\2X\n\\1{{- end }}\n",
            text,
        )
        return _MARK.sub(lambda found: self.expressions[int(found.group(1))], text)

    def _mark(self, expression: str) -> str:
        self.expressions.append(expression)
        return f"XHELMX{len(self.expressions) - 1}X"


def render_helm(request: Request) -> Files:
    """The chart's files."""
    options: KubernetesOptions = request.options
    values = ChartValues()
    values.set_default("autoscale.kind", options.autoscale)
    values.set_default("monitoring", options.monitoring)
    header = make_header(request, "helm")
    groups = list(make_groups(request, values, None))
    templates = {
        f"templates/{group.file}": _make_template(header, group, values) for group in groups
    }
    chart = {
        "apiVersion": "v2",
        "name": "thrifty",
        "description": "Serves open language models: a gateway and replicas.",
        "type": "application",
        "version": f"0.1.0+{request.checksum[:12]}",
        "appVersion": __version__,
        "kubeVersion": ">=1.33.0-0",
    }
    return {
        "Chart.yaml": header + dump_yaml(chart),
        "values.schema.json": _make_schema(request),
        "values.yaml": header + dump_yaml(values.defaults),
        **templates,
    }


def _make_schema(request: Request) -> str:
    """What Helm refuses: an autoscaler that the chart has not would leave nobody to write `replicas`."""
    kinds = ["none", "hpa", "keda"]
    if any(map(find_hpa_fault, request.service.own_versions)):
        kinds.remove("hpa")
    count = {"type": "integer", "minimum": 1}
    schema = {
        "$comment": f"spec checksum: sha256:{request.checksum}",
        "type": "object",
        "properties": {
            "image": {"type": "string", "minLength": 1},
            "monitoring": {"type": "boolean"},
            "autoscale": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "kind": {"enum": kinds},
                    "min": {**count, "minimum": 0},
                    "max": count,
                    "targetInFlight": {"type": "string"},
                    "prometheus": {"type": "string"},
                },
            },
        },
    }
    return json.dumps(schema, indent=2) + "\n"


def _make_template(header: str, group: Group, values: ChartValues) -> str:
    text = header + values.fill(dump_documents(group.objects))
    if group.when is None:
        return text
    return f"{{{{- if {group.when} }}}}\n{text}{{{{- end }}}}\n"


def make_helm_commands(request: Request, place: Place) -> Commands:
    """A release in a namespace of the same name."""
    config = ("--kubeconfig", place.kubeconfig) if place.kubeconfig else ()
    helm = ("helm", "--namespace", place.name, *config)
    return Commands(
        install="https://helm.sh/docs/intro/install",
        steps=(
            Step(
                f"the release {place.name}",
                (*helm, "upgrade", "--install", place.name, str(place.folder), "--create-namespace"),
                ((*helm, "uninstall", place.name, "--ignore-not-found"),),
            ),
        ),
        status=(*helm, "status", place.name),
        logs=("kubectl", "--namespace", place.name, *config, "logs", "--selector",
              "app.kubernetes.io/name=thrifty", "--tail", LINES, "--prefix"),
    )  # fmt: skip


TARGET = Target(
    name="helm",
    summary="A Helm chart with the objects of `kubernetes`, and values for what clusters differ in",
    options=KubernetesOptions,
    cannot=(
        *CANNOT,
        "The models, versions and their weights are fixed when the chart is rendered: change the "
        "spec and render it again, then `helm upgrade`.",
    ),
    render=render_helm,
    commands=make_helm_commands,
    fleets=frozenset({"kubernetes"}),
    images=True,
    next_steps=(
        "helm upgrade --install thrifty DIR --namespace thrifty --create-namespace   (create the "
        "Secret first: docs/deploy/kubernetes.md)"
    ),
)
