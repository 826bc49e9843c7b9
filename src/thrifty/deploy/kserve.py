"""KServe: an InferenceService with our image as a custom predictor."""

from __future__ import annotations

from thrifty.deploy.base import Files, Request, Target, make_header
from thrifty.deploy.knative import (
    KnativeOptions,
    check_options,
    make_config,
    make_container,
    make_service_commands,
    make_volumes,
)
from thrifty.deploy.one_container import CANNOT_SHARE, START_S, make_probe
from thrifty.deploy.yaml_text import dump_documents
from thrifty.kubernetes.pods import CHECKSUM


def render_kserve(request: Request) -> Files:
    """A ConfigMap and an InferenceService."""
    check_options(request, "kserve")
    options: KnativeOptions = request.options
    port = request.service.port
    container = make_container(request, "kserve-container")
    container["startupProbe"] = make_probe(
        "/healthz", port, periodSeconds=2, failureThreshold=START_S // 2
    )
    container["readinessProbe"] = make_probe("/readyz", port, periodSeconds=2, failureThreshold=3)
    config = make_config(request)
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": config["metadata"],
        "spec": {
            "predictor": {
                "annotations": {CHECKSUM: request.checksum},
                "minReplicas": options.min,
                "maxReplicas": options.max,
                "containerConcurrency": options.concurrency,
                "timeout": options.timeout,
                "automountServiceAccountToken": False,
                "containers": [container],
                "volumes": make_volumes(request),
            }
        },
    }
    return {"service.yaml": make_header(request, "kserve") + dump_documents([config, service])}


TARGET = Target(
    name="kserve",
    summary="A KServe InferenceService with our image as a custom predictor",
    options=KnativeOptions,
    cannot=(
        *CANNOT_SHARE,
        "It answers the OpenAI dialect alone, not KServe's own inference protocols: clients use "
        "/v1/chat/completions, /v1/completions and /v1/embeddings.",
        "It scales to zero only where KServe runs in its serverless mode, on Knative: set min=1 for "
        "the standard mode.",
    ),
    render=render_kserve,
    commands=make_service_commands,
    next_steps="kubectl apply --server-side --field-manager thrifty-render -f DIR",
)
