"""The workflow files as they lie in the repository."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import runpy
import shutil
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import comfyui_api
import comfyui_form
import comfyui_graph
from programs import load_program

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
SAMPLE = WORKFLOWS / "input" / "dgx_pixels_sample.png"
TEMPLATES = ("txt2img_sdxl", "img2img_sdxl", "batch_generation")
MODELS = ["checkpoints/sd_xl_base_1.0.safetensors"]
ART_PX = 64
SCALE = 8
SHA = "ab" * 32
PLACES = {
    "api": {"dir": "/srv/api/", "uid": 0, "gid": 0},
    "ui": {"dir": "/srv/ui", "uid": "990", "gid": "991"},
    "input": {"dir": "/srv/in", "uid": 990, "gid": 991},
}
SKY = ((38, 43, 68), (58, 68, 102), (90, 105, 136), (228, 166, 114), (254, 231, 97))


def art_pixel(x: int, y: int) -> tuple[int, int, int]:
    """The sample picture: a sunset behind mountains, a tower on a hill; 64 by 64 cells, a dozen colours."""
    hill_y = 50 + round(4 * math.cos((x - 20) / 9))
    if y >= hill_y:
        return (62, 137, 72) if y < hill_y + 2 or (x * 7 + y * 13) % 11 else (38, 92, 66)
    if 15 <= x <= 24 and y >= 28 and not (y < 31 and (x - 15) % 4 >= 2):
        return (24, 20, 37) if x in (19, 20) and 36 <= y <= 40 else (139, 155, 180) if x < 21 else (90, 105, 136)
    if (x - 46) ** 2 + (y - 26) ** 2 <= 36:
        return (254, 174, 52)
    if y >= 44 - abs((x + 6) % 28 - 14):
        return (58, 58, 80) if (x + 6) % 28 < 14 else (47, 46, 66)
    return SKY[min(y // 9, len(SKY) - 1)]


def sample_png() -> bytes:
    """The sample as a PNG, each cell 8 by 8 pixels; write it to SAMPLE after a change of the picture."""
    rows = b""
    for y in range(ART_PX):
        row = b"".join(bytes(art_pixel(x, y)) * SCALE for x in range(ART_PX))
        rows += (b"\x00" + row) * SCALE

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", ART_PX * SCALE, ART_PX * SCALE, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@functools.cache
def role_filters() -> Any:
    """The filters, loaded by file as Ansible loads them."""
    return load_program(ROOT / "plugins" / "filter" / "comfyui_workflows.py")


def load(name: str) -> Any:
    return comfyui_graph.parse_json((WORKFLOWS / f"{name}.json").read_text())


def node(name: str, class_type: str) -> dict[str, Any]:
    (found,) = [item["inputs"] for item in load(name).values() if item["class_type"] == class_type]
    return dict(found)


def recorded(version: str) -> dict[str, Any]:
    path = ROOT / "roles" / "comfyui_workflows" / "files" / f"object_info-{version}.json"
    return dict(json.loads(path.read_text())["classes"])


@pytest.mark.parametrize("version", ["0.28.1", "0.3.68"])
@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_file_is_valid_for_every_recorded_comfyui(path: Path, version: str) -> None:
    findings = comfyui_graph.check_text(
        path.read_text(), recorded(version), file=path.name, models=MODELS, input_files=[SAMPLE.name]
    )
    assert [found.describe() for found in findings] == []


def test_the_work_orders_files_are_there() -> None:
    assert {path.stem for path in WORKFLOWS.glob("*.json")} == {*TEMPLATES, "render_check"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_is_what_the_work_order_says(name: str) -> None:
    assert node(name, "CheckpointLoaderSimple") == {"ckpt_name": "sd_xl_base_1.0.safetensors"}
    sampler = node(name, "KSampler")
    assert (sampler["steps"], sampler["sampler_name"]) == (20, "euler")
    assert node(name, "SaveImage")["filename_prefix"] == f"dgx_pixels_{name.split('_', maxsplit=1)[0]}"
    prompts = [item["inputs"]["text"] for item in load(name).values() if item["class_type"] == "CLIPTextEncode"]
    assert "pixel art" in prompts[0]
    assert len(prompts) == 2


def test_sizes_and_numbers_of_images() -> None:
    assert node("txt2img_sdxl", "EmptyLatentImage") == {"width": 1024, "height": 1024, "batch_size": 1}
    assert node("batch_generation", "EmptyLatentImage") == {"width": 1024, "height": 1024, "batch_size": 4}
    scale = node("img2img_sdxl", "ImageScale")
    assert (scale["width"], scale["height"]) == (1024, 1024)
    assert node("img2img_sdxl", "LoadImage") == {"image": SAMPLE.name}
    assert [node(name, "KSampler")["denoise"] for name in TEMPLATES] == [1.0, 0.6, 1.0]


def test_render_check_needs_no_model() -> None:
    assert comfyui_graph.used_classes(load("render_check")) == ["EmptyImage", "SaveImage"]


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_every_node_has_a_title(path: Path) -> None:
    assert all(item["_meta"]["title"] for item in load(path.stem).values())


def test_sample_image_is_the_picture_that_is_drawn_here() -> None:
    data = SAMPLE.read_bytes()
    assert comfyui_api.read_png(data) == comfyui_api.read_png(sample_png())
    assert comfyui_api.read_png(data).blank is False
    assert len(data) < 20_000


def test_files_to_deploy(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", "notes.txt", "ui/a.json", "input/x.png", "input/make.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files = role_filters().workflow_files(str(tmp_path), PLACES)
    assert [(file["kind"], file["dest"], file["uid"], file["gid"]) for file in files] == [
        ("api", "/srv/api/a.json", 0, 0),
        ("api", "/srv/api/b.json", 0, 0),
        ("ui", "/srv/ui/a.json", 990, 991),
        ("input", "/srv/in/x.png", 990, 991),
    ]
    assert files[0]["sha256"] == hashlib.sha256(b"a.json").hexdigest()
    assert {file["mode"] for file in files} == {"0644"}


@pytest.mark.parametrize("version", ["0.28.1", "0.3.68", "9.9.9"])
def test_the_repositorys_files_have_no_findings(version: str) -> None:
    recording = ROOT / "roles" / "comfyui_workflows" / "files" / f"object_info-{version}.json"
    assert role_filters().workflow_findings(str(WORKFLOWS), str(recording), MODELS) == []


def test_findings_name_the_file(tmp_path: Path) -> None:
    graph = load("txt2img_sdxl")
    graph["5"]["inputs"]["steps"] = 0
    (tmp_path / "mine.json").write_text(json.dumps(graph))
    bare = tmp_path / "bare" / "info.json"
    bare.parent.mkdir()
    bare.write_text(json.dumps(recorded("0.28.1")))
    expected = ["mine.json: node 5 (KSampler), steps: 0 is below the smallest value, 1"]
    assert role_filters().workflow_findings(str(tmp_path), str(bare), MODELS) == expected
    assert role_filters().workflow_findings(str(tmp_path), "/nonexistent", MODELS) == []
    assert "is not among the models of checkpoints" in role_filters().workflow_findings(str(tmp_path), "", [])[0]


@pytest.mark.parametrize("settings", [None, {"mine": {"steps": 5}}])
@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b'{"1": {"class_type": "CLIPTextEncode", "inputs": {"text": "Schlo\xdf"}}}', "not valid JSON, which is UTF-8"),
        (b"{", "not valid JSON"),
        (b'{"1": {"class_type": "KSampler"}}', "node 1 (KSampler), inputs: the inputs are missing, or no object"),
    ],
)
def test_a_graph_that_cannot_be_read_is_a_finding_with_and_without_settings(
    tmp_path: Path, content: bytes, finding: str, settings: Any
) -> None:
    (tmp_path / "ui").mkdir()
    shutil.copy(WORKFLOWS / "ui/render_check.json", tmp_path / "ui/mine.json")
    (tmp_path / "mine.json").write_bytes(content)
    found = role_filters().workflow_findings(str(tmp_path), "", MODELS, settings)
    assert [line for line in found if line.startswith(f"mine.json: {finding}")], found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["seed", "positive", "negative", "id", "inputs", "type", "widget"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
NODES = st.fixed_dictionaries({}, optional={"class_type": st.just("KSampler"), "inputs": JSON})


@hypothesis.settings(max_examples=200, deadline=None)  # files, on a machine that may be busy
@hypothesis.given(
    graph=JSON | st.dictionaries(st.sampled_from("123"), NODES),
    form=JSON
    | st.fixed_dictionaries({"nodes": JSON, "links": JSON})
    | st.fixed_dictionaries({"nodes": st.lists(JSON, max_size=2), "links": st.just([])}),
)
def test_whatever_graph_and_form_hold_there_is_an_answer(graph: Any, form: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ui").mkdir()
        (Path(folder) / "mine.json").write_text(json.dumps(graph))
        (Path(folder) / "ui/mine.json").write_text(json.dumps(form))
        for line in role_filters().workflow_findings(folder, "", MODELS, {"mine": {"steps": 5, "prompt": "x"}}):
            assert line.startswith(("mine.json: ", "ui/mine.json: ", "settings for mine: "))


def test_a_folder_without_workflows_is_a_finding(tmp_path: Path) -> None:
    assert role_filters().workflow_findings(str(tmp_path), "", []) == [
        f"{tmp_path}: no workflow file (*.json) is there"
    ]


def test_an_input_image_that_is_not_deployed_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text((WORKFLOWS / "img2img_sdxl.json").read_text())
    recording = ROOT / "roles" / "comfyui_workflows" / "files" / "object_info-0.28.1.json"
    assert role_filters().workflow_findings(str(tmp_path), str(recording), MODELS) == [
        "a.json: node 8 (LoadImage), image: 'dgx_pixels_sample.png' is not one of: (none)"
    ]


def copy_of_workflows(folder: Path) -> Path:
    """The repository's files, to be changed by a test."""
    shutil.copytree(WORKFLOWS, folder / "workflows")
    return folder / "workflows"


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("{", "ui/txt2img_sdxl.json: not valid JSON"),
        ((WORKFLOWS / "txt2img_sdxl.json").read_text(), "ui/txt2img_sdxl.json: this is no form of the browser"),
        ((WORKFLOWS / "ui/img2img_sdxl.json").read_text(), "ui/txt2img_sdxl.json: node 8: the graph has no such node"),
    ],
)
def test_a_form_that_is_none_or_shows_something_else_is_a_finding(tmp_path: Path, text: str, finding: str) -> None:
    folder = copy_of_workflows(tmp_path)
    (folder / "ui/txt2img_sdxl.json").write_text(text)
    found = role_filters().workflow_findings(str(folder), "", MODELS)
    assert any(line.startswith(finding) for line in found), found


def test_a_form_without_a_graph_of_its_name_is_deployed_as_it_is(tmp_path: Path) -> None:
    folder = copy_of_workflows(tmp_path)
    shutil.copy(folder / "ui/txt2img_sdxl.json", folder / "ui/mine.json")
    assert role_filters().workflow_findings(str(folder), "", MODELS) == []


SETTINGS = {"txt2img_sdxl": {"prompt": "ein Schlo\u00df", "steps": 30, "width": 768}}


def test_settings_change_graph_and_form_and_nothing_else() -> None:
    plain = role_filters().workflow_files(str(WORKFLOWS), PLACES)
    tuned = role_filters().workflow_files(str(WORKFLOWS), PLACES, SETTINGS)
    changed = [new for old, new in zip(plain, tuned, strict=True) if old != new]
    assert [file["dest"] for file in changed] == ["/srv/api/txt2img_sdxl.json", "/srv/ui/txt2img_sdxl.json"]
    for file in changed:
        assert file["sha256"] == hashlib.sha256(file["content"].encode()).hexdigest()
    graph, form = (comfyui_graph.parse_json(file["content"]) for file in changed)
    assert graph["5"]["inputs"]["steps"] == 30
    assert graph["4"]["inputs"] == {"width": 768, "height": 1024, "batch_size": 1}
    assert comfyui_form.read_form(form) == graph


def test_settings_that_say_what_the_file_says_change_nothing() -> None:
    settings = {"txt2img_sdxl": {"steps": 20}}
    assert role_filters().workflow_files(str(WORKFLOWS), PLACES, settings) == role_filters().workflow_files(
        str(WORKFLOWS), PLACES
    )


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"text2img": {}}, "settings for text2img: there is no such graph; there are batch_generation, img2img_sdxl,"),
        ({"render_check": {"steps": 3}}, "settings for render_check: steps has no place in this graph; it has none."),
        ({"txt2img_sdxl": {"steps": 0}}, "txt2img_sdxl.json: node 5 (KSampler), steps: 0 is below"),
        ({"txt2img_sdxl": {"steps": 20.5}}, "txt2img_sdxl.json: node 5 (KSampler), steps: 20.5 is no INT"),
        ({"img2img_sdxl": {"width": 1001}}, "img2img_sdxl.json: node 9 (ImageScale), width: 1001 is no multiple of 8"),
        ({"txt2img_sdxl": {"prompt": "a {{ colour }} hat"}}, "node 2 (CLIPTextEncode), text: a placeholder was left"),
        ({"txt2img_sdxl": {"checkpoint": "x"}}, "node 1 (CheckpointLoaderSimple), ckpt_name: 'x' is not among"),
    ],
)
def test_settings_are_judged_and_so_is_what_comes_of_them(settings: dict[str, Any], finding: str) -> None:
    recording = ROOT / "roles" / "comfyui_workflows" / "files" / "object_info-0.28.1.json"
    found = role_filters().workflow_findings(str(WORKFLOWS), str(recording), MODELS, settings)
    assert len(found) == 1
    assert finding in found[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_type": "KSampler", "inputs": {"seed": ["9", 0]}}, "mine.json: node 1 (KSampler), seed: link to node"),
        ({"class_type": "Nonesuch", "inputs": {}}, "mine.json: object_info-0.28.1.json has no 'Nonesuch'"),
    ],
)
def test_no_form_is_drawn_of_a_graph_with_faults(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"1": change}))
    program = runpy.run_path(str(WORKFLOWS / "make_forms.py"))
    with pytest.raises(SystemExit, match=re.escape(words)):
        program["draw"](tmp_path / "mine.json", recorded("0.28.1"))


def test_digests_are_read_by_path() -> None:
    output = f"{SHA}  /srv/a b.json\n{SHA}  /srv/c.json\n"
    assert role_filters().parse_digests(output) == {"/srv/a b.json": SHA, "/srv/c.json": SHA}
    assert role_filters().parse_digests("") == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"kind": "absent"}, "absent"),
        ({"kind": "dir"}, "not a plain file"),
        ({"link": "/etc/hostname"}, "not a plain file"),
        ({"sha256": "cd" * 32}, "other content"),
        ({"sha256": None}, "other content"),
        ({"uid": 5}, "owner 5:991"),
        ({"gid": 5}, "owner 990:5"),
        ({"mode": "0600"}, "mode 0600"),
    ],
)
def test_plan_says_why(change: dict[str, Any], reason: str | None) -> None:
    wanted = [{"dest": "/srv/a", "src": "a", "sha256": SHA, "uid": 990, "gid": 991, "mode": "0644"}]
    found = {"kind": "file", "link": None, "uid": 990, "gid": 991, "mode": "0644", "sha256": SHA, **change}
    digests = f"{found['sha256']}  /srv/a\n" if found["sha256"] else ""
    probe = {"files": {"/srv/a": found}, "commands": {"digests": {"stdout": digests}}}
    plan = role_filters().workflow_plan(wanted, probe)
    assert plan == ([{**wanted[0], "reason": reason}] if reason else [])


def test_filters_have_the_names_that_the_role_uses() -> None:
    names = role_filters().FilterModule().filters()
    used = "".join(path.read_text() for path in (ROOT / "roles" / "comfyui_workflows").rglob("*.yml"))
    assert all(name in used for name in names)
