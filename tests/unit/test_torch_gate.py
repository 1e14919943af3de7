"""The gate's comparison: what moved is named, what did not is not."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "roles/comfyui_image/files/torch_gate.py"


@pytest.fixture(name="gate")
def load_gate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_gate", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(name="torch")
def fake_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package named torch with metadata, so that the gate runs here without PyTorch."""
    package = tmp_path / "site" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("class version:\n    cuda = '13.0'\n")
    (package / "lib.so").write_bytes(b"compiled by NVIDIA")
    metadata = tmp_path / "site" / "torch-2.9.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield package
    sys.modules.pop("torch", None)


def test_an_untouched_torch_passes(gate: ModuleType, torch: Path, tmp_path: Path) -> None:
    record = tmp_path / "torch.json"
    assert gate.main(["record", str(record)]) == 0
    assert json.loads(record.read_text())["packages"]["torch"]["version"] == "2.9.0"
    assert gate.main(["verify", str(record)]) == 0
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
