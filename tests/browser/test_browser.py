"""What a person sees: the forms in ComfyUI's workflow sidebar, and the page of verify.yml; `make browser` calls it.

They are those of a sandbox, BROWSER_SANDBOX or `browser`, that was provisioned and verified. Screenshots stay beside
its evidence; two of them are the pictures of README.md, `cp artifacts/browser/first_page_*.png docs/images/`.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from browser.chromium import Tab
from sandbox import containers
from sandbox.engine import ensure_engine

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = os.environ.get("BROWSER_SANDBOX", "browser")
EVIDENCE = ROOT / "artifacts" / SANDBOX
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
APP = "window.app?.vueAppReady && document.querySelector('canvas') !== null"
# Neither the picture of the start lies over the page, nor a dialog.
UNCOVERED = "document.querySelector('#splash-loader, [role=dialog]') === null"
# The leaves of the sidebar's tree, and what a person reads on one; the editor of 0.3.68 shows the ending.
LEAVES = "[...document.querySelectorAll('.tree-leaf')]"
TEXT = r"leaf.textContent.trim().replace(/\.json$/, '')"


@pytest.fixture(scope="module")
def editor() -> Iterator[Tab]:
    container = containers.find(ensure_engine(), SANDBOX)
    assert container, f"there is no sandbox {SANDBOX}. Type: make browser"
    url = f"http://127.0.0.1:{containers.published_port(container, containers.FORWARD_PORT)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        if b"stand-in" in answer.read():
            pytest.skip("the stand-in for ComfyUI has no editor: COMFYUI_SOURCE_REPO names a real one")
    # Who is here for the first time is offered templates, over everything else, at some moment after the start.
    setting = urllib.request.Request(f"{url}/settings/Comfy.TutorialCompleted", b"true", method="POST")  # noqa: S310
    with urllib.request.urlopen(setting, timeout=30):  # noqa: S310 - the sandbox's own loopback
        pass
    with Tab() as tab:
        tab.send("Page.navigate", url=url)
        tab.until(APP, "the editor is there", 120)
        yield tab


@pytest.fixture(scope="module")
def sidebar(editor: Tab) -> Tab:
    editor.press("w")
    editor.until(f"{LEAVES}.length >= {len(NAMES)}", "the sidebar lists workflows")
    editor.until(UNCOVERED, "nothing lies over it")
    return editor


def test_the_sidebar_lists_the_forms(sidebar: Tab) -> None:
    assert set(NAMES) <= set(sidebar.evaluate(f"{LEAVES}.map(leaf => {TEXT})"))
    sidebar.picture(EVIDENCE / "browser_sidebar.png")


@pytest.mark.parametrize("name", NAMES)
def test_a_form_opens_as_the_graph_of_its_name(sidebar: Tab, name: str) -> None:
    graph: dict[str, Any] = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    sidebar.evaluate(f"{LEAVES}.find(leaf => {TEXT} === '{name}').querySelector('span').click()")
    opened = (
        f"document.title.includes('{name}') && (window.app.rootGraph ?? window.app.graph).nodes.length === {len(graph)}"
    )
    sidebar.until(opened, f"{name} is drawn")
    # What Export (API) would write.
    exported = sidebar.evaluate("window.app.graphToPrompt().then(prompt => prompt.output)")
    sidebar.picture(EVIDENCE / f"browser_{name}.png")
    assert sidebar.evaluate(UNCOVERED)
    assert exported == graph


# All nodes of txt2img_sdxl beside the sidebar, and their words, which the editor leaves out where they are small.
SHOW_ALL = """(async () => {
    const canvas = window.app.canvas, settings = window.app.extensionManager.setting;
    await settings.set('LiteGraph.Canvas.MinFontSizeForLOD', 0);
    await settings.set('Comfy.Minimap.Visible', false);
    canvas.ds.scale = 0.64;
    canvas.ds.offset = [740, 270];
    canvas.setDirty(true, true);
    // The editor draws when it finds time, and says nothing when it has drawn.
    return new Promise(done => setTimeout(() => done(true), 2000));
})()"""


def test_the_first_page_shows_the_editor_as_it_is(sidebar: Tab) -> None:
    sidebar.send("Emulation.setDeviceMetricsOverride", width=1920, height=620, deviceScaleFactor=1, mobile=False)
    sidebar.evaluate(f"{LEAVES}.find(leaf => {TEXT} === 'txt2img_sdxl').querySelector('span').click()")
    sidebar.until("document.title.includes('txt2img_sdxl')", "it is drawn")
    assert sidebar.evaluate(SHOW_ALL)
    sidebar.picture(EVIDENCE / "first_page_editor.png")
    assert_on_first_page("first_page_editor.png")


def test_the_first_page_shows_the_verdict_as_it_is() -> None:
    with Tab() as tab:
        tab.send("Emulation.setDeviceMetricsOverride", width=1200, height=960, deviceScaleFactor=1, mobile=False)
        tab.send("Page.navigate", url=(EVIDENCE / "verify.html").as_uri())
        tab.until("document.readyState === 'complete'", "the page is there")
        tab.picture(EVIDENCE / "first_page_verdict.png")
    assert_on_first_page("first_page_verdict.png")


def assert_on_first_page(name: str) -> None:
    """That README.md shows a picture of this name that looks like this one, small enough to be kept in the tree."""
    kept = ROOT / "docs/images" / name
    assert f"(docs/images/{name})" in (ROOT / "README.md").read_text()
    assert kept.stat().st_size < 200_000
    with Image.open(kept) as shown, Image.open(EVIDENCE / name) as drawn:
        # Dates and digests differ from run to run; at this size they are grey.
        small = [picture.convert("RGB").resize((96, 48)) for picture in (shown, drawn)]
    assert ImageStat.Stat(ImageChops.difference(*small)).mean < [8] * 3, f"look, then: cp {EVIDENCE / name} {kept}"


def colours(data: Path) -> int:
    """How many colours a picture has: a page that stayed empty has one or two."""
    with Image.open(data) as picture:
        found = picture.convert("RGB").resize((200, 200)).getcolors(200 * 200)
    return len(found or [])


@pytest.mark.parametrize("look", ["light", "dark", "print"])
def test_the_page_is_drawn_and_asks_for_nothing(look: str) -> None:
    document = json.loads((EVIDENCE / "verify.json").read_text())
    page = (EVIDENCE / "verify.html").as_uri()
    with Tab(1200, 1600) as tab:
        media = (
            {"media": "print"} if look == "print" else {"features": [{"name": "prefers-color-scheme", "value": look}]}
        )
        tab.send("Emulation.setEmulatedMedia", **media)
        tab.send("Page.navigate", url=page)
        tab.until("document.readyState === 'complete'", "the page is there")
        tab.picture(EVIDENCE / f"browser_page_{look}.png", whole=True)
        assert tab.requested() == [page]
        assert not [event for event in tab.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
        text = tab.evaluate("document.body.innerText")
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        wide = tab.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        broken = tab.evaluate("[...document.images].filter(image => !image.naturalWidth).length")
    assert document["verdict"].upper() in text
    assert document["host"] in text
    assert all(figure["name"] in text for figure in document["figures"])
    assert (wide, broken) == (False, 0)
    assert colours(EVIDENCE / f"browser_page_{look}.png") > 20
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (look == "dark")
