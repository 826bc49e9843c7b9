"""The routes of the management API, as data: importing this loads no web framework.

A handler is the name of the function in `app` that answers, and the operation's id in
`/openapi.json`.
"""

from __future__ import annotations

from thrifty.http.routes import Route
from thrifty.types import Role

PREFIX = "/api/v1"

API_ROUTES: tuple[Route[str], ...] = (
    Route("GET", "/openapi.json", None, "get_openapi", "the management API as an OpenAPI document"),
    Route("GET", "/docs", None, "get_docs", "the management API as a page"),
    Route(
        "GET", f"{PREFIX}/status", Role.VIEWER, "get_status",
        "deployments with their versions and replicas",
    ),
    Route(
        "GET", f"{PREFIX}/deployments/{{name:path}}/traffic", Role.VIEWER, "get_traffic",
        "the weights of a deployment's versions",
    ),
    Route(
        "PUT", f"{PREFIX}/deployments/{{name:path}}/traffic", Role.OPERATOR, "set_traffic",
        "change weights; versions that are not named keep theirs",
    ),
    Route(
        "PUT", f"{PREFIX}/deployments/{{name:path}}/scale", Role.OPERATOR, "set_scale",
        "change how many replicas a version has, or the autoscaler's bounds",
    ),
    Route(
        "POST", f"{PREFIX}/deployments/{{name:path}}/rollback", Role.OPERATOR, "roll_back",
        "restore a deployment's previous desired state; twice restores the present one",
    ),
    Route(
        "POST", f"{PREFIX}/deployments/{{name:path}}/restart", Role.OPERATOR, "restart_version",
        "replace the replicas of a version by new ones, without a gap",
    ),
    Route(
        "POST", f"{PREFIX}/deployments/{{name:path}}/drain", Role.OPERATOR, "drain_replica",
        "have one replica finish what it answers and end; another one takes its place",
    ),
    Route(
        "POST", f"{PREFIX}/plan", Role.OPERATOR, "make_plan",
        "what applying a spec would fetch, prepare, start, stop and change; changes nothing",
    ),
    Route(
        "POST", f"{PREFIX}/apply", Role.OPERATOR, "apply_spec",
        "change the running service to what a spec asks for",
    ),
    Route(
        "GET", f"{PREFIX}/series", Role.VIEWER, "get_series",
        "counts, sums and percentiles over time, by deployment, version or tenant",
    ),
    Route(
        "GET", f"{PREFIX}/cost", Role.VIEWER, "get_cost",
        "what requests cost, what was saved, budgets and forecasts",
    ),
    Route(
        "GET", f"{PREFIX}/releases", Role.VIEWER, "list_releases",
        "the newest releases, with their stage, verdict and figures",
    ),
    Route(
        "GET", f"{PREFIX}/releases/{{release_id}}", Role.VIEWER, "get_release",
        "one release with its plan and every decision",
    ),
    Route(
        "POST", f"{PREFIX}/deployments/{{name:path}}/releases", Role.OPERATOR, "start_release",
        "release a version of a deployment by a plan",
    ),
    Route(
        "POST", f"{PREFIX}/releases/{{release_id}}/{{act}}", Role.OPERATOR, "act_on_release",
        "`pause`, `resume`, `promote` or `abort` a release",
    ),
    Route(
        "GET", f"{PREFIX}/improve", Role.VIEWER, "list_improve_runs",
        "runs of the loop with their steps, and what begins the next ones",
    ),
    Route(
        "GET", f"{PREFIX}/improve/runs/{{run_id}}", Role.VIEWER, "get_improve_run",
        "one run of the loop, with the slices of its gate",
    ),
    Route(
        "POST", f"{PREFIX}/improve/runs/{{run_id}}/{{act}}", Role.OPERATOR, "act_on_improve_run",
        "`approve` or `decline` a version that waits for it",
    ),
    Route("GET", f"{PREFIX}/keys", Role.ADMIN, "list_keys", "the API keys, without their secrets"),
    Route(
        "POST", f"{PREFIX}/keys", Role.ADMIN, "create_key",
        "make an API key; its secret is in the answer, and nowhere later",
    ),
    Route(
        "POST", f"{PREFIX}/keys/{{name}}/rotate", Role.ADMIN, "rotate_key",
        "give an API key another secret; it is in the answer, and nowhere later",
    ),
    Route("DELETE", f"{PREFIX}/keys/{{name}}", Role.ADMIN, "revoke_key", "revoke an API key"),
    Route(
        "GET", f"{PREFIX}/overview", Role.VIEWER, "get_overview",
        "figures by version over the last `window`: `hour`, `day` or `month`",
    ),
    Route(
        "GET", f"{PREFIX}/events", Role.VIEWER, "follow_events",
        "changes of the status, and figures each second, as server-sent events",
    ),
    Route(
        "GET", f"{PREFIX}/history", Role.VIEWER, "list_history",
        "changes of the desired state: when, by whom and why",
    ),
    Route(
        "GET", f"{PREFIX}/models", Role.VIEWER, "list_models",
        "the stored models with their lineage and measurements",
    ),
    Route(
        "GET", f"{PREFIX}/quality", Role.VIEWER, "get_quality",
        "canary questions, faults of answers, what users did, the judge and drift, by version",
    ),
    Route(
        "GET", f"{PREFIX}/settings", Role.OPERATOR, "get_settings",
        "the spec in force, with where each value comes from; secrets are masked",
    ),
    Route(
        "GET", f"{PREFIX}/alerts", Role.VIEWER, "list_alerts",
        "what is wrong, and what was in the last days",
    ),
    Route(
        "POST", f"{PREFIX}/alerts/silences", Role.OPERATOR, "add_silence",
        "tell nobody of some alerts for a while",
    ),
    Route(
        "DELETE", f"{PREFIX}/alerts/silences/{{number}}", Role.OPERATOR, "remove_silence",
        "end a silence",
    ),
    Route("GET", f"{PREFIX}/audit", Role.ADMIN, "list_acts", "administrative acts, the newest first"),
    Route(
        "GET", f"{PREFIX}/audit/verify", Role.ADMIN, "verify_audit",
        "whether the audit log is whole",
    ),
)  # fmt: skip
