"""The commands about what is kept of requests and what people say of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

feedback_app = typer.Typer(help="What people say about answers.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant's.")]
Model = Annotated[str | None, typer.Option(help="Only this deployment's.")]
Version = Annotated[str | None, typer.Option(help="Only this version's, by its label.")]
User = Annotated[str | None, typer.Option(help="Only this end user's.")]


def logs(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show requests as they end, until Ctrl-C.")
    ] = False,
    request: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="All that is known of one request: its row, recorded texts, and feedback. The ID of "
            "a response, or your own x-request-id.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, max=10_000, help="The newest so many.")] = 50,
    tenant: Tenant = None,
    model: Model = None,
    version: Version = None,
    user: User = None,
    error: Annotated[
        str | None, typer.Option(help="Only failed requests: an error's code, or any.")
    ] = None,
    slow: Annotated[
        str | None, typer.Option(help="Only requests that took at least this long, such as 2s.")
    ] = None,
    disliked: Annotated[
        bool, typer.Option("--disliked", help="Only requests whose answer got a thumb down.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON alone: one object a line.")
    ] = False,
) -> None:
    """Show the request log, the newest requests last."""
    from thrifty.cli.logs import run_logs
    from thrifty.db.request_queries import RequestFilter
    from thrifty.units import parse_duration_s

    try:
        slower_ms = None if slow is None else parse_duration_s(slow) * 1e3
    except ValueError as fault:
        raise typer.BadParameter(str(fault), param_hint="--slow") from None
    wanted = RequestFilter(
        tenant=tenant, deployment=model, version=version, user=user, error=error,
        slower_ms=slower_ms, disliked=disliked,
    )  # fmt: skip
    run_logs(wanted, limit=limit, follow=follow, request=request, as_json=as_json)


audit_app = typer.Typer(help="The log of administrative acts.", no_args_is_help=True)


@audit_app.command("list")
def audit_list(
    who: Annotated[
        str | None, typer.Option(help="Only acts of this actor, as `thrifty history` names it.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many.")] = 50,
    as_json: Json = False,
) -> None:
    """List administrative acts under pseudonyms, the newest first."""
    from thrifty.cli.audit import run_list

    run_list(limit=limit, who=who, as_json=as_json)


@audit_app.command("verify")
def audit_verify(
    head: Annotated[
        str | None,
        typer.Option(help="A head that `thrifty audit head` printed: it must still be in the log."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that no act was changed, taken out or cut off; exits with 1 otherwise."""
    from thrifty.cli.audit import run_verify

    run_verify(head, as_json=as_json)


@audit_app.command("head")
def audit_head() -> None:
    """Print what stands for the whole log, to be kept elsewhere."""
    from thrifty.cli.audit import run_head

    run_head()


def forget(
    user: Annotated[str, typer.Option(help="The end user, as in the field `user` of requests.")],
    tenant: Annotated[
        str | None, typer.Option(help="Only in this tenant. Default: in all tenants.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Erase one person's data everywhere, for good, and say what was erased."""
    from thrifty.cli.forget import run_forget

    run_forget(user, tenant, yes=yes, as_json=as_json)


def subject_export(
    user: Annotated[str, typer.Option(help="The end user, as in the field `user` of requests.")],
    tenant: Annotated[
        str | None, typer.Option(help="Only in this tenant. Default: in all tenants.")
    ] = None,
) -> None:
    """Print all data of one person as JSON: requests with texts, feedback, lines of batches."""
    from thrifty.cli.forget import run_subject_export

    run_subject_export(user, tenant)


@feedback_app.command("list")
def feedback_list(
    kind: Annotated[
        str | None, typer.Option(help="thumbs, rating, comment, event:copied, score:NAME ...")
    ] = None,
    tenant: Tenant = None,
    model: Model = None,
    version: Version = None,
    user: User = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many.")] = 50,
    as_json: Json = False,
) -> None:
    """List feedback with the versions that it is about, the newest first."""
    from thrifty.cli.feedback import run_list
    from thrifty.db.feedback import FeedbackFilter

    wanted = FeedbackFilter(tenant=tenant, kind=kind, deployment=model, version=version, user=user)
    run_list(wanted, limit=limit, as_json=as_json)


@feedback_app.command("export")
def feedback_export(
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="sft: corrections and liked answers; dpo: pairs of a better and a worse answer; "
            "kto: answers with what was thought of each.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="A file. Default: stdout.")] = None,
    tenant: Tenant = None,
    model: Model = None,
    version: Version = None,
) -> None:
    """Write training rows (JSON lines) from judged answers, each with where it came from."""
    from thrifty.cli.feedback import run_export
    from thrifty.feedback.export import Chosen

    run_export(form, out, Chosen(tenant=tenant, deployment=model, version=version))
