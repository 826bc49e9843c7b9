"""The console in a real Chromium: every page, both themes, a phone, the keyboard, a screen reader's
rules (axe), and what must not happen.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.console.browsing import PHONE, WIDE, browsing
from tests.console.site import (
    NAME,
    Site,
    fill,
    fill_improve,
    fill_quality,
    fill_release,
    measure_release,
    raise_alert,
    running_site,
)
from tests.parts import running_service, wait_until
from thrifty.db.feedback import FeedbackFilter, list_feedback
from thrifty.db.improve import begin_step, note_progress, read_run
from thrifty.fleet.ports import find_free_port

# A browser beside two busy loops is slow, and each test looks at many pages.
pytestmark = [pytest.mark.console, pytest.mark.timeout(1200)]

PAGES = {
    "overview": "By version", "deployments": "Replicas", "releases": "No release yet", "improve": "Runs of the loop",
    "alerts": "An answer in a hundred is lost", "requests": "Request log",
    "playground": "Ask something", "feedback": "Turn into data", "quality": "Faults of answers", "models": "The store is empty",
    "cost": "Budgets and forecasts", "keys": "No keys yet", "audit": "Acts",
    "settings": "Spec in force",
}  # fmt: skip
"""What is on each page once it has loaded."""
HOSTILE = (
    '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
    '<svg onload="window.pwned=1"></svg><style>*{display:none}</style>'
    '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe>'
    '<a href="javascript:window.pwned=1" style="color:red" onclick="window.pwned=1">raw</a>\n\n'
    "[js](javascript:window.pwned=1) [data](data:text/html,<script>1</script>) "
    "[ok](https://example.com/a?b=1) ![img](https://evil.example/pixel.png)\n\n"
    "```html\n<b onmouseover=window.pwned=1>code</b>\n```\n\n"
    '| a |\n|---|\n| <img src=x onerror=window.pwned=1> |\n\n<math><mi xlink:href="javascript:1">'
)


async def check_accessible(page: Any) -> None:
    from axe_playwright_python.async_playwright import Axe

    results = await Axe().run(page)
    found = [
        (one["id"], [node["target"] for node in one["nodes"]])
        for one in results.response["violations"]
    ]
    assert not found, json.dumps(found, indent=1)


async def open_page(page: Any, name: str, words: str) -> None:
    await page.evaluate("name => { location.hash = `#/${name}`; }", name)
    await page.get_by_text(words, exact=False).first.wait_for()


async def sign_in(page: Any, key: str) -> None:
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Sign in").click()
    await page.get_by_role("navigation", name="Pages").wait_for(state="attached")


async def ask(page: Any, text: str) -> None:
    await page.get_by_label("Your message").fill(text)
    await page.keyboard.press("Enter")
    await page.get_by_role("button", name="Send").wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
async def test_every_page(tmp_path: Path, theme: str, size: tuple[int, int]) -> None:
    async with running_site(tmp_path) as site:
        await asyncio.to_thread(fill, site.database, 400, span_s=2400.0)
        await asyncio.to_thread(raise_alert, site.database)
        await asyncio.to_thread(fill_quality, site.database)
        async with browsing(site.console, theme=theme, size=size) as tab:
            for name, words in PAGES.items():
                await open_page(tab.page, name, words)
                width = await tab.page.evaluate("document.documentElement.scrollWidth")
                assert width <= size[0], f"{name} is {width} pixels wide"
                await check_accessible(tab.page)
                for figure in await tab.page.locator("figure.chart").all():
                    assert await figure.locator("table").count() == 1
            request = await tab.page.request.get(f"{site.url}/v1/requests?limit=1")
            ident = (await request.json())["data"][0]["id"]
            await open_page(tab.page, f"requests/{ident}", "Conversation")
            await tab.page.get_by_label("Steps of the request").wait_for()
            await check_accessible(tab.page)
            back = await tab.page.evaluate(
                "getComputedStyle(document.documentElement).backgroundColor"
            )
            dark = sum(map(int, re.findall(r"\d+", back)[:3])) < 200
            assert dark == (theme == "dark")
            assert await tab.find_reports() == []


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
async def test_runs_of_the_loop(tmp_path: Path, size: tuple[int, int]) -> None:
    async with running_site(tmp_path) as site, browsing(site.console, size=size) as tab:
        refused, waiting = await asyncio.to_thread(fill_improve, site.database, site.home)
        page = tab.page
        await open_page(page, "improve", f"Run {refused}")
        await open_page(page, f"improve/{refused}", "What was collected")
        await page.get_by_text("7 judgements of users who like far more").wait_for()
        await page.get_by_text("topic=billing", exact=True).wait_for()
        assert await page.evaluate("document.documentElement.scrollWidth") <= size[0]
        await check_accessible(page)
        assert await page.get_by_role("button", name="Approve").count() == 0
        await open_page(page, f"improve/{waiting}", "waits for approval")
        await page.get_by_role("button", name="Approve").click()
        dialog = page.get_by_role("dialog")
        await dialog.wait_for()
        await check_accessible(page)
        await dialog.get_by_role("button", name="Approve").click()
        await dialog.wait_for(state="detached")
        await page.get_by_text("approve", exact=True).first.wait_for()
        run = read_run(site.database, waiting)
        assert run.find_outputs("approve") is not None
        begin_step(site.database, run, "release", {})
        progress = {"step": "release", "done": 2, "total": 4, "unit": "stages"}
        note_progress(site.database, run, "release", progress)
        await open_page(page, f"improve/{waiting}", "release: 2 of 4 stages")
        assert await tab.find_reports() == []


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
async def test_a_release_is_drawn_while_it_runs(tmp_path: Path, size: tuple[int, int]) -> None:
    async with running_site(tmp_path) as site, browsing(site.console, size=size) as tab:
        page, database = tab.page, site.database
        number = fill_release(database)
        measure_release(database, number, -0.5)
        await open_page(page, f"releases/{number}", "21.5 ms")
        points = page.locator("figure.chart").first.locator("tbody tr")
        for change in (-0.4, -0.3):
            measure_release(database, number, change)
            await page.get_by_role("cell", name=f"{change:.1%}", exact=True).first.wait_for()
        await points.nth(2).wait_for(state="attached")
        titles = await page.locator("figure.chart figcaption").all_text_contents()
        assert [title.split("lower")[0].strip() for title in titles] == [
            "Difference in acceptance", "Difference in ttft",
        ], "nothing is drawn of what was not measured"  # fmt: skip
        assert await page.evaluate("document.documentElement.scrollWidth") <= size[0]
        await check_accessible(page)
        assert await tab.find_reports() == []


async def test_by_keyboard_alone(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, browsing(site.console) as tab:
        page = tab.page
        press = page.keyboard.press
        await page.get_by_text("What changed").wait_for()
        await press("Tab")
        assert await page.evaluate("document.activeElement.textContent") == "Skip to the page"
        await press("Enter")
        assert await page.evaluate("document.activeElement.tagName") == "H1"
        link = page.get_by_role("link", name="Deployments")
        await link.focus()
        await press("Enter")
        await page.get_by_role("button", name="Shift traffic").wait_for()
        assert await page.evaluate("document.activeElement.textContent") == "Deployments"
        await page.get_by_role("button", name="Shift traffic").focus()
        await press("Enter")
        dialog = page.get_by_role("dialog")
        await dialog.wait_for()
        await check_accessible(page)
        await press("Escape")
        await dialog.wait_for(state="detached")
        assert await page.evaluate("document.activeElement.textContent") == "Shift traffic"
        await press("Enter")
        await dialog.wait_for()
        first = dialog.get_by_role("spinbutton").first
        await first.focus()
        await press("Control+a")
        await page.keyboard.type("50")
        await dialog.get_by_label("Why").focus()
        await page.keyboard.type("try it")
        await press("Enter")
        await dialog.wait_for(state="detached")
        await page.get_by_text("The traffic of assistant was changed.").wait_for(state="attached")
        answer = await page.request.get(f"{site.url}/api/v1/deployments/{NAME}/traffic")
        assert (await answer.json())["weights"] == {"stable": 50, "candidate": 10}
        assert await tab.find_reports() == []


async def test_a_hostile_answer_does_nothing(tmp_path: Path) -> None:
    async with running_site(tmp_path, reply=HOSTILE) as site, browsing(site.console) as tab:
        page = tab.page
        await open_page(page, "playground", "Ask something")
        await ask(page, "Be evil")
        answer = page.locator(".answer .markdown")
        await answer.get_by_text("onerror", exact=False).first.wait_for()
        text = await answer.inner_text()
        assert "<script>window.pwned=1</script>" in text
        assert "<style>" in text
        assert await answer.locator("img, script, style, iframe, svg, math").count() == 0
        links = await answer.locator("a").evaluate_all("all => all.map((one) => one.href)")
        assert [one for one in links if not one.startswith("https://")] == []
        assert "https://example.com/a?b=1" in links
        await page.get_by_role("link", name="In the log").click()
        await page.locator(".talk .markdown").last.wait_for()
        assert "<script>" in await page.locator(".talk").inner_text()
        assert await page.evaluate("window.pwned === undefined")
        assert await tab.find_reports() == []


async def test_a_viewer_has_no_operators_buttons_and_the_service_refuses(tmp_path: Path) -> None:
    async with (
        running_site(tmp_path, with_keys=True) as site,
        browsing(site.console, expect=("403", "401")) as tab,
    ):
        page = tab.page
        await page.get_by_label("API key").fill("sk-thrifty-wrong")
        await page.get_by_role("button", name="Sign in").click()
        await (
            page.get_by_text("not a key of this service", exact=False)
            .or_(page.get_by_text("Incorrect API key", exact=False))
            .wait_for()
        )
        await check_accessible(page)
        await sign_in(page, site.keys["viewer"])
        await open_page(page, "deployments", "Replicas")
        for name in ("Shift traffic", "Scale", "Roll back", "Restart", "Drain"):
            assert await page.get_by_role("button", name=name).count() == 0
        for name in ("Requests", "Playground", "Keys and budgets", "Audit", "Settings"):
            assert await page.get_by_role("link", name=name).count() == 0
        status = await page.evaluate(
            """async (name) => (await fetch(`api/v1/deployments/${name}/traffic`, {
              method: "PUT", headers: {"content-type": "application/json"},
              body: JSON.stringify({weights: {stable: 1}}) })).status""",
            NAME,
        )
        assert status == 403
        assert await page.evaluate("document.cookie") == ""
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_label("API key").wait_for()
        assert await tab.find_reports() == []


async def test_the_playground_gives_real_feedback(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, browsing(site.console) as tab:
        page = tab.page
        await open_page(page, "playground", "Ask something")
        await page.get_by_label("Side by side").check()
        await page.get_by_label("Blind").check()
        await ask(page, "What is the capital of France?")
        answers = page.locator("section.answer")
        assert await answers.count() == 2
        for place in range(2):
            await answers.nth(place).get_by_role("button", name="Good").wait_for()
        names = await answers.locator(".who").all_inner_texts()
        assert [one.strip().lower() for one in names] == ["version a", "version b"]
        await answers.nth(0).get_by_role("button", name="Good").click()
        await answers.nth(1).get_by_role("button", name="Bad").click()
        await page.get_by_role("button", name="Reveal the versions").click()
        await page.get_by_text("First token", exact=False).first.wait_for()
        names = await answers.locator(".who").all_inner_texts()
        assert {one.split()[0].lower() for one in names} == {"stable", "candidate"}
        await answers.nth(0).get_by_role("button", name="Copy").click()
        await answers.nth(1).get_by_role("button", name="Correct").click()
        await answers.nth(1).get_by_label("How it should read").fill("Paris, of course.")
        await answers.nth(1).get_by_role("button", name="Save the correction").click()
        await answers.nth(1).get_by_label("How it should read").wait_for(state="detached")
        await page.get_by_role("button", name="Regenerate").click()
        await page.get_by_role("button", name="Send").wait_for()
        await check_accessible(page)

        def kinds() -> list[tuple[str, float | None]]:
            rows, _ = list_feedback(site.database, FeedbackFilter())
            return sorted((row.kind, row.value) for row in rows)

        expected = [
            ("correction", None), ("event:copied", 1.0), ("event:regenerated", 1.0),
            ("event:regenerated", 1.0), ("thumbs", 0.0), ("thumbs", 1.0),
        ]  # fmt: skip
        while await asyncio.to_thread(kinds) != expected:
            await asyncio.sleep(0.05)
        assert await tab.find_reports() == []


async def test_feedback_is_looked_through(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await asyncio.to_thread(fill, site.database, 40)
        async with browsing(site.console) as tab:
            page = tab.page
            await open_page(page, "feedback", "Turn into data")
            items = page.locator(".inbox > li")
            await items.first.wait_for()
            label = await items.first.get_by_role("group").get_attribute("aria-label")
            await items.first.get_by_role("button", name="good example").click()
            await page.get_by_label(str(label), exact=True).wait_for(state="detached")
            async with page.expect_download() as begun:
                await (
                    page.get_by_role("button", name="Download")
                    .or_(page.get_by_role("link", name="Download"))
                    .click()
                )
            path = await (await begun.value).path()
            rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
            assert all("messages" in row for row in rows)
            assert await tab.find_reports() == []


async def test_keys_are_made_and_revoked(tmp_path: Path) -> None:
    async with running_site(tmp_path, with_keys=True) as site, browsing(site.console) as tab:
        page = tab.page
        await sign_in(page, site.keys["admin"])
        await open_page(page, "keys", "operator-key")
        await page.get_by_role("button", name="Make a key").click()
        await page.get_by_label("Name").fill("laptop")
        await page.get_by_role("button", name="Make the key").click()
        secret = await page.locator(".secret").inner_text()
        assert secret.startswith("sk-thrifty-")
        await page.get_by_role("button", name="Close").click()
        await page.get_by_role("button", name="Revoke laptop").click()
        await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        await page.get_by_role("button", name="Revoke laptop").wait_for(state="detached")
        await open_page(page, "audit", "key.revoke")
        await page.get_by_role("button", name="Verify the chain").click()
        await page.get_by_text("Whole:", exact=False).wait_for()
        assert await tab.find_reports() == []


async def test_a_fault_is_said_and_can_be_tried_again(tmp_path: Path) -> None:
    async with (
        running_site(tmp_path) as site,
        browsing(site.console, expect=("Failed to load",)) as tab,
    ):
        page = tab.page
        await page.get_by_text("No requests in this window").wait_for()
        await page.route("**/v1/requests?*", lambda route: route.abort())
        await open_page(page, "requests", "cannot be reached")
        await check_accessible(page)
        await page.unroute("**/v1/requests?*")
        await page.get_by_role("button", name="Try again").click()
        await page.get_by_text("No requests found").wait_for()
        await open_page(page, "nowhere", "There is no page of this name")
        assert await tab.find_reports() == []


async def test_it_connects_again(tmp_path: Path) -> None:
    port = find_free_port()

    async def follow(site: Site, tab: Any) -> None:
        await tab.page.get_by_text("Live", exact=True).wait_for()

    async with running_site(tmp_path, port=port) as site:
        stack = browsing(site.console, expect=("Failed to load", "ERR_CONNECTION"))
        tab = await stack.__aenter__()
        await follow(site, tab)
    try:
        await tab.page.get_by_text("Reconnecting", exact=True).wait_for()
        async with running_site(tmp_path, port=port) as site:
            await follow(site, tab)
            assert await tab.find_reports() == []
    finally:
        await stack.__aexit__(None, None, None)


_SET_STATUS = """async (change) => {
  const { status } = await import(document.querySelector("link[href$='/api.js']").href);
  const [deployment] = status.value.deployments;
  status.value = { ...status.value, deployments: [{ ...deployment, ...change }] };
}"""


async def test_a_version_goes_away_under_a_dialog_and_a_page_that_throws(tmp_path: Path) -> None:
    fault = "This page met a fault"
    async with (
        running_site(tmp_path) as site,
        browsing(site.console, expect=("TypeError",)) as tab,
    ):
        page = tab.page
        await open_page(page, "deployments", "Replicas")
        await page.get_by_role("button", name="Scale").click()
        await page.get_by_role("dialog").wait_for()
        await page.evaluate(_SET_STATUS, {"versions": []})
        await page.get_by_role("dialog").wait_for(state="detached")
        assert await page.get_by_text(fault).count() == 0
        await page.evaluate(_SET_STATUS, {"versions": None})
        await page.get_by_text(fault).wait_for()
        await open_page(page, "audit", "Acts")
        assert await page.get_by_text(fault).count() == 0
        assert await tab.find_reports() == []


async def test_a_replica_dies_while_somebody_watches(tmp_path: Path) -> None:
    port = find_free_port()
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        json.dumps({"name": "chat", "engine": "echo", "replicas": 2, "gateway": {"port": port}})
    )
    context = running_service(tmp_path / "home", str(spec))
    service = await asyncio.to_thread(context.__enter__)
    try:
        async with browsing(f"{service.url}/console#/deployments") as tab:
            table = tab.page.get_by_role("table", name="Replicas of chat")
            await table.get_by_text("ready").nth(1).wait_for()
            replicas = await asyncio.to_thread(service.replicas)
            os.kill(replicas[0]["pid"], signal.SIGKILL)
            lost = re.compile("gone|backoff|unhealthy|starting|stopped|failed")
            await table.get_by_text(lost).first.wait_for()
            await tab.page.get_by_text(re.compile(r"Replica chat-\d is")).wait_for(state="attached")
            await table.get_by_text("ready").nth(1).wait_for()
            assert await tab.find_reports() == []
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)
        wait_until(lambda: service.process.poll() is not None)
