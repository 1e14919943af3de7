"""The Dockerfile and the stub, without an engine: what is asked of the base, and what only one version gets."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "roles" / "comfyui_image"
VARIABLES = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
BASE = f"registry.example.com/pytorch:1@sha256:{'0' * 64}"


def render(version: str) -> str:
    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 - a Dockerfile is no HTML
        keep_trailing_newline=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["hash"] = lambda text, name: hashlib.new(name, text.encode()).hexdigest()
    return environment.from_string((ROOT / "templates" / "Dockerfile.j2").read_text()).render(
        ansible_managed="Ansible managed",
        comfyui_image_base=BASE,
        comfyui_image_source_repo="https://example.com/ComfyUI.git",
        comfyui_image_user_id=990,
        comfyui_image_version=version,
        __comfyui_image_commit="1" * 40,
        __comfyui_image_lock="lock",
        __comfyui_image_torchaudio_stubbed=VARIABLES["__comfyui_image_torchaudio_stubbed"],
    )


@pytest.mark.parametrize("version", ["0.28.1", "0.3.68"])
def test_every_version_is_confined_and_pinned(version: str) -> None:
    text = render(version)
    lines = text.splitlines()
    assert f"FROM {BASE}" in lines
    assert "USER 990:990" in lines
    assert not any(line.startswith("# syntax=") for line in lines)
    assert "--no-deps --require-hashes" in text
    assert text.index("torch_gate.py record") < text.index("pip install") < text.index("torch_gate.py verify")
    assert "ENV" in text
    assert "PIP_" not in text[text.index("ENV") :]


def test_only_a_version_that_needs_it_gets_the_stub() -> None:
    assert "torchaudio_stub.py" in render("0.28.1")
    assert "torchaudio" not in render("0.3.68")


def test_the_commits_and_the_locks_are_of_the_same_versions() -> None:
    locks = {path.stem for path in (ROLE / "files" / "locks").glob("*.in")}
    assert set(VARIABLES["__comfyui_image_commits"]) == locks


def test_the_stub_can_be_imported_and_says_why_it_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchaudio.py").write_text((ROLE / "files" / "torchaudio_stub.py").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    stub = importlib.import_module("torchaudio")
    try:
        with pytest.raises(AttributeError, match="no torchaudio that fits its torch"):
            _ = stub.functional
        with pytest.raises(ImportError):
            importlib.import_module("torchaudio.transforms")
    finally:
        sys.modules.pop("torchaudio")
