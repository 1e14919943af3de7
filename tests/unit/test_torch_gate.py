"""The gate's comparison: what moved is named, what did not is not."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from programs import load_program

PATH = Path(__file__).parents[2] / "roles/comfyui_image/files/torch_gate.py"


@pytest.fixture(name="whole_gate")
def load_gate() -> ModuleType:
    return load_program(PATH)


@pytest.fixture(name="gate")
def without_pip(whole_gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The gate with a pip that finds nothing: the real one takes longer than everything else here."""
    monkeypatch.setattr(whole_gate, "pip_findings", list)
    return whole_gate


@pytest.fixture(name="torch")
def fake_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package named torch with metadata, so that the gate runs here without PyTorch."""
    package = tmp_path / "site" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "class version:\n    cuda = '13.0'\n"
        "class _C:\n    @staticmethod\n    def _cuda_getArchFlags():\n        return 'sm_80 sm_90 sm_120'\n"
    )
    (package / "lib.so").write_bytes(b"compiled by NVIDIA")
    metadata = tmp_path / "site" / "torch-2.9.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield package
    sys.modules.pop("torch", None)


def test_an_untouched_torch_passes(whole_gate: ModuleType, torch: Path, tmp_path: Path) -> None:
    record = tmp_path / "torch.json"
    assert whole_gate.main(["record", str(record)]) == 0
    assert json.loads(record.read_text())["packages"]["torch"]["version"] == "2.9.0"
    assert json.loads(record.read_text())["packages"]["architectures"] == ["sm_80", "sm_90", "sm_120"]
    assert whole_gate.main(["verify", str(record)]) == 0
    assert torch.exists()


def test_one_changed_byte_fails(
    gate: ModuleType, torch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "torch.json"
    gate.main(["record", str(record)])
    (torch / "lib.so").write_bytes(b"compiled by pip!!!")
    assert gate.main(["verify", str(record)]) == 1
    assert capsys.readouterr().err.startswith("torch gate: torch: the base has")


def test_a_package_that_appeared_fails(gate: ModuleType, torch: Path, tmp_path: Path) -> None:
    record = tmp_path / "torch.json"
    gate.main(["record", str(record)])
    triton = torch.parent / "triton"
    triton.mkdir()
    (triton / "__init__.py").write_text("")
    metadata = torch.parent / "triton-3.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: triton\nVersion: 3.5\n")
    assert gate.main(["verify", str(record)]) == 1


@pytest.mark.parametrize("owner", ["pytorch-triton", ""])
def test_a_package_of_another_name_has_the_version_of_its_distribution(
    gate: ModuleType, torch: Path, tmp_path: Path, owner: str
) -> None:
    (torch.parent / "triton").mkdir()
    (torch.parent / "triton" / "__init__.py").write_text("")
    if owner:
        metadata = torch.parent / "pytorch_triton-3.5.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {owner}\nVersion: 3.5\n")
        (metadata / "RECORD").write_text("triton/__init__.py,,\n")
    record = tmp_path / "torch.json"
    assert gate.main(["record", str(record)]) == 0
    assert json.loads(record.read_text())["packages"]["triton"]["version"] == ("3.5" if owner else None)
    assert gate.main(["verify", str(record)]) == 0


def test_a_pip_that_says_nothing_is_no_proof(whole_gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_gate.sys, "executable", "/bin/false")
    with pytest.raises(SystemExit, match=r"^torch gate: pip check did not run: exit status 1$"):
        whole_gate.pip_findings()


def test_a_base_without_torchaudio_lets_no_requirement_bring_one(gate: ModuleType, torch: Path, tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    gate.main(["record", str(tmp_path / "torch.json")])
    assert "torchaudio<0" in constraints.read_text().splitlines()
    metadata = torch.parent / "torchaudio-2.9.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchaudio\nVersion: 2.9.0\n")
    gate.main(["record", str(tmp_path / "torch.json")])
    assert [line for line in constraints.read_text().splitlines() if "audio" in line] == ["torchaudio==2.9.0"]


def test_new_findings_of_pip_fail_and_old_ones_do_not(
    gate: ModuleType, torch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.exists()
    record = tmp_path / "torch.json"
    monkeypatch.setattr(gate, "pip_findings", lambda: ["old finding of the base"])
    gate.main(["record", str(record)])
    assert gate.main(["verify", str(record)]) == 0
    monkeypatch.setattr(gate, "pip_findings", lambda: ["old finding of the base", "kornia needs torch, which is gone"])
    assert gate.main(["verify", str(record)]) == 1


def test_compiled_python_does_not_count(gate: ModuleType, torch: Path) -> None:
    before = gate.tree_digest(torch)
    (torch / "__pycache__").mkdir(exist_ok=True)
    (torch / "__pycache__" / "x.pyc").write_bytes(b"1")
    assert gate.tree_digest(torch) == before


def test_another_list_of_architectures_fails(
    gate: ModuleType, torch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "torch.json"
    gate.main(["record", str(record)])
    assert torch.exists()
    state = json.loads(record.read_text())
    state["packages"]["architectures"].append("sm_121")
    record.write_text(json.dumps(state))
    assert gate.main(["verify", str(record)]) == 1
    assert 'architectures: the base has ["sm_80", "sm_90", "sm_120", "sm_121"]' in capsys.readouterr().err


def test_who_brought_another_torch_is_named(
    gate: ModuleType, torch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "torch.json"
    gate.main(["record", str(record)])
    venv = tmp_path / "venv"
    shutil.copytree(torch, venv / "torch")
    for name, version, asks in (("torch", "2.11.0", ""), ("xformers", "0.0.33", "Requires-Dist: Torch (==2.11.0)\n")):
        (venv / f"{name}-{version}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{asks}"
        (venv / f"{name}-{version}.dist-info" / "METADATA").write_text(text)
    monkeypatch.syspath_prepend(str(venv))
    monkeypatch.setattr(sys, "prefix", str(venv))
    capsys.readouterr()
    sys.modules.pop("torch")
    assert gate.main(["verify", str(record)]) == 1
    assert "asked for by xformers 0.0.33 (Torch (==2.11.0))" in capsys.readouterr().err


def test_a_base_without_torch_is_named(gate: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate.main(["record", str(tmp_path / "torch.json")]) == 1
    assert capsys.readouterr().err == "torch gate: the base image has no torch, expected a PyTorch image\n"


def test_a_torch_that_breaks_is_named_by_its_files(
    gate: ModuleType, torch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "torch.json"
    gate.main(["record", str(record)])
    (torch / "__init__.py").write_text("raise OSError('libtorch.so: cannot open shared object file')\n")
    sys.modules.pop("torch")
    assert gate.main(["verify", str(record)]) == 1
    said = capsys.readouterr().err
    assert "torch gate: torch: the base has" in said
    assert 'import: the base has null, found "OSError: libtorch.so: cannot open shared object file"' in said
    assert gate.main(["record", str(record)]) == 1
    assert "the base image has no torch that can be imported: OSError" in capsys.readouterr().err


def test_constraints_come_from_the_metadata(gate: ModuleType, torch: Path, tmp_path: Path) -> None:
    (torch.parent / "torch-2.9.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: Torch\nVersion: 2.14.0a0+b2c75dd062.nv26.9.63802676\n"
    )
    gate.main(["record", str(tmp_path / "torch.json")])
    lines = (tmp_path / "constraints.txt").read_text().splitlines()
    assert "torch==2.14.0a0+b2c75dd062.nv26.9.63802676" in lines
    assert all(line.split("==")[0] in ("torch", "numpy", "torchaudio<0") for line in lines)


@pytest.mark.parametrize(
    ("torch_minimum", "pythons", "words"),
    [
        ("2.9", ("3.10", "3.99"), ""),
        ("2.9.0", ("3.10", "3.99"), ""),
        ("2.10", ("3.10", "3.99"), "the base has torch 2.9.0a0+50eac811a6.nv25.09, expected 2.10 or newer"),
        ("2.9", ("3.90", "3.99"), "expected 3.90 to 3.99, as the lock is made for"),
        ("2.9", ("3.7", "3.9"), "expected 3.7 to 3.9, as the lock is made for"),
    ],
)
def test_a_base_that_does_not_suit_is_refused(
    gate: ModuleType, torch_minimum: str, pythons: tuple[str, str], words: str
) -> None:
    recorded = {"packages": {"torch": {"version": "2.9.0a0+50eac811a6.nv25.09"}}}
    assert [words in problem for problem in gate.unsuitable(recorded, torch_minimum, pythons)] == [True] * bool(words)


@pytest.mark.parametrize(
    ("architectures", "capability", "covered"),
    [
        ("sm_80 sm_90 sm_120", "12.1", True),  # the GB10: binary code of its major version
        ("sm_80 sm_86 sm_90", "12.1", False),  # NGC 24.11 on a GB10
        ("sm_80 sm_86 sm_90 compute_90", "12.1", True),
        ("sm_121", "12.0", False),
        ("sm_90a", "9.0", True),
        ("sm_90a", "9.1", False),
        ("compute_90a", "12.1", False),
        ("sm_100f", "10.3", True),
        ("sm_100", "12.1", False),
        ("sm_80", "8.6", True),
        ("", "9.0", False),
    ],
)
def test_what_code_runs_on_which_gpu(
    gate: ModuleType, tmp_path: Path, architectures: str, capability: str, covered: bool
) -> None:
    record = tmp_path / "torch.json"
    record.write_text(json.dumps({"packages": {"architectures": architectures.split()}}))
    assert gate.main(["covers", str(record), capability]) == (0 if covered else 1)


def test_a_gpu_without_code_is_named(gate: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "torch.json"
    record.write_text(json.dumps({"packages": {"architectures": ["sm_80", "sm_86", "sm_90"]}}))
    assert gate.main(["covers", str(record), "9.0", "12.1"]) == 1
    assert capsys.readouterr().err == (
        "torch gate: this torch has code for sm_80, sm_86, sm_90, expected the compute capability 12.1 too\n"
    )
