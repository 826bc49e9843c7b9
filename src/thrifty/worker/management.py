"""The management API in a gateway worker, created on first use.

The web framework costs memory and half a second of imports, which a worker that only forwards
tokens should not pay. The API's requests run on threads and never delay a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from thrifty.api.services import ApiServices
from thrifty.api.table import API_ROUTES
from thrifty.db.keys import Key
from thrifty.gateway.app.endpoints import OwnRoute
from thrifty.gateway.app.lists import find_visible_tenant
from thrifty.http.asgi import AsgiApp, AsgiBridge
from thrifty.http.exchange import Exchange

LOOPBACK_CALLER = "loopback"
"""The caller's name if no keys are needed: someone on this machine."""


class Management:
    """Handles the routes of the management API."""

    def __init__(self, make_services: Callable[[], ApiServices]) -> None:
        self._make_services = make_services
        self._services: ApiServices | None = None
        self._bridge: asyncio.Task[AsgiBridge] | None = None

    def routes(self) -> list[OwnRoute]:
        """The routes of the management API."""
        return [
            OwnRoute(route.method, route.path, route.role, self._answer, route.summary)
            for route in API_ROUTES
        ]

    def warm_up(self) -> None:
        """Start the application without waiting for it: its first request will follow."""
        if self._bridge is None:
            self._bridge = asyncio.get_running_loop().create_task(self._start())

    def end_streams(self) -> None:
        """End the event streams, which would otherwise delay draining."""
        if self._bridge is not None and self._bridge.done() and not self._bridge.cancelled():
            self._bridge.result().end_streams()

    async def stop(self) -> None:
        """Stop the application."""
        if self._bridge is not None:
            await (await self._bridge).stop()
        if self._services is not None:
            self._services.close()

    async def _answer(self, exchange: Exchange, key: Key | None, _: Mapping[str, str]) -> None:
        self.warm_up()
        assert self._bridge is not None
        bridge = await asyncio.shield(self._bridge)
        state = {
            "caller": LOOPBACK_CALLER if key is None else key.name,
            "tenant": find_visible_tenant(exchange, key, {}),
        }
        await bridge.answer(exchange, state)

    async def _start(self) -> AsgiBridge:
        bridge = AsgiBridge(await asyncio.to_thread(self._make_app))
        await bridge.start()
        return bridge

    def _make_app(self) -> AsgiApp:
        from thrifty.api.app import make_api

        self._services = self._make_services()
        return make_api(self._services)
