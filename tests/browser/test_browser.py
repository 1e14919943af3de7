"""What a person sees: the forms in ComfyUI's workflow sidebar, and the page of verify.yml; `make browser` calls it.

They are those of a sandbox, BROWSER_SANDBOX or `browser`, that was provisioned and verified. Screenshots stay beside
its evidence.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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
