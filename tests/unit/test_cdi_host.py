"""What a host shows of its driver, against the CDI specification that it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdi_host import driver_problem, fingerprint, read_spec, spec_problems
from cdi_spec import SpecError


def write(path: Path, driver: str = "580.159.04") -> Path:
    mount = {"hostPath": f"/usr/lib/libcuda.so.{driver}", "containerPath": "/usr/lib/libcuda.so"}
    nodes = [{"path": "/dev/nvidiactl"}, {"path": "/dev/nvidia-uvm"}]
    edits = {"deviceNodes": nodes, "mounts": [mount]}
    spec = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [{"name": "all", "containerEdits": edits}],
    }
    path.write_text(json.dumps(spec))
    return path


@pytest.mark.parametrize(("loaded", "fits"), [("580.159.04", True), ("580.178.04", False), ("", True)])
def test_driver_and_libraries_are_of_one_version(tmp_path: Path, loaded: str, fits: bool) -> None:
    version = tmp_path / "version"
    version.write_text(f"NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  {loaded}  Release Build\n")
    words = driver_problem(write(tmp_path / "spec"), version)
    assert (words == "") == fits
    if not fits:
        assert words.startswith(f"The driver {loaded} is loaded and its libraries are 580.159.04")
        assert words.endswith("Reboot this host.")


def test_what_is_not_known_is_no_problem_of_the_driver(tmp_path: Path) -> None:
    assert driver_problem(write(tmp_path / "spec"), tmp_path / "absent") == ""
    assert driver_problem(tmp_path / "absent", tmp_path / "absent") == ""


def test_the_fingerprint_names_the_content_and_not_the_text(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other", driver="580.178.04")
    spelled = tmp_path / "spelled"
    spelled.write_text(json.dumps(json.loads(one.read_text()), indent=4))
    assert fingerprint(one) == fingerprint(spelled) != fingerprint(other)
    assert fingerprint(tmp_path / "absent") == ""


def test_an_absent_and_a_torn_specification_are_problems(tmp_path: Path) -> None:
    assert spec_problems(tmp_path / "absent") == ["there is none"]
    (tmp_path / "torn").write_text("{")
    (problem,) = spec_problems(tmp_path / "torn")
    assert problem.startswith("it cannot be read: ")
    with pytest.raises(SpecError):
        read_spec(tmp_path / "torn")


def test_files_and_nodes_that_are_not_there_are_problems(tmp_path: Path) -> None:
    problems = spec_problems(write(tmp_path / "spec"))
    assert any("it mounts /usr/lib/libcuda.so.580.159.04, which is not there" in one for one in problems)
    assert any("/dev/nvidiactl" in one for one in problems)
