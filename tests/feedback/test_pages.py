"""The endpoints of feedback through a real gateway: who may say what about which answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import select

import openai
import thrifty
from tests.parts import GatewayUnderTest, add_key, running_echo, running_gateway, until
from thrifty.db.tables import feedback, request_texts
from thrifty.db.tables import requests as requests_table
from thrifty.feedback.pages import FeedbackSettings
from thrifty.feedback.send import FeedbackError
from thrifty.observe.redact import find_pseudonym
from thrifty.openai.response_ids import EPOCH_S, ResponseIds

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}], "user": "ann"}
PATH = "/v1/feedback"
TOKENS = FeedbackSettings(tokens=True)


@contextlib.asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[GatewayUnderTest]:
    async with running_echo() as url, running_gateway(folder, [url], **options) as gateway:
        yield gateway


async def ask_id(gateway: GatewayUnderTest, headers: dict[str, str] | None = None) -> str:
    reply = await gateway.ask(CHAT, headers=headers)
    assert reply.status == 200
    return str(reply.json()["id"])


async def test_feedback_is_new_then_known_and_joined(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        answered = await gateway.ask(CHAT | {"metadata": {"session_id": "s1", "page": "home"}})
        about = {"response_id": answered.json()["id"]}
        first = await gateway.ask({**about, "thumbs": "up", "comment": "fine"}, PATH)
        assert (first.status, first.json()["created"]) == (201, 2)
        again = await gateway.ask({**about, "thumbs": "down"}, PATH)
        assert (again.status, again.json()["kinds"]) == (200, ["thumbs"])
        conversation = answered.headers[b"x-thrifty-conversation"].decode()
        on_talk = await gateway.ask({"conversation_id": conversation, "rating": 4}, PATH)
        assert on_talk.status == 201

        async def joined() -> bool:
            listed = await gateway.ask(b"", PATH, method="GET")
            return all(one["joined"] for one in listed.json()["data"])

        await until(joined, what="the response is in the log")
        listed = (await gateway.ask(b"", f"{PATH}?kind=thumbs", method="GET")).json()
        (thumbs,) = listed["data"]
        assert (thumbs["value"], thumbs["user"], thumbs["version"]) == (0.0, "ann", "echo@v1")
        assert thumbs["response_id"] in about["response_id"]
        assert [earlier["value"] for earlier in thumbs["history"]] == [1.0]
        page = (await gateway.ask(b"", f"{PATH}?limit=2", method="GET")).json()
        assert (len(page["data"]), page["has_more"]) == (2, True)
        rest = await gateway.ask(b"", f"{PATH}?limit=2&after={page['last_id']}", method="GET")
        assert (len(rest.json()["data"]), rest.json()["has_more"]) == (1, False)
        with gateway.database.begin() as connection:
            row = connection.execute(select(requests_table)).one()
        assert row.tags == '{"page":"home","session_id":"s1"}'


async def test_it_may_come_before_the_row_of_its_response(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        early = ResponseIds(b"s" * 32, 7).new("").text
        reply = await gateway.ask({"response_id": early, "event": "copied"}, PATH)
        assert (reply.status, reply.json()["joined"]) == (201, False)


async def test_ids_of_others_are_a_404_and_old_ones_a_410(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        red, blue = await add_key(gateway, "red"), await add_key(gateway, "blue")
        about = {"response_id": await ask_id(gateway, red), "thumbs": "down"}
        other = await gateway.ask(about, PATH, headers=blue)
        assert (other.status, other.error["code"]) == (404, "response_not_found")
        assert (await gateway.ask(about, PATH, headers=red)).status == 201
        assert (await gateway.ask(about, PATH)).status == 401
        for name, text in (
            ("response_id", "chatcmpl-" + "0" * 21), ("response_id", "é" * 21),
            ("conversation_id", "conv-" + "0" * 27), ("conversation_id", "x"),
        ):  # fmt: skip
            reply = await gateway.ask({name: text, "thumbs": "up"}, PATH, headers=red)
            assert (reply.status, reply.error["param"]) == (404, name)
        old = ResponseIds(b"s" * 32, 7, clock=lambda: EPOCH_S + 86400.0).new("red").text
        reply = await gateway.ask({"response_id": old, "thumbs": "up"}, PATH, headers=red)
        assert (reply.status, reply.error["code"]) == (410, "response_expired")
        seen = await gateway.ask(b"", PATH, method="GET", headers=blue)
        assert seen.json()["data"] == []
        reply = await gateway.ask(b"", f"{PATH}?tenant=red", method="GET", headers=blue)
        assert reply.status == 403
        admin = await add_key(gateway, "root", "admin")
        seen = await gateway.ask(b"", f"{PATH}?tenant=red", method="GET", headers=admin)
        assert len(seen.json()["data"]) == 1
        viewer = await add_key(gateway, "eye", "viewer")
        assert (await gateway.ask(b"", PATH, method="GET", headers=viewer)).status == 403


async def test_a_browser_gives_feedback_with_the_token_of_its_answer(tmp_path: Path) -> None:
    async with running(tmp_path, feedback=TOKENS, cors=("https://chat.example",)) as gateway:
        red = await add_key(gateway, "red")
        greedy = CHAT | {"temperature": 0}
        answers = [await gateway.ask(greedy, headers=red) for _ in range(2)]
        answers.append(await gateway.ask(CHAT | {"stream": True}, headers=red))
        assert answers[1].headers[b"x-thrifty-cache"] == b"hit"
        tokens = [answer.headers[b"x-thrifty-feedback-token"].decode() for answer in answers]
        ids = [answer.headers[b"x-thrifty-response-id"].decode() for answer in answers]

        def post(token: str, body: dict[str, Any]) -> requests.Response:
            page = {"origin": "https://chat.example", "x-thrifty-feedback-token": token}
            return requests.post(gateway.url + PATH, json=body, headers=page, timeout=10)

        for token, about in zip(tokens, ids, strict=True):
            given = await asyncio.to_thread(post, token, {"response_id": about, "thumbs": "up"})
            assert given.status_code == 201
            assert given.headers["access-control-allow-origin"] == "https://chat.example"
        wrong = [
            (tokens[0], {"response_id": ids[1], "thumbs": "up"}, 404),
            (tokens[0], {"conversation_id": "conv-" + "0" * 27, "thumbs": "up"}, 404),
            (tokens[0], {"response_id": ids[0], "thumbs": "up", "user": "bob"}, 400),
            (tokens[0][::-1], {"response_id": ids[0], "thumbs": "up"}, 401),
        ]
        for token, body, status in wrong:
            assert (await asyncio.to_thread(post, token, body)).status_code == status
        ask = {
            "origin": "https://chat.example", "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,x-thrifty-feedback-token",
        }  # fmt: skip
        preflight = await gateway.ask(b"", PATH, method="OPTIONS", headers=ask)
        assert preflight.status == 204
        allowed = preflight.headers[b"access-control-allow-headers"]
        assert b"x-thrifty-feedback-token" in allowed
        script = await gateway.ask(b"", "/v1/feedback.js", method="GET")
        assert script.headers[b"content-type"].startswith(b"text/javascript")
        with gateway.database.begin() as connection:
            rows = connection.execute(select(feedback.c.tenant, feedback.c.source)).all()
        assert {tuple(row) for row in rows} == {("red", "token")}


async def test_tokens_expire_and_come_only_where_asked_for(tmp_path: Path) -> None:
    brief = FeedbackSettings(tokens=True, token_ttl_s=-1.0)
    async with running(tmp_path, feedback=brief) as gateway:
        answer = await gateway.ask(CHAT)
        token = answer.headers[b"x-thrifty-feedback-token"].decode()
        body = {"response_id": answer.json()["id"], "thumbs": "up"}
        reply = await gateway.ask(body, PATH, headers={"x-thrifty-feedback-token": token})
        assert (reply.status, reply.error["code"]) == (401, "invalid_feedback_token")
    async with running(tmp_path) as gateway:
        answer = await gateway.ask(CHAT)
        assert b"x-thrifty-feedback-token" not in answer.headers


async def test_a_page_without_a_token_is_refused_where_no_keys_exist(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        body = {"response_id": await ask_id(gateway), "thumbs": "up"}
        reply = await gateway.ask(body, PATH, headers={"origin": "https://evil.example"})
        assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")


async def test_a_flood_of_one_user_or_tenant_is_stopped_and_leaves_room_for_others(
    tmp_path: Path,
) -> None:
    few = FeedbackSettings(per_user=5, per_tenant=12)
    async with running(tmp_path, feedback=few) as gateway:
        red, blue = await add_key(gateway, "red"), await add_key(gateway, "blue")
        about = {"response_id": await ask_id(gateway, red)}

        async def flood(user: str) -> list[int]:
            bodies = [{**about, "user": user, "name": f"s{i}", "value": i} for i in range(8)]
            replies = [await gateway.ask(body, PATH, headers=red) for body in bodies]
            return [reply.status for reply in replies]

        assert await flood("a") == [201] * 5 + [429] * 3
        assert await flood("b") == [201] * 5 + [429] * 3
        assert await flood("c") == [201] * 2 + [429] * 6
        theirs = {"response_id": await ask_id(gateway, blue), "thumbs": "up"}
        assert (await gateway.ask(theirs, PATH, headers=blue)).status == 201


async def test_the_helper_and_openais_client_go_together(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        red = await add_key(gateway, "red")
        key = red["authorization"].removeprefix("Bearer ")

        def talk() -> dict[str, Any]:
            with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key) as client:
                completion = client.chat.completions.create(
                    model="echo", messages=[{"role": "user", "content": "Hi"}],
                    metadata={"session_id": "s1"},
                )  # fmt: skip
            with pytest.raises(FeedbackError, match="rating"):
                thrifty.send_feedback(gateway.url, completion.id, key=key, rating=9)
            return thrifty.send_feedback(gateway.url, completion.id, key=key, thumbs="down", id="a")

        assert (await asyncio.to_thread(talk))["id"] == "a"
        second = {"response_id": await ask_id(gateway, red), "thumbs": "up", "id": "a"}
        reply = await gateway.ask(second, PATH, headers=red)
        assert (reply.status, reply.error["code"]) == (409, "id_taken")


async def test_sessions_in_the_metadata_name_a_conversation(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        texts, names = ["Hi", "Ho", "Ho", "Hu"], ["s1", "s1", "s2", None]
        found = []
        for text, name in zip(texts, names, strict=True):
            body = CHAT | {"messages": [{"role": "user", "content": text}]}
            if name is not None:
                body |= {"metadata": {"session_id": name}}
            reply = await gateway.ask(body)
            assert reply.status == 200
            found.append(reply.headers[b"x-thrifty-conversation"])
        assert found[0] == found[1]
        assert len(set(found)) == 3
        by_header = await gateway.ask(CHAT, headers={"x-thrifty-conversation": "s1"})
        assert by_header.headers[b"x-thrifty-conversation"] == found[0]
        wrong = await gateway.ask(CHAT | {"metadata": {"a": 1}})
        assert (wrong.status, wrong.error["param"]) == (400, "metadata")


async def test_without_a_database_it_is_a_503_that_may_be_sent_again(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        body = {"response_id": await ask_id(gateway), "thumbs": "up"}
        file = tmp_path / "thrifty.db"
        file.rename(tmp_path / "away.db")
        reply = await gateway.ask(body, PATH)
        assert (reply.status, reply.error["code"]) == (503, "database_away")
        assert b"retry-after" in reply.headers
        (tmp_path / "away.db").rename(file)
        assert (await gateway.ask(body, PATH)).status == 201


@pytest.mark.parametrize("redact", [True, False])
async def test_everything_written_is_redacted_unless_the_spec_says_no(
    tmp_path: Path, redact: bool
) -> None:
    mail = "ann.lee@example.com"
    async with running(tmp_path, prompts=True, redact=redact) as gateway:
        body = CHAT | {"metadata": {"who": mail}}
        body |= {"messages": [{"role": "user", "content": f"I am {mail}"}]}
        about = (await gateway.ask(body)).json()["id"]
        given = {"response_id": about, "comment": mail, "correction": mail, "tags": {"by": mail}}
        given |= {"name": "who", "value": mail, "id": mail}
        assert (await gateway.ask(given, PATH)).status == 201
        assert (await gateway.ask(given, PATH)).status == 200

        def read() -> str:
            with gateway.database.begin() as connection:
                texts = connection.execute(select(request_texts)).all()
                rows = connection.execute(select(requests_table.c.tags)).all()
                columns = (feedback.c.text, feedback.c.tags, feedback.c.client_id)
                said = connection.execute(select(*columns)).all()
            return f"{texts} {rows} {said}" if texts else ""

        written = await until(lambda: asyncio.to_thread(read))
        assert (mail in written) is not redact
        pseudonym = find_pseudonym(written)
        assert (pseudonym is not None) is redact
        assert written.count(pseudonym or mail) == 12


PAGE = """
const { Feedback } = await import(process.argv[2]);
const base = process.argv[3];
const body = JSON.stringify({ model: "echo", messages: [{ role: "user", content: "Hi" }] });
const headers = { "content-type": "application/json" };
const answer = await fetch(`${base}/v1/chat/completions`, { method: "POST", headers, body });
const feedback = Feedback.of(answer, `${base}/v1/`);
const first = await feedback.send({ thumbs: "up" });
const event = await feedback.note("copied");
const refused = await feedback.send({ rating: 9 }).catch((error) => [error.name, error.code]);
console.log(JSON.stringify([first.created, event.kinds, refused]));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
async def test_the_helper_for_pages_runs(tmp_path: Path) -> None:
    page, module = tmp_path / "page.mjs", tmp_path / "feedback.mjs"
    page.write_text(PAGE)
    async with running(tmp_path, feedback=TOKENS) as gateway:
        script = await gateway.ask(b"", "/v1/feedback.js", method="GET")
        module.write_bytes(script.body)
        command = ["node", str(page), str(module), gateway.url]
        result = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=120, check=False
        )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [1, ["event:copied"], ["FeedbackError", "invalid_value"]]
