"""ComfyUI renders without a model: a PNG of the asked size comes back and lies where it should."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from site_fixtures import Prompt
from verdict import Evidence

pytestmark = pytest.mark.level(2)

RENDER_LIMIT_S = 60
# The sample picture once more, in another size: it has many colours, so a blank answer is a fault of the server.
SAMPLE_SIZE = (320, 256)
SAMPLE: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "dgx_pixels_sample.png"}},
    "2": {
        "class_type": "ImageScale",
        "inputs": {
            "image": ["1", 0],
            "upscale_method": "nearest-exact",
            "width": SAMPLE_SIZE[0],
            "height": SAMPLE_SIZE[1],
            "crop": "center",
        },
    },
    # A name that no run before had, for the same reason as the colour below.
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": f"dgx_pixels_{uuid.uuid4()}"}},
}


def png_on_disk(host: Any, path: str) -> tuple[str, int, int]:
    """Signature, width and height as the file on the host has them, without ComfyUI in between."""
    data = bytes.fromhex("".join(host.check_output("od -An -v -tx1 -N24 %s", path).split()))
    return data[:8].hex(), int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.fixture(scope="module")
def render(host: Any, site: dict[str, Any], prompt: Prompt) -> Iterator[dict[str, Any]]:
    # A colour that was not asked for before: otherwise the server may answer from its cache and write nothing.
    colour = random.randrange(1 << 24)  # noqa: S311 - a colour, not a secret
    graph_file = f"{site['comfyui_data_dir']}/workflows/render_check.json"
    result = prompt(graph_file=graph_file, inputs={"1": {"color": colour}}, timeout_s=RENDER_LIMIT_S)
    yield result
    for image in result["images"]:
        host.check_output("rm -f %s", f"{site['comfyui_data_dir']}/output/{image['filename']}")


def test_criterion_10_a_png_of_the_asked_size_comes_back(render: dict[str, Any], record: Evidence) -> None:
    (image,) = render["images"]
    assert render["cached_nodes"] == []
    assert (image["format"], image["width_px"], image["height_px"]) == ("PNG", 512, 512)
    assert image["filename"].startswith("dgx_pixels_check_")
    record.figure("Render without a model", render["seconds"], "s", at_most=RENDER_LIMIT_S)


def test_the_render_lies_in_the_output_folder_and_belongs_to_the_service(
    host: Any, site: dict[str, Any], render: dict[str, Any], record: Evidence
) -> None:
    path = f"{site['comfyui_data_dir']}/output/{render['images'][0]['filename']}"
    record.image("render_check.png", host.file(path).content, "Render without a model: one colour, 512x512")
    assert png_on_disk(host, path) == ("89504e470d0a1a0a", 512, 512)
    assert host.file(path).uid == site["comfyui_user_id"]


def test_the_sample_picture_comes_back_scaled_and_not_blank(
    host: Any, site: dict[str, Any], prompt: Prompt, record: Evidence
) -> None:
    width, height = SAMPLE_SIZE
    expect = {"count": 1, "width_px": width, "height_px": height, "format": "PNG", "not_blank": True}
    try:
        (image,) = prompt(graph=SAMPLE, expect=expect, timeout_s=RENDER_LIMIT_S)["images"]
        data = host.file(f"{site['comfyui_data_dir']}/output/{image['filename']}").content
        record.image("sample.png", data, f"The sample picture, scaled to {width}x{height}")
    finally:
        prefix = SAMPLE["3"]["inputs"]["filename_prefix"]
        host.check_output(f"rm -f {site['comfyui_data_dir']}/output/{prefix}*")
