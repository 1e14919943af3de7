"""Module cdi_state: its view of files and device nodes."""

from __future__ import annotations

import os
from pathlib import Path

import ansible.module_utils
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
# On a host Ansible ships the helpers as ansible.module_utils.NAME; here they are made to be found there.
ansible.module_utils.__path__.append(str(REPOSITORY / "plugins" / "module_utils"))

import cdi_state  # noqa: E402 - after its helpers can be found


def test_only_character_devices_are_nodes(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    found = cdi_state.character_devices(["/dev/null", str(plain), str(tmp_path / "absent")])
    assert found == {"/dev/null": (1, 3)}


def test_an_absent_specification_is_a_problem(tmp_path: Path) -> None:
    assert cdi_state.problems_of(str(tmp_path / "nvidia.yaml"), every_gpu=True) == ["there is none"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"cdiVersion: [\n"])
def test_an_unreadable_specification_is_a_problem(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "nvidia.yaml"
    path.write_bytes(content)
    (problem,) = cdi_state.problems_of(str(path), every_gpu=True)
    assert problem.startswith("it cannot be read: ")


def test_nodes_and_files_are_looked_up_on_the_host(tmp_path: Path) -> None:
    spec = {
        "cdiVersion": "0.7.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            {"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/null", "major": 1, "minor": 5}]}}
        ],
        "containerEdits": {
            "mounts": [
                {"hostPath": os.fspath(tmp_path), "containerPath": "/a"},
                {"hostPath": f"{tmp_path}/gone", "containerPath": "/b"},
            ]
        },
    }
    path = tmp_path / "nvidia.yaml"
    path.write_text(yaml.safe_dump(spec))
    problems = cdi_state.problems_of(str(path), every_gpu=False)
    assert "it gives /dev/null as 1:5, the host has 1:3" in problems
    assert f"it mounts {tmp_path}/gone, which is not there" in problems
    assert not any(f"{tmp_path}," in problem for problem in problems)
