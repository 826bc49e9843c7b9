"""Signing in to the console in a real Chromium through an identity provider that others wrote
(npm's `oidc-provider`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.console.browsing import browsing
from tests.console.identity import CLIENT, SECRET
from tests.console.site import running_site
from tests.console.test_browser import check_accessible
from thrifty.console import oidc as oidc_module
from thrifty.console.oidc import OidcSettings
from thrifty.fleet.ports import find_free_port

pytestmark = pytest.mark.console

PACKAGE = "oidc-provider@9.13.3"
SCRIPT = Path(__file__).with_name("oidc_provider.mjs")
ROLES: dict[str, tuple[str, ...]] = {"admin": ("platform",), "operator": ("ml-ops",)}


def install_provider() -> Path:
    """The folder of the provider's package, installed once. Skips, and says so, where npm is not."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("NOT CHECKED against another's identity provider: there is no npm here")
    root = Path(os.environ.get("THRIFTY_TEST_ENVIRONMENTS") or Path.home() / ".cache/thrifty-tests")
    folder = root / "oidc-provider"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "oidc-provider").exists():
        done = subprocess.run(
            [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", PACKAGE],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"NOT CHECKED: {PACKAGE} cannot be had: {done.stderr[-300:]}")
    shutil.copy(SCRIPT, folder / SCRIPT.name)
    return folder


@contextlib.contextmanager
def running_provider(port: int, redirect: str, kid: str) -> Iterator[None]:
    """The provider with a new key of this id."""
    folder = install_provider()
    process = subprocess.Popen(
        ["node", SCRIPT.name, str(port), redirect, kid], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if "listening" in line:
                break
        else:
            raise AssertionError("".join(said))
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def sign_in_as(page: Any, name: str) -> None:
    """Through the provider's own pages."""
    await (
        page.get_by_role("link", name="Sign in with Acme")
        .or_(page.get_by_role("button", name="Sign in with Acme"))
        .click()
    )
    await page.locator("input[name=login]").fill(name)
    await page.locator("input[name=password]").fill("any")
    await page.locator("button[type=submit]").click()
    await page.get_by_role("button", name="Continue").click()


async def test_people_sign_in_by_their_provider_with_their_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OIDC_SECRET", SECRET)
    monkeypatch.setattr(oidc_module, "MIN_REFRESH_S", 0.0)
    port, own = find_free_port(), find_free_port()
    settings = OidcSettings(
        issuer=f"http://127.0.0.1:{port}", client_id=CLIENT, url=f"http://127.0.0.1:{own}",
        client_secret_env="OIDC_SECRET", name="Acme", roles=ROLES,
    )  # fmt: skip
    with contextlib.ExitStack() as provider:
        provider.enter_context(running_provider(port, settings.redirect_uri, "first"))
        async with (
            running_site(tmp_path, port=own, oidc=settings) as site,
            browsing(site.console, also=(f"127.0.0.1:{port}",), expect=("40",)) as tab,
        ):
            page = tab.page
            await page.get_by_role("heading", name="Sign in").wait_for()
            await check_accessible(page)
            await sign_in_as(page, "ann")
            await page.get_by_role("navigation", name="Pages").wait_for(state="attached")
            await page.get_by_text("ann@example.com").first.wait_for()
            assert await page.get_by_role("link", name="Audit").count() == 0, "an operator"
            # What the browser keeps can be read by no script.
            assert "thrifty-session" not in await page.evaluate("document.cookie")
            cookies = {one["name"]: one for one in await page.context.cookies()}
            kept = cookies["thrifty-session"]
            assert kept["httpOnly"]
            assert kept["sameSite"] == "Strict"
            await page.reload()
            await page.get_by_text("ann@example.com").first.wait_for()
            await page.get_by_role("button", name="Sign out").click()
            await page.get_by_role("heading", name="Sign in").wait_for()
            # The provider's keys rotate.
            provider.close()
            provider.enter_context(running_provider(port, settings.redirect_uri, "second"))
            await page.context.clear_cookies()
            await page.reload()
            await sign_in_as(page, "rob")
            await page.get_by_text("rob@example.com").first.wait_for()
            await page.get_by_role("link", name="Audit").wait_for()
            await page.get_by_role("button", name="Sign out").click()
            await page.get_by_role("heading", name="Sign in").wait_for()
            await page.context.clear_cookies()
            await page.reload()
            await sign_in_as(page, "eve")
            await page.get_by_text("have no role here").wait_for()
            await check_accessible(page)


async def test_an_operator_restarts_and_drains_and_is_asked_first(tmp_path: Path) -> None:
    async with (
        running_site(tmp_path) as site,
        browsing(f"{site.console}#/deployments", expect=("409",)) as tab,
    ):
        page = tab.page
        await page.get_by_role("button", name="Restart stable").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_text("replaced by").wait_for()
        await check_accessible(page)
        await dialog.get_by_role("button", name="Cancel").click()
        await page.get_by_role("button", name="Restart stable").click()
        await dialog.get_by_label("Why").fill("it leaks")
        await dialog.get_by_role("button", name="Restart", exact=True).click()
        await page.get_by_text("it leaks").first.wait_for(state="attached")
        await page.get_by_role("button", name="Drain assistant-2").click()
        await dialog.get_by_text("No other replica of candidate is ready").wait_for()
        await check_accessible(page)
        await dialog.get_by_label("Drain it all the same").check()
        await dialog.get_by_role("button", name="Drain", exact=True).click()
        # These replicas are not processes of this machine: what is refused is said.
        await dialog.get_by_text("on this machine alone").wait_for()
        assert await tab.find_reports() == []
