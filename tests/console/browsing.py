"""A real Chromium on the console, which notes everything that went wrong in the page."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

WIDE, PHONE = (1280, 860), (390, 844)
PATIENCE_MS = 180_000
_WATCH = """
window.reports = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.reports.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`);
});
"""


def find_chromium() -> str:
    """The browser of `make test-console`."""
    path = os.environ.get("THRIFTY_TEST_CHROMIUM")
    if not path:
        pytest.skip("THRIFTY_TEST_CHROMIUM is not set: run `make test-console`")
    return path


@dataclass
class Browsing:
    """One page, with what it did."""

    page: object
    faults: list[str] = field(default_factory=list)
    """Errors of the console and of scripts, and requests to anywhere else."""

    async def find_reports(self) -> list[str]:
        """What the content security policy blocked, and the faults."""
        return [*await self.page.evaluate("window.reports"), *self.faults]  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def browsing(
    url: str,
    *,
    theme: str = "light",
    size: tuple[int, int] = WIDE,
    expect: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> AsyncIterator[Browsing]:
    """A browser on `url`. `expect` are words of console errors that are no fault, such as the
    browser's note of a refused request; `also` are hosts that may be asked besides its own.
    """
    from playwright.async_api import async_playwright

    own = urlsplit(url).netloc
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        context = await browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme,
            permissions=["clipboard-read", "clipboard-write"], reduced_motion="reduce",
        )  # fmt: skip
        await context.add_init_script(_WATCH)
        page = await context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        made = Browsing(page)
        page.on("pageerror", lambda error: made.faults.append(f"error: {error}"))

        def note_message(message: object) -> None:
            text = message.text  # type: ignore[attr-defined]
            known = any(word in text for word in expect)
            if message.type in ("error", "warning") and not known:  # type: ignore[attr-defined]
                made.faults.append(f"console: {text}")

        def note_request(request: object) -> None:
            address = urlsplit(request.url)  # type: ignore[attr-defined]
            if address.scheme not in ("data", "blob") and address.netloc not in (own, *also):
                made.faults.append(f"asked {request.url}")  # type: ignore[attr-defined]

        page.on("console", note_message)
        page.on("request", note_request)
        try:
            await page.goto(url)
            yield made
        finally:
            await browser.close()
