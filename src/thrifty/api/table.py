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
        "POST", f"{PREFIX}/deployments/{{name:path}}/rollback", Role.OPERATOR, "roll_back",
        "restore a deployment's previous desired state; twice restores the present one",
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
    Route("GET", f"{PREFIX}/keys", Role.ADMIN, "list_keys", "the API keys, without their secrets"),
    Route(
        "POST", f"{PREFIX}/keys", Role.ADMIN, "create_key",
        "make an API key; its secret is in the answer, and nowhere later",
    ),
    Route("DELETE", f"{PREFIX}/keys/{{name}}", Role.ADMIN, "revoke_key", "revoke an API key"),
)  # fmt: skip
