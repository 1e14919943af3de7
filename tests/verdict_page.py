"""The verdict as one HTML page that needs nothing beside it: for a person, in a browser or on paper."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

TEMPLATE = Path(__file__).with_name("verdict_page.html.j2")
# Above this a picture goes into the page as JPEG: the PNGs lie beside it, and the page is to be small enough to mail.
EMBED_LIMIT_B = 200_000
CHART_WIDTH, CHART_HEIGHT = 600, 90


def data_uri(data: bytes) -> str:
    """A picture as an address that holds it."""
    kind = "png"
    if len(data) > EMBED_LIMIT_B:
        with io.BytesIO() as out:
            Image.open(io.BytesIO(data)).convert("RGB").save(out, "JPEG", quality=85)
            data, kind = out.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def line(samples: list[dict[str, Any]], key: str, top: float) -> str:
    """The points of a chart's line, in its own units; nothing where the driver reports no figure."""
    known = [(sample["at_s"], sample[key]) for sample in samples if sample[key] is not None]
    if len(known) < 2 or not top:
        return ""
    last_s = known[-1][0] or 1
    return " ".join(
        f"{at_s / last_s * CHART_WIDTH:.1f},{CHART_HEIGHT - min(value / top, 1) * CHART_HEIGHT:.1f}"
        for at_s, value in known
    )


def charts(samples: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """For each sampled run its two lines: utilisation in percent, and memory of GPU or host by its highest value."""
    drawn = []
    for title, taken in samples.items():
        key = "gpu_memory_mib" if any(sample["gpu_memory_mib"] is not None for sample in taken) else "memory_used_mib"
        top_mib = max((sample[key] or 0 for sample in taken), default=0)
        drawn.append(
            {
                "title": title,
                "seconds": taken[-1]["at_s"] if taken else 0,
                "percent": line(taken, "gpu_percent", 100),
                "memory": line(taken, key, top_mib),
                "memory_name": "GPU memory" if key == "gpu_memory_mib" else "memory of the host",
                "top_mib": top_mib,
            }
        )
    return drawn


def title(name: str) -> str:
    """A test's name as a sentence: its parameter behind it, a criterion's number before it."""
    bare, _, parameter = name.removesuffix("]").partition("[")
    words = re.sub(r"^test_(criterion_(\d+)_)?", r"\2 ", bare).strip().replace("_", " ")
    words = re.sub(r"^(\d+) ", r"\1. ", words)
    return f"{words} ({parameter})" if parameter else words


def share(figure: dict[str, Any]) -> float:
    """How far a figure is along its limit, in percent; a bar that is full has reached it."""
    limit = figure["at_most"] or figure["at_least"]
    return min(100.0, 100.0 * figure["value"] / limit) if limit else 0.0


def render(document: dict[str, Any], folder: Path) -> str:
    """The page of a verify.json, with the pictures of its folder in it."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    promises: dict[str, list[dict[str, Any]]] = {}
    for test in document["tests"]:
        promises.setdefault(test["promise"], []).append(test)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        **{key: value for key, value in document.items() if key != "counts"},
        numbers=document["counts"],
        promises=promises,
        failures=[test for test in document["tests"] if test["outcome"] == "failed"],
        pictures=[{**image, "uri": data_uri((folder / image["file"]).read_bytes())} for image in document["images"]],
        charts=charts(document["samples"]),
        share=share,
        title=title,
        chart_width=CHART_WIDTH,
        chart_height=CHART_HEIGHT,
    )
