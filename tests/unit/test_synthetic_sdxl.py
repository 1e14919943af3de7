"""The synthetic checkpoint: SDXL's layout to the last tensor, values that compute, and no way to pass for SDXL."""

from __future__ import annotations

import hashlib
import importlib
import json
import struct
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
import yaml

from programs import load_program

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "roles/comfyui_benchmark/files/synthetic_sdxl.py"
# Of the layout as ComfyUI writes it: 2,515 tensors, their names, types and shapes.
LAYOUT_SHA256 = "3176c5c5642931023880f3ce8315ca3dedc1bea3817d45a3534350d2c6d741a1"


# On a host Ansible ships the helpers as ansible.module_utils.NAME; here they are made to be found there.
ansible.module_utils.__path__.append(str(ROOT / "plugins/module_utils"))
benchmark_run = importlib.import_module("ansible.module_utils.benchmark_run")


tool = load_program(TOOL)
TENSORS = tool.read_layout(tool.LAYOUT.read_text().splitlines())
SMALL = [
    "F16 4x8 model.0-1.out_layers.3.weight",
    "F16 4 model.norm.weight|bias",
    "F16 scalar model.logit_scale",
    "I64 1x3 model.position_ids",
]


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def test_the_layout_is_that_of_sdxl() -> None:
    text = json.dumps([[tensor.name, tensor.kind, list(tensor.shape)] for tensor in TENSORS])
    assert len(TENSORS) == 2515
    assert hashlib.sha256(text.encode()).hexdigest() == LAYOUT_SHA256
    assert sum(tensor.values * tool.SIZE_B[tensor.kind] for tensor in TENSORS) == 6_937_676_352


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("a.b", ["a.b"]), ("a.1-2.w|b", ["a.1.w", "a.1.b", "a.2.w", "a.2.b"]), ("a-b.1", ["a-b.1"])],
)
def test_a_pattern_stands_for_its_names(pattern: str, names: list[str]) -> None:
    assert list(tool.expand(pattern)) == names


def test_the_file_is_whole_and_says_what_it_is(tmp_path: Path) -> None:
    path = tool.write(tmp_path, tool.read_layout(SMALL))
    head, data = read(path)
    assert path.name == "synthetic-not-sdxl.safetensors"
    assert "not SDXL" in head.pop("__metadata__")["modelspec.title"]
    ends = sorted(entry["data_offsets"] for entry in head.values())
    assert [begin for begin, _ in ends] == [0, *(end for _, end in ends[:-1])]
    assert ends[-1][1] == len(data)
    assert list(tmp_path.iterdir()) == [path]
    begin, end = head["model.position_ids"]["data_offsets"]
    assert struct.unpack("<3q", data[begin:end]) == (0, 1, 2)


def test_no_value_can_blow_up() -> None:
    deviations = [(tensor, tool.deviation(tensor)) for tensor in TENSORS if tensor.kind == "F16"]
    assert all(found is None or found * 4 * 4 < 10 for _, found in deviations)
    assert {tool.constant(tensor) for tensor, found in deviations if found is None} == {0.0, 1.0}
    noise = b"".join(tool.Noise().pieces(1.0, tool.BLOCK_VALUES + 5))
    values = struct.unpack(f"<{tool.BLOCK_VALUES + 5}e", noise)
    assert max(map(abs, values)) <= 4
    assert 0.98 < (sum(value * value for value in values) / len(values)) ** 0.5 < 1.02


def test_the_benchmark_tells_it_from_sdxl(tmp_path: Path) -> None:
    path = tool.write(tmp_path, tool.read_layout(SMALL))
    assert "synthetic" in benchmark_run.read_metadata(str(path))
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(struct.pack("<Q", 2) + b"{}")
    for other in (plain, tmp_path / "absent", TOOL):
        assert benchmark_run.read_metadata(str(other)) == {}


def test_its_size_is_not_that_of_the_catalogue() -> None:
    catalogue = yaml.safe_load((ROOT / "inventory/group_vars/all/model_catalogue.yml").read_text())
    published_b = catalogue["comfyui_model_catalogue"]["sd_xl_base_1.0"]["size_b"]
    assert len(tool.header(TENSORS)) + 6_937_676_352 != published_b


def test_a_folder_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["/nowhere"]) == 2
    assert "has to be there" in capsys.readouterr().err
