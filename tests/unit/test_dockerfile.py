"""The Dockerfile and the stub, without an engine: what is asked of the base, and what only one version gets."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "roles" / "comfyui_image"
VERSIONS = yaml.safe_load((ROOT / "inventory/group_vars/all/comfyui_versions.yml").read_text())["comfyui_versions"]
LOCKS = ROLE / "files" / "locks"
BASE = f"registry.example.com/pytorch:1@sha256:{'0' * 64}"
NODE = {"name": "some-node", "repo": "https://example.com/node.git", "commit": "2" * 40}


def render(version: str, **more: Any) -> str:
    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 - a Dockerfile is no HTML
        keep_trailing_newline=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["hash"] = lambda text, name: hashlib.new(name, text.encode()).hexdigest()
    variables = {
        "comfyui_image_base": BASE,
        "comfyui_image_custom_nodes": [],
        "comfyui_image_system_packages": ["libgl1"],
        "comfyui_image_user_id": 990,
        "comfyui_image_version": version,
        "__comfyui_image_commit": "1" * 40,
        "__comfyui_image_lock": "lock",
        "__comfyui_image_needs": VERSIONS[version],
        "__comfyui_image_source": "https://example.com/ComfyUI.git",
    }
    return environment.from_string((ROOT / "templates" / "Dockerfile.j2").read_text()).render(variables | more)


@pytest.mark.parametrize("version", VERSIONS)
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


def test_the_first_step_is_the_one_that_the_overhead_is_counted_from() -> None:
    instructions = [line for line in render("0.28.1").splitlines() if line[:1].isupper()]
    base = instructions.index(f"FROM {BASE}")
    assert instructions[:base] == ["FROM scratch AS wheels"]  # empty, and no step of this image
    assert instructions[base + 1].startswith("LABEL ")
    module = (ROOT / "plugins/modules/comfyui_image_build.py").read_text()
    (mark,) = re.findall(r'^FIRST_STEP = "(.*)"$', module, re.MULTILINE)
    (first,) = [part for part in render("0.28.1").split("\n\n") if f'{mark}="sha256:' in part]
    assert instructions[base + 1] in first


def test_another_version_repeats_no_step_before_its_requirements() -> None:
    old, new = render("0.3.68"), render("0.28.1")
    before, marker, _ = new.partition("COPY requirements.txt")
    assert marker
    assert old.startswith(before)
    assert "torch_gate.py record" in before
    assert old.index("COPY source/") > old.index("pip install")


def test_only_a_version_that_needs_it_gets_the_stub() -> None:
    assert [version for version in VERSIONS if "torchaudio_stub.py" in render(version)] == ["0.33.0", "0.28.1"]
    assert "torchaudio" not in render("0.3.68")


def test_the_gate_runs_after_the_requirements_of_each_custom_node() -> None:
    text = render("0.28.1", comfyui_image_custom_nodes=[NODE, {**NODE, "name": "another"}])
    assert text.count("torch_gate.py verify") == 3
    assert text.rindex("pip install") < text.rindex("torch_gate.py verify") < text.index("COPY source/")
    assert "COPY custom_nodes/some-node/ /data/custom_nodes/some-node/" in text


def test_requirements_of_the_site_take_the_place_of_a_nodes_own() -> None:
    pinned = {**NODE, "requirements": "humanize==4.0\n"}
    text = render("0.28.1", comfyui_image_custom_nodes=[pinned])
    own, sites = (text.index(f"COPY {name}") for name in ("custom_nodes/some-node/", "some-node.requirements.txt"))
    assert own < sites < text.index("Installing what the custom node some-node")
    files = importlib.import_module("filter.comfyui_image").node_requirements([NODE, pinned])
    assert files == [{"name": "some-node.requirements.txt", "content": "humanize==4.0\n"}]
    assert "requirements.txt /data" not in render("0.28.1", comfyui_image_custom_nodes=[NODE])


def test_what_is_locked_is_compiled_at_once_and_before_the_gate() -> None:
    text = render("0.28.1")
    install, _, rest = text.partition("--no-deps --require-hashes --no-compile")
    assert install.endswith("-m pip install --disable-pip-version-check \\\n      ")
    assert "compileall -qq -j 0 --invalidation-mode unchecked-hash" in rest.partition("torch_gate.py verify")[0]


def test_a_base_with_all_libraries_is_asked_for_none() -> None:
    assert "apt-get" not in render("0.28.1", comfyui_image_system_packages=[])


def test_the_versions_and_the_locks_are_the_same() -> None:
    assert (
        set(VERSIONS)
        == {path.stem for path in LOCKS.glob("*.in")}
        == {path.stem for path in LOCKS.glob("*.txt")} - {"base"}
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_lock_leaves_to_the_base_what_is_the_bases(version: str) -> None:
    names = re.findall(r"^([A-Za-z0-9._-]+)==", (LOCKS / f"{version}.txt").read_text(), re.MULTILINE)
    assert len(names) == len(set(names)) > 50
    assert not {"torch", "torchvision", "torchaudio", "triton", "numpy"} & set(names)
    assert not [name for name in names if name.startswith("nvidia-")]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_entry_says_all_that_is_to_be_known(version: str) -> None:
    entry = VERSIONS[version]
    assert set(entry) == {"commit", "torch", "python", "torchaudio", "flags", "exclusive_flags"}
    assert re.fullmatch(r"[0-9a-f]{40}", entry["commit"])
    oldest, newest = ([int(part) for part in one.split(".")] for one in entry["python"])
    assert oldest <= [3, 12] < [3, 13] <= newest  # NGC's, and the tests' own base's
    flags = [*entry["flags"], *(flag for group in entry["exclusive_flags"] for flag in group)]
    assert len(flags) == len(set(flags)) > 70
    assert all(flag.startswith("--") for flag in flags)


def test_the_stub_can_be_imported_and_says_why_it_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchaudio.py").write_text((ROLE / "files" / "torchaudio_stub.py").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    stub = importlib.import_module("torchaudio")
    try:
        with pytest.raises(AttributeError, match="no torchaudio that fits its torch"):
            _ = stub.transforms
        functional = importlib.import_module("torchaudio.functional")
        with pytest.raises(AttributeError, match=r"torchaudio\.functional\.resample is not available"):
            _ = functional.resample
        with pytest.raises(ImportError):
            importlib.import_module("torchaudio.transforms")
    finally:
        sys.modules.pop("torchaudio")
        sys.modules.pop("torchaudio.functional")


def test_the_label_is_the_digest_of_the_lock_as_it_lies_there() -> None:
    digest = hashlib.sha256(b"lock\n").hexdigest()
    assert f'dgx-comfyui.requirements.sha256="{digest}"' in render("0.28.1")
