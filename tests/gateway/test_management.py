"""The table of routes in use: roles, methods, pages of other sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.parts import add_key, running_echo, running_gateway

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "Hello there"}]}
JSON = {"content-type": "application/json"}


async def test_a_page_of_another_site_cannot_control_the_service(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        own = await gateway.ask(b"", "/v1/cache", method="DELETE")
        assert own.status == 200
        for headers in (
            {"origin": "https://evil.example"},  # a cross-site request
            {"host": "evil.example"},  # DNS rebinding
            {"host": "evil.example", "origin": "http://evil.example"},
            {"sec-fetch-site": "cross-site"},
        ):
            reply = await gateway.ask(b"", "/v1/cache", method="DELETE", headers=headers)
            assert reply.status == 403, headers
            assert reply.error["code"] in ("host_not_allowed", "origin_not_allowed")


async def test_without_keys_a_page_of_another_site_cannot_run_models(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        foreign = {"origin": "https://evil.example"}
        reply = await gateway.ask(CHAT, headers=foreign)
        assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")
        rebound = {"origin": "http://evil.example", "host": "evil.example"}
        assert (await gateway.ask(CHAT, headers=rebound)).status == 403
        same = {"origin": gateway.url}
        assert (await gateway.ask(CHAT, headers=same)).status == 200
        user = await add_key(gateway, "u")
        assert (await gateway.ask(CHAT, headers={**foreign, **user})).status == 200


async def test_only_this_machine_may_manage_without_keys(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url]) as gateway:
        proxied = {"x-forwarded-for": "198.51.100.7"}
        reply = await gateway.ask(b"", "/v1/cache", method="DELETE", headers=proxied)
        assert (reply.status, reply.error["code"]) == (403, "role_not_allowed")
        viewer = await add_key(gateway, "v", "viewer")
        admin = await add_key(gateway, "a", "admin")
        assert (await gateway.ask(b"", "/metrics", method="GET", headers=viewer)).status == 200
        assert (await gateway.ask(CHAT, headers=viewer)).status == 403
        assert (await gateway.ask(b"", "/v1/cache", method="GET", headers=viewer)).status == 403
        remote = {**proxied, **admin}
        assert (await gateway.ask(b"", "/v1/cache", method="GET", headers=remote)).status == 200


async def test_of_tenants_viewers_see_their_own_and_admins_all(tmp_path: Path) -> None:
    async with running_echo() as url, running_gateway(tmp_path, [url], managed=True) as gateway:

        async def ask(query: str, headers: dict[str, str]) -> int:
            path = f"/api/v1/series?{query}"
            return (await gateway.ask(b"", path, method="GET", headers=headers)).status

        assert await ask("tenant=any", {}) == 200  # on this machine, without keys
        viewer = await add_key(gateway, "v", "viewer")
        operator = await add_key(gateway, "o", "operator")
        admin = await add_key(gateway, "a", "admin")
        assert await ask("tenant=v", viewer) == await ask("by=tenant", viewer) == 200
        assert await ask("tenant=a", viewer) == await ask("tenant=a", operator) == 403
        assert await ask("tenant=v", admin) == 200
