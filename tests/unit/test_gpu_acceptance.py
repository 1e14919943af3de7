"""The acceptance script and what serves a bare GPU machine: what they read, conclude and answer."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from gpu import accept
from gpu.bare_host import serve

RECAP = "gpu-host : ok=67   changed=8    unreachable=0    failed=0\nother : ok=1 changed=2 unreachable=0\n"
JUNIT = """<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def test_changes_are_those_of_the_recap() -> None:
    assert accept.changed_tasks(RECAP) == 10
    assert accept.changed_tasks("unchanged") == 0


def test_a_skipped_test_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "verify.xml").write_text(JUNIT)
    assert accept.skipped_tests(tmp_path / "verify.xml") == ["b: no GPU"]
    assert "is missing" in accept.skipped_tests(tmp_path / "absent.xml")[0]


def test_what_stood_in_is_said() -> None:
    site: dict[str, object] = {
        "comfyui_base_image": "127.0.0.1:5000/pytorch:x@sha256:0",
        "comfyui_models": [],
        "comfyui_toolkit_repository": "https://stand-in.invalid/toolkit",
    }
    lines = accept.not_shown(site, ["b: no GPU"])
    assert [line.split(":")[0] for line in lines] == [
        "skipped",
        "the NGC base image",
        "SDXL's own weights, and so what its images look like",
        "NVIDIA's apt repository",
    ]


def test_the_real_things_leave_nothing_unshown() -> None:
    site: dict[str, object] = {
        "comfyui_base_image": "nvcr.io/nvidia/pytorch:26.09-py3@sha256:0",
        "comfyui_models": ["sd_xl_base_1.0"],
        "comfyui_toolkit_repository": "https://nvidia.github.io/libnvidia-container/stable/deb",
    }
    assert accept.not_shown(site, []) == []


def test_an_image_of_plain_layers_is_described_to_the_last_digest(tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(b"first layer")
    (tmp_path / "two.tar").write_bytes(b"second")
    layers = {tmp_path / "one.tar": "sha256:" + "1" * 64, tmp_path / "two.tar": "sha256:" + "2" * 64}
    digest = serve.describe_image(tmp_path, layers, ["PATH=/usr/bin"])
    blobs = {path.name.replace("-", ":"): path for path in (tmp_path / "blobs").iterdir()}
    manifest = json.loads(blobs[digest].read_text())
    assert [(layer["digest"], layer["size"]) for layer in manifest["layers"]] == [
        ("sha256:" + "1" * 64, 11),
        ("sha256:" + "2" * 64, 6),
    ]
    config = json.loads(blobs[manifest["config"]["digest"]].read_text())
    assert config["rootfs"]["diff_ids"] == list(layers.values())
    assert len(config["history"]) == len(layers)
    assert blobs[manifest["config"]["digest"]].stat().st_size == manifest["config"]["size"]


@pytest.mark.parametrize(
    ("wheel", "project"),
    [("SQLAlchemy-2.1-py3-none-any.whl", "sqlalchemy"), ("comfy_aimdo-0.4-py3-none-any.whl", "comfy-aimdo")],
)
def test_a_wheel_is_found_by_its_normalised_name(wheel: str, project: str) -> None:
    assert serve.project_name(wheel) == project


@pytest.mark.parametrize(("kind", "answers"), [(1, 1), (28, 0)], ids=["A", "AAAA"])
def test_every_name_is_this_host(kind: int, answers: int) -> None:
    name = b"\x08packages\x04test\0"
    question = b"\xab\xcd\1\0\0\1\0\0\0\0\0\0" + name + struct.pack(">HH", kind, 1)
    found = serve.dns_answer(question + b"\0\0\x29extra")
    assert found[:2] == b"\xab\xcd"
    assert struct.unpack(">HH", found[4:8]) == (1, answers)
    assert found[12 : 12 + len(name)] == name
    assert found.endswith(bytes([172, 17, 0, 1])) == bool(answers)
