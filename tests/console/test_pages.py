"""What the console's server does: its files, signing in, roles, views and events. The page itself is
tested in a browser (`test_browser`).
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient, Response

from tests.console.site import (
    LABELS,
    NAME,
    Site,
    fill,
    fill_improve,
    fill_quality,
    raise_alert,
    running_site,
)
from thrifty.console.assets import load_assets
from thrifty.db.feedback import Feedback, Item, save_feedback
from thrifty.db.keys import revoke_key

STATIC = files("thrifty.console").joinpath("static")


def browser_like(site: Site) -> AsyncClient:
    """A client that keeps cookies, with patience for a busy machine."""
    return AsyncClient(base_url=site.url, timeout=60)


async def sign_in(client: AsyncClient, site: Site, role: str) -> Response:
    return await client.post("/api/v1/session", json={"key": site.keys[role]})


def error_code(answer: Response) -> str:
    return str(answer.json()["error"]["code"])


def test_the_bundle_is_the_one_that_was_made() -> None:
    made = json.loads(STATIC.joinpath("vendor.json").read_text())
    for name, digest in made["sha256"].items():
        assert hashlib.sha256(STATIC.joinpath(name).read_bytes()).hexdigest() == digest
    licences = STATIC.joinpath("vendor-licences.txt").read_text()
    for package in made["packages"]:
        assert f"{package['name']} {package['version']} ({package['licence']})" in licences


def test_the_page_names_every_file_that_its_first_view_needs() -> None:
    """A module that is imported and not named would be found one round trip later."""
    named = set(
        re.findall(r"\{\{version\}\}/([a-z_]+\.js)", STATIC.joinpath("index.html").read_text())
    )
    needed, todo = set(), ["main.js"]
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            text = "" if name == "vendor.js" else STATIC.joinpath(name).read_text()
            todo += re.findall(r'^(?:import|\} from|.*\bfrom) .*"\./([a-z_]+\.js)"', text, re.M)
            todo += re.findall(r'from "\./([a-z_]+\.js)"', text)
    assert needed | {"theme.js"} == named


def test_no_file_asks_for_anything_elsewhere() -> None:
    for entry in STATIC.iterdir():
        if entry.name.endswith((".js", ".css", ".html")) and not entry.name.startswith("vendor"):
            for found in re.findall(r"https?://[^\s\"'`)]*", entry.read_text()):
                assert found in ("https?:\\/\\/|mailto:", "http://www.w3.org/2000/svg"), entry.name


async def test_the_page_and_its_files(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, browser_like(site) as client:
        page = await client.get("/console", headers={"accept-encoding": "gzip"})
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        for rule in (
            "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
            "img-src 'self' data:", "require-trusted-types-for 'script'", "form-action 'none'",
            "frame-ancestors 'none'",
        ):  # fmt: skip
            assert rule in policy
        assert "unsafe" not in policy
        assert "<style" not in page.text
        for script in re.findall(r"<script[^>]*>(.*?)</script>", page.text, re.S):
            assert script == ""
        assert not re.search(r"\son[a-z]+=|style=", page.text)
        for path in re.findall(r'(?:src|href)="(console/[^"]+)"', page.text):
            answer = await client.get(f"/{path}", headers={"accept-encoding": "gzip"})
            assert answer.status_code == 200, path
            assert answer.headers["content-encoding"] == "gzip"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "immutable" in answer.headers["cache-control"]
        plain = await client.get(f"/{path}", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == gzip.decompress(load_assets().files["main.js"].packed)
        old = await client.get("/console/assets/0123456789abcdef/main.js")
        assert old.status_code == 404
        assert (await client.get("/console/assets/x/..%2Fpages.py")).status_code == 404
        moved = await client.get("/console/")
        assert (moved.status_code, moved.headers["location"]) == (308, "/console")


async def test_without_keys_nobody_signs_in(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, browser_like(site) as client:
        who = (await client.get("/api/v1/session")).json()
        assert (who["keys_exist"], who["role"]) == (False, "admin")
        assert who["may"] == ["viewer", "user", "operator", "admin"]
        answer = await client.post("/api/v1/session", json={"key": "anything"})
        assert (answer.status_code, error_code(answer)) == (400, "no_keys")
        proxied = await client.get("/api/v1/session", headers={"x-forwarded-for": "198.51.100.7"})
        assert proxied.json()["may"] == ["user", "viewer"]


async def test_a_key_is_exchanged_for_a_cookie(tmp_path: Path) -> None:
    async with (
        running_site(tmp_path, with_keys=True) as site,
        browser_like(site) as client,
    ):
        nobody = (await client.get("/api/v1/session")).json()
        assert (nobody["keys_exist"], nobody["role"], nobody["may"]) == (True, None, [])
        assert (await client.get("/api/v1/status")).status_code == 401
        wrong = await client.post("/api/v1/session", json={"key": "sk-thrifty-wrong"})
        assert (wrong.status_code, error_code(wrong)) == (401, "invalid_api_key")
        assert "set-cookie" not in wrong.headers
        assert (await client.post("/api/v1/session", json={"key": ""})).status_code == 400
        answer = await sign_in(client, site, "operator")
        assert answer.json()["may"] == ["viewer", "user", "operator"]
        cookie = answer.headers["set-cookie"]
        for part in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"):
            assert part in cookie
        assert "Secure" not in cookie
        assert site.keys["operator"] not in cookie
        assert (await client.get("/api/v1/status")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200
        chat = {"model": NAME, "messages": [{"role": "user", "content": "hello"}]}
        assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
        secure = await client.post(
            "/api/v1/session", json={"key": site.keys["viewer"]},
            headers={"x-forwarded-proto": "https"},
        )  # fmt: skip
        assert "; Secure" in secure.headers["set-cookie"]
        out = await client.request("DELETE", "/api/v1/session")
        assert "Max-Age=0" in out.headers["set-cookie"]


async def test_a_cookie_is_worth_nothing_to_pages_of_others(tmp_path: Path) -> None:
    async with (
        running_site(tmp_path, with_keys=True) as site,
        browser_like(site) as client,
    ):
        await sign_in(client, site, "admin")
        chat = {"model": NAME, "messages": [{"role": "user", "content": "hello"}]}
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "http://127.0.0.1:1"},  # the same site, another port: gets the cookie
            {"sec-fetch-site": "same-site"},
            {"host": "evil.example"},
        ):
            for method, path, body in (
                ("POST", "/v1/chat/completions", chat), ("GET", "/v1/requests", None),
                ("GET", "/api/v1/keys", None), ("POST", "/v1/feedback", {"thumbs": "up"}),
            ):  # fmt: skip
                answer = await client.request(method, path, json=body, headers=headers)
                assert answer.status_code == 403, (headers, path, answer.text)
        form = {"content-type": "text/plain"}
        answer = await client.post("/v1/chat/completions", content=b"{}", headers=form)
        assert answer.status_code == 415


@pytest.mark.parametrize("change", ["signature", "expiry", "key", "empty"])
async def test_a_cookie_that_was_changed_signs_nobody_in(tmp_path: Path, change: str) -> None:
    async with (
        running_site(tmp_path, with_keys=True) as site,
        browser_like(site) as client,
    ):
        await sign_in(client, site, "admin")
        value = client.cookies["thrifty-session"]
        key, expiry, mac = value.split(".")
        forged = {
            "signature": f"{key}.{expiry}.{'0' * 40}",
            "expiry": f"{key}.{int(expiry) + 60}.{mac}",
            "key": f"{'0' * 64}.{expiry}.{mac}",
            "empty": "",
        }[change]
        client.cookies.clear()
        headers = {"cookie": f"other=1; thrifty-session={forged}"}
        assert (await client.get("/api/v1/status", headers=headers)).status_code == 401


async def test_a_revoked_key_ends_its_sessions(tmp_path: Path) -> None:
    async with (
        running_site(tmp_path, with_keys=True) as site,
        browser_like(site) as client,
    ):
        await sign_in(client, site, "viewer")
        assert (await client.get("/api/v1/status")).status_code == 200
        await asyncio.to_thread(revoke_key, site.database, "viewer-key")
        await site.parts.reader.refresh()
        assert (await client.get("/api/v1/status")).status_code == 401
        assert (await client.get("/api/v1/session")).json()["role"] is None


VIEWS = {
    "/api/v1/status": "viewer", "/api/v1/overview": "viewer", "/api/v1/history": "viewer",
    "/api/v1/models": "viewer", "/api/v1/alerts": "viewer", "/api/v1/cost": "viewer",
    "/api/v1/releases": "viewer", "/api/v1/improve": "viewer", "/api/v1/quality": "viewer", "/api/v1/settings": "operator",
    "/api/v1/keys": "admin", "/v1/feedback/reviews": "operator", "/api/v1/audit": "admin", "/api/v1/audit/verify": "admin", "/v1/requests": "user",
    "/v1/feedback/export?as=sft": "operator",
}  # fmt: skip
HOLDERS = {
    "viewer": {"viewer", "operator", "admin"}, "user": {"user", "operator", "admin"},
    "operator": {"operator", "admin"}, "admin": {"admin"},
}  # fmt: skip


async def test_the_server_refuses_what_a_role_may_not(tmp_path: Path) -> None:
    async with running_site(tmp_path, with_keys=True) as site:
        for role in HOLDERS:
            async with browser_like(site) as client:
                await sign_in(client, site, role)
                for path, needed in VIEWS.items():
                    allowed = role in HOLDERS[needed]
                    answer = await client.get(path)
                    assert answer.status_code == (200 if allowed else 403), (
                        role,
                        path,
                        answer.text,
                    )
                for method, path, body in (
                    ("PUT", "traffic", {"weights": {"stable": 1}}),
                    ("PUT", "scale", {"version": "stable", "count": 3}), ("POST", "rollback", {}),
                ):  # fmt: skip
                    if role not in HOLDERS["operator"]:
                        path = f"/api/v1/deployments/{NAME}/{path}"
                        answer = await client.request(method, path, json=body)
                        assert answer.status_code == 403, (role, path)


async def test_figures_are_by_version_and_against_the_objective(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, browser_like(site) as client:
        await asyncio.to_thread(fill, site.database, 600, span_s=2400.0)
        found = (await client.get("/api/v1/overview?window=hour")).json()
        by_label = {one["version"]: one for one in found["versions"]}
        assert set(by_label) == set(LABELS)
        stable = by_label["stable"]
        assert sum(one["requests"] for one in found["versions"]) == 600
        assert stable["ttft_p50_ms"] <= stable["ttft_p95_ms"]
        assert stable["ttft_objective_ms"] == 300.0
        assert 0 < stable["within_objective"] <= 1
        assert stable["liked"] + stable["disliked"] > 0
        assert stable["cost"] == pytest.approx(
            (stable["prompt_tokens"] * 0.4 + stable["completion_tokens"] * 1.2) / 1e6, rel=0.01
        )
        assert stable["saved"] > 0
        series = {one["labels"]["version"]: one["values"] for one in found["series"]}
        assert len(found["times"]) == 60
        assert sum(series["stable"]["requests"]) == stable["requests"]
        day = (await client.get("/api/v1/overview?window=day")).json()
        assert len(day["times"]) == 24
        assert sum(one["requests"] for one in day["versions"]) == 600
        wrong = await client.get("/api/v1/overview?window=year")
        assert wrong.status_code == 400


async def test_a_version_is_scaled_and_the_change_can_be_taken_back(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, browser_like(site) as client:
        path = f"/api/v1/deployments/{NAME}/scale"
        done = await client.put(path, json={"version": "stable", "count": 3, "why": "a busy day"})
        assert (done.status_code, done.json()["count"]) == (200, 3)
        history = (await client.get("/api/v1/history")).json()["changes"]
        assert (history[0]["kind"], history[0]["why"]) == ("scale", "a busy day")
        assert {v["label"]: v["replicas"] for v in history[0]["versions"]}["stable"] == 3
        settings = (await client.get("/api/v1/settings")).json()["settings"]
        changed = [one for one in settings if one["key"] == f"{NAME}.stable.replicas.count"]
        assert changed[0]["value"] == 3
        assert changed[0]["origin"].startswith("scale")
        assert {one["key"]: one["origin"] for one in settings}["gateway.port"] == "spec"
        for body, words in (
            ({"version": "stable", "min": 1, "max": 4}, "fixed"),
            ({"version": "stable", "count": 2000}, "from 1 to 1024"),
            ({"version": "stable"}, "give 'count'"),
        ):
            refused = await client.put(path, json=body)
            assert refused.status_code == 400
            assert words in refused.json()["error"]["message"]
        unknown = await client.put(path, json={"version": "nightly", "count": 1})
        assert (unknown.status_code, error_code(unknown)) == (404, "version_not_found")
        back = await client.post(f"/api/v1/deployments/{NAME}/rollback", json={"why": "too many"})
        assert back.status_code == 200


async def test_events_tell_the_status_and_the_figures(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, browser_like(site) as client:
        seen: dict[str, Any] = {}
        async with client.stream("GET", "/api/v1/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            kind = ""
            async for line in stream.aiter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: "):
                    seen[kind] = json.loads(line[6:])
                if {"status", "figures"} <= seen.keys() and seen["figures"]["versions"]:
                    break
        (deployment,) = seen["status"]["deployments"]
        assert [one["label"] for one in deployment["versions"]] == list(LABELS)
        assert {one["version"] for one in seen["figures"]["versions"]} == set(LABELS)
        assert {one["id"]: one["running"] for one in seen["figures"]["replicas"]}[f"{NAME}-1"] == 1


async def test_alerts_are_listed_and_silenced(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, browser_like(site) as client:
        await asyncio.to_thread(raise_alert, site.database)
        (alert,) = (await client.get("/api/v1/alerts")).json()["alerts"]
        assert (alert["kind"], alert["version"], alert["resolved"]) == ("errors", "candidate", None)
        body = {"kind": "errors", "deployment": NAME, "seconds": 3600, "why": "known"}
        made = await client.post("/api/v1/alerts/silences", json=body)
        assert made.status_code == 200
        found = (await client.get("/api/v1/alerts")).json()
        assert found["alerts"][0]["silenced_until"] == found["silences"][0]["until"]
        path = f"/api/v1/alerts/silences/{made.json()['id']}"
        assert (await client.request("DELETE", path)).status_code == 200
        assert (await client.request("DELETE", path)).status_code == 404
        wrong = await client.post("/api/v1/alerts/silences", json={**body, "kind": "noise"})
        assert (wrong.status_code, error_code(wrong)) == (400, "invalid_value")


async def test_one_request_is_shown_with_its_texts(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, browser_like(site) as client:
        chat = {"model": NAME, "messages": [{"role": "user", "content": "Where is Paris?"}]}
        answer = await client.post("/v1/chat/completions", json=chat)
        ident = answer.headers["x-thrifty-response-id"]
        shown = await client.get(f"/v1/requests/{ident}")
        while shown.status_code == 404:
            await asyncio.sleep(0.02)
            shown = await client.get(f"/v1/requests/{ident}")
        found = shown.json()
        assert found["id"] == ident
        assert found["prompt"] == chat["messages"]
        assert found["answer"][0]["content"] == answer.json()["choices"][0]["message"]["content"]
        missing = await client.get("/v1/requests/chatcmpl-nothing")
        assert (missing.status_code, error_code(missing)) == (404, "request_not_found")


async def test_feedback_is_triaged_and_exported(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, browser_like(site) as client:
        await asyncio.to_thread(fill, site.database, 40)
        before = (await client.get("/v1/feedback?untriaged=true&limit=1000")).json()["data"]
        assert before
        ident, about = before[0]["id"], before[0]["response_id"]
        body = {"label": "real problem"}
        done = await client.post(f"/v1/feedback/{ident}/triage", json=body)
        assert done.status_code == 200, done.text
        after = (await client.get("/v1/feedback?untriaged=true&limit=1000")).json()["data"]
        assert about not in {one["response_id"] for one in after}
        (mark,) = (await client.get("/v1/feedback?kind=score:triage")).json()["data"]
        assert (mark["text"], mark["response_id"]) == ("real problem", about)
        for wrong in ({"label": ""}, {"label": "<b>"}, {}, {"label": "x", "more": 1}):
            refused = await client.post(f"/v1/feedback/{ident}/triage", json=wrong)
            assert refused.status_code == 400, wrong
        gone = await client.post("/v1/feedback/fb-999999/triage", json=body)
        assert gone.status_code == 404
        rows = await client.get("/v1/feedback/export?as=kto")
        assert rows.headers["content-type"].startswith("application/jsonl")
        for line in rows.text.splitlines():
            assert set(json.loads(line)) == {"prompt", "completion", "label", "provenance"}
        assert rows.text
        acts = (await client.get("/api/v1/audit")).json()["acts"]
        assert acts[0]["act"] == "feedback.export"
        assert (await client.get("/api/v1/audit/verify")).json()["whole"]
        assert (await client.get("/v1/feedback/export?as=csv")).status_code == 400


async def test_an_operator_triages_and_exports_nobody_elses_feedback(tmp_path: Path) -> None:
    async with (
        running_site(tmp_path, with_keys=True) as site,
        browser_like(site) as client,
    ):
        given = Feedback("other", (Item("thumbs", 0.0),), response=1 << 22)
        saved = await asyncio.to_thread(save_feedback, site.database, given)
        path = f"/v1/feedback/fb-{saved.ids[0]}/triage"
        await sign_in(client, site, "operator")
        assert (await client.post(path, json={"label": "seen"})).status_code == 404
        other = await client.get("/v1/feedback/export?as=sft&tenant=other")
        assert other.status_code == 403
        await sign_in(client, site, "admin")
        assert (await client.post(path, json={"label": "seen"})).status_code == 200


async def test_quality_by_version_and_reviews_by_tenant(tmp_path: Path) -> None:
    async with running_site(tmp_path, with_keys=True) as site, browser_like(site) as client:
        await asyncio.to_thread(fill, site.database, 2000)
        await asyncio.to_thread(fill_quality, site.database)
        await sign_in(client, site, "viewer")
        found = (await client.get("/api/v1/quality")).json()
        assert [one["version"] for one in found["versions"]] == sorted(LABELS)
        for one in found["versions"]:
            empty = next(share for share in one["faults"] if share["name"] == "empty")
            assert 0 == empty["found"] < empty["count"] <= empty["all_count"] == one["checked"]
        assert {one["version"]: one["change"] for one in found["canaries"]}
        assert any(one["corrected"] and one["kappa"] > 0.3 for one in found["judged"])
        assert sum(one["drifted"] for one in found["drift"]) == 1
        none = (await client.get("/api/v1/quality?deployment=other")).json()
        assert none["versions"] == none["canaries"] == []
        # The rows have no tenant: an operator of a tenant sees none of them, an admin all.
        await sign_in(client, site, "operator")
        assert (await client.get("/v1/feedback/reviews")).json()["data"] == []
        await sign_in(client, site, "admin")
        page = (await client.get("/v1/feedback/reviews?limit=2")).json()
        assert page["has_more"]
        first = page["data"][0]["id"]
        body = {"response_id": first, "good": True}
        await sign_in(client, site, "operator")
        refused = await client.post("/v1/feedback/reviews", json=body)
        assert (refused.status_code, error_code(refused)) == (404, "response_not_found")
        await sign_in(client, site, "admin")
        assert (await client.post("/v1/feedback/reviews", json=body)).status_code == 201
        assert first != (await client.get("/v1/feedback/reviews?limit=1")).json()["data"][0]["id"]
        said = (await client.get(f"/v1/feedback?response_id={first}&tenant=")).json()["data"]
        assert ("score", "review", 1) in [(one["kind"], one["name"], one["value"]) for one in said]
        for wrong in ({"response_id": first}, {"good": True}, {**body, "why": "x"}):
            assert (await client.post("/v1/feedback/reviews", json=wrong)).status_code == 400


async def test_runs_of_the_loop_are_shown_and_approved_by_operators_alone(tmp_path: Path) -> None:
    async with running_site(tmp_path, with_keys=True) as site, browser_like(site) as client:
        refused, waiting = await asyncio.to_thread(fill_improve, site.database, site.home)
        await sign_in(client, site, "viewer")
        found = (await client.get("/api/v1/improve")).json()
        assert [one["id"] for one in found["runs"]] == [waiting, refused]
        assert found["runs"][1]["steps"][0]["outputs"]["left_out"] == {"outlier": 7, "trusted": 9}
        assert (await client.get("/api/v1/improve?deployment=other")).json()["runs"] == []
        one = (await client.get(f"/api/v1/improve/runs/{refused}")).json()
        assert [(row["name"], row["failed"]) for row in one["slices"]] == [
            ("topic=billing", True), ("all", False),
        ]  # fmt: skip
        # Neither examples of the gate nor paths of the machine are shown.
        assert "plan B" not in json.dumps(one)
        assert str(tmp_path) not in json.dumps(one)
        assert (await client.get("/api/v1/improve/runs/999")).status_code == 404
        path = f"/api/v1/improve/runs/{waiting}/approve"
        assert (await client.post(path, json={})).status_code == 403
        await sign_in(client, site, "operator")
        wrong = await client.post(f"/api/v1/improve/runs/{refused}/approve", json={})
        assert wrong.status_code == 409
        assert "waits for nothing" in wrong.json()["error"]["message"]
        done = await client.post(path, json={})
        assert done.status_code == 200, done.text
        assert [step["step"] for step in done.json()["steps"]] == ["collect", "approve"]
        assert (await client.post(path, json={})).status_code == 409
