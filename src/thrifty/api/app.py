"""The management API's application: FastAPI over `ApiServices`, with errors in the OpenAI shape.

Its functions are plain ones, which FastAPI runs in threads. Roles are not checked here but by the
server in front, from the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi as make_document
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from thrifty.api.cost_models import CostAnswer, CostQuery
from thrifty.api.events import EventHub, follow_events
from thrifty.api.improve_models import ImproveRunDetail
from thrifty.api.models import (
    Applied,
    ApplyRequest,
    Change,
    CreatedKey,
    Draining,
    DrainRequest,
    ErrorAnswer,
    KeyList,
    NewKey,
    NewRelease,
    Plan,
    PlanRequest,
    ReleaseAct,
    ReleaseDetail,
    ReleaseList,
    Restarted,
    RestartRequest,
    RollbackRequest,
    RotateKey,
    ScaleChange,
    Scaled,
    SeriesAnswer,
    SeriesQuery,
    Status,
    Traffic,
    TrafficChange,
)
from thrifty.api.page import PAGE_HEADERS, render_page
from thrifty.api.services import ApiServices
from thrifty.api.table import API_ROUTES, PREFIX
from thrifty.api.view_models import NewSilence, SilenceModel
from thrifty.api.views import VIEW_HANDLERS
from thrifty.errors import BadDataError, DatabaseError, NameTakenError, SpecError, ThriftyError
from thrifty.openai.errors import (
    NOT_FOUND,
    WireError,
    bad_request,
    explain_database,
    forbid_tenant,
    internal_error,
    list_names,
)
from thrifty.untrusted_text import sanitize_line

LOOPBACK_CALLER = "loopback"
"""Who calls where no keys exist."""
MAX_WHERE = 200
"""The bound on the name of a field at fault, which is the client's."""


def make_api(services: ApiServices) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(
        title="Thrifty",
        version=version("thrifty"),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    app.state.events = EventHub(services)
    for route in API_ROUTES:
        roles = sorted(route.callers or ())
        app.add_api_route(
            route.path,
            HANDLERS[route.handler],
            methods=[route.method],
            operation_id=route.handler,
            summary=route.summary,
            description=f"For keys of the roles {', '.join(roles)}." if roles else "For anybody.",
            status_code=201 if route.handler == "create_key" else 200,
            responses={"default": {"model": ErrorAnswer, "description": "An error."}},
            openapi_extra={"security": [{"key": []}]} if roles else None,
            include_in_schema=route.path.startswith(PREFIX),
            dependencies=[Depends(_forbid_storing)],
        )
    app.add_exception_handler(Exception, _answer_error)
    for kind in (ThriftyError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    return app


def _get_services(request: Request) -> ApiServices:
    services: ApiServices = request.app.state.services
    return services


def _get_caller(request: Request) -> str:
    return str(getattr(request.state, "caller", None) or LOOPBACK_CALLER)


def _get_tenant(request: Request) -> str | None:
    """The tenant whose figures the caller may see; None: all tenants'."""
    return getattr(request.state, "tenant", None)


def _forbid_storing(response: Response) -> None:
    """Answers hold keys and states: browsers and proxies store none of them."""
    response.headers["cache-control"] = "no-store"
    response.headers["x-content-type-options"] = "nosniff"


Services = Annotated[ApiServices, Depends(_get_services)]
Caller = Annotated[str, Depends(_get_caller)]
Tenant = Annotated[str | None, Depends(_get_tenant)]


def get_status(services: Services) -> Status:
    """The whole service."""
    return services.get_status()


def get_traffic(name: str, services: Services) -> Traffic:
    """The weights of a deployment."""
    return services.get_traffic(name)


def set_traffic(name: str, body: TrafficChange, services: Services, caller: Caller) -> Traffic:
    """Change weights."""
    return services.set_traffic(name, body.weights, who=caller, why=body.why, force=body.force)


def set_scale(name: str, body: ScaleChange, services: Services, caller: Caller) -> Scaled:
    """Change the number of replicas."""
    return services.set_scale(name, body, who=caller)


def restart_version(
    name: str, body: RestartRequest, services: Services, caller: Caller
) -> Restarted:
    """Restart a version."""
    return services.restart_version(name, body, who=caller)


def drain_replica(name: str, body: DrainRequest, services: Services, caller: Caller) -> Draining:
    """Drain a replica."""
    return services.drain_replica(name, body, who=caller)


def roll_back(
    name: str, services: Services, caller: Caller, body: RollbackRequest | None = None
) -> Change:
    """Restore the previous desired state."""
    wanted = body if body is not None else RollbackRequest(why="")
    return services.roll_back(name, who=caller, why=wanted.why, remove=wanted.remove)


def make_plan(body: PlanRequest, services: Services) -> Plan:
    """What applying a spec would do."""
    return services.make_plan(body.spec)


def apply_spec(body: ApplyRequest, services: Services, caller: Caller) -> Applied:
    """Apply a spec."""
    return services.apply_spec(body.spec, reset=body.reset, who=caller, why=body.why)


def get_series(
    services: Services, asked: Annotated[SeriesQuery, Query()], tenant: Tenant
) -> SeriesAnswer:
    """Series over time. Of tenants, callers see the own one; admins see all."""
    if tenant is not None:
        if asked.tenant not in (None, tenant):
            raise forbid_tenant("figures")
        if asked.by == "tenant":
            asked = asked.model_copy(update={"tenant": tenant})
    return services.get_series(asked)


def get_cost(
    services: Services, asked: Annotated[CostQuery, Query()], tenant: Tenant
) -> CostAnswer:
    """What requests cost. Of tenants, callers see the own one; admins see all."""
    answer = services.get_cost(asked)
    if tenant is None:
        return answer
    lines = [one for one in answer.lines if one.of != "tenant" or one.tenant == tenant]
    budgets = [one for one in answer.budgets if one.of != "tenant" or one.name == tenant]
    return answer.model_copy(update={"lines": lines, "budgets": budgets})


def list_releases(services: Services) -> ReleaseList:
    """The newest releases."""
    return services.list_releases()


def get_release(release_id: int, services: Services) -> ReleaseDetail:
    """One release."""
    return services.get_release(release_id)


def start_release(name: str, body: NewRelease, services: Services, caller: Caller) -> ReleaseDetail:
    """Begin a release."""
    return services.start_release(name, body, who=caller)


def act_on_release(
    release_id: int, act: str, services: Services, caller: Caller, body: ReleaseAct | None = None
) -> ReleaseDetail:
    """Pause, resume, promote or abort a release."""
    why = body.why if body is not None else ""
    return services.act_on_release(release_id, act, who=caller, why=why)


def act_on_improve_run(
    run_id: int, act: str, services: Services, caller: Caller
) -> ImproveRunDetail:
    """Approve or decline what a run of the loop made."""
    return services.act_on_improve_run(run_id, act, who=caller)


def list_keys(services: Services) -> KeyList:
    """The keys."""
    return services.list_keys()


def create_key(body: NewKey, services: Services, caller: Caller) -> CreatedKey:
    """Make a key."""
    return services.create_key(body, who=caller)


def rotate_key(
    name: str, services: Services, caller: Caller, body: RotateKey | None = None
) -> CreatedKey:
    """Give a key another secret."""
    return services.rotate_key(name, body or RotateKey(), who=caller)


def revoke_key(name: str, services: Services, caller: Caller) -> dict[str, str]:
    """Revoke a key."""
    services.revoke_key(name, who=caller)
    return {"revoked": name}


def add_silence(body: NewSilence, services: Services, caller: Caller) -> SilenceModel:
    """Silence alerts."""
    return services.add_silence(body, who=caller)


def remove_silence(number: int, services: Services, caller: Caller) -> dict[str, int]:
    """End a silence."""
    services.remove_silence(number, who=caller)
    return {"ended": number}


def get_openapi(request: Request) -> JSONResponse:
    """The OpenAPI document."""
    return JSONResponse(request.app.openapi())


def get_docs(request: Request) -> HTMLResponse:
    """The page for people."""
    return HTMLResponse(render_page(request.app.openapi()), headers=PAGE_HEADERS)


HANDLERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        get_status, get_series, get_cost, get_traffic, set_traffic, set_scale, restart_version,
        drain_replica, roll_back, make_plan, apply_spec, list_releases, get_release, start_release,
        act_on_release, act_on_improve_run, list_keys, create_key, rotate_key, revoke_key,
        get_openapi, get_docs, follow_events,
        add_silence, remove_silence,
    )
} | VIEW_HANDLERS  # fmt: skip


def _describe(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = make_document(title=app.title, version=app.version, routes=app.routes)
        components = document.setdefault("components", {})
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema


def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        found = _explain_validation(error, _find_body_model(request))
    else:
        found = to_wire_error(error)
    headers = {name.decode(): value.decode() for name, value in found.headers}
    return Response(found.encode(), found.status, headers, media_type="application/json")


def to_wire_error(error: Exception) -> WireError:
    """The answer to what a service or the framework raised."""
    match error:
        case WireError():
            return error
        case HTTPException(status_code=404):
            return WireError(404, "There is nothing here.", type=NOT_FOUND, code="unknown_path")
        case HTTPException(status_code=405):
            return WireError(405, "Another method is needed.", code="method_not_allowed")
        case HTTPException():
            return WireError(error.status_code, error.detail, code="invalid_request")
        case SpecError():
            return bad_request(str(error), "spec", "invalid_spec")
        case BadDataError():
            return bad_request(str(error), code="refused")
        case DatabaseError():
            return explain_database(error)
        case NameTakenError():
            return WireError(409, str(error), code="name_taken")
        case ThriftyError():
            return bad_request(str(error), code="refused")
    return internal_error()


def _find_body_model(request: Request) -> type[BaseModel] | None:
    """The model of the body that the request's route takes."""
    route = request.scope.get("route")
    field = route.body_field if isinstance(route, APIRoute) else None
    return _as_model(field.field_info.annotation) if field is not None else None


def _as_model(annotation: Any) -> type[BaseModel] | None:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def _explain_validation(error: RequestValidationError, model: type[BaseModel] | None) -> WireError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return bad_request(f"The body is not valid JSON: {reason}.", code="invalid_json")
    place = ".".join(str(part) for part in first["loc"][1:] if part != "[key]")
    where = sanitize_line(place, MAX_WHERE) or None
    if first["type"] == "missing":
        what = f"'{where}'" if where else "the body, as JSON"
        return bad_request(f"Missing: {what}.", where, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        for parent in first["loc"][1:-1]:
            field = model.model_fields.get(str(parent)) if model is not None else None
            model = _as_model(field.annotation) if field is not None else None
        known = list(model.model_fields) if model is not None else []
        hint = f"; known here: {list_names(known)}" if known else ""
        message = f"'{where}' is not a known key{hint}."
        return bad_request(message, where, "unknown_parameter")
    what = f"'{where}'" if where else "The body"
    if first["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return bad_request(f"{what} must be a JSON object.", where, "invalid_value")
    return bad_request(f"{what}: {first['msg']}.", where, "invalid_value")
