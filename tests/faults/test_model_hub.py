"""The environment with huggingface_hub that the module makes for itself: by hash, once, and anew when it must be."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ansible.module_utils import model_hub
from ansible.module_utils.model_wanted import TemporaryError, Wanted

from faults.model_store import CONTENT, REPOSITORY, Hub, fail, run, succeed

# What the program asks of the library, as a package of our own: no index is needed.
STAND_IN = """
class Found:
    location, size = {location!r}, {size}
def hf_hub_url(*_, **__): return ""
def get_hf_file_metadata(*_, **__): return Found
def set_client_factory(_): pass
"""


def make_wheel(folder: Path, name: str, files: dict[str, str]) -> str:
    """A wheel, and its line in a requirements file."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.dist-info"
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return f"{name}==1 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def lock(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A lock whose packages lie in a folder that pip is told to look into."""
    entry = {"location": f"{hub.url}/cdn/x/y/z", "size": len(CONTENT)}
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    errors = "class HfHubHTTPError(Exception): pass\n"
    library = {"huggingface_hub/__init__.py": STAND_IN.format(**entry), "huggingface_hub/errors.py": errors}
    client = "class HTTPError(Exception): pass\nInvalidURL = Response = HTTPError\n"
    wheels = tmp_path / "wheels"
    return make_wheel(wheels, "huggingface_hub", library) + make_wheel(wheels, "httpx2", {"httpx2.py": client})


def test_it_is_made_by_hash_by_the_first_question_and_only_then(
    hub: Hub, dest: Path, tmp_path: Path, lock: str
) -> None:
    folder = tmp_path / "opt" / "hub"
    asked = {"hub_dir": str(folder), "hub_requirements": lock, "attempts": 1}
    dest.write_bytes(CONTENT)
    assert succeed(hub, dest, **asked)["outcome"] == "adopted"
    dest.unlink()
    assert succeed(hub, dest, **asked, _ansible_check_mode=True)["outcome"] == "fetched"
    assert not folder.parent.exists()
    wrong = lock.replace(lock[lock.index("sha256:") + 7 :][:64], "0" * 64)
    message = fail(hub, dest, **{**asked, "hub_requirements": wrong})
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in message
    assert "set comfyui_model_endpoint to a folder" in message
    assert (folder / "made").read_text() == ""
    # Where the stand-in of the library says that it lies, there is nothing.
    assert "HTTP 404" in fail(hub, dest, **asked)
    made = (folder / "made").stat()
    fail(hub, dest, **asked)
    assert (folder / "made").stat().st_ino == made.st_ino
    assert not dest.exists()


@pytest.mark.parametrize("found", ["# Python 3.1\n{lock}", "# Python {python}\nother==1\n"])
def test_another_python_or_lock_makes_it_anew(
    hub: Hub, dest: Path, tmp_path: Path, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], _environment: object = None) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(
            command, len(commands) - 1, "", "ERROR: No matching distribution found\nhint"
        )

    monkeypatch.setattr(sys.modules["ansible.module_utils.model_hub"], "run", run)
    folder = tmp_path / "hub"
    folder.mkdir()
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (folder / "made").write_text(found.format(lock="lock", python=python))
    message = fail(hub, dest, hub_dir=str(folder), hub_requirements="lock", attempts=1)
    assert "No matching distribution found. Expected a package index" in message
    assert commands[0] == [sys.executable, "-m", "venv", str(folder)]
    assert commands[1][:4] == [f"{folder}/bin/python", "-m", "pip", "install"]
    assert "--require-hashes" in commands[1]
    assert (folder / "made").read_text() == ""


def test_index_proxy_and_certificates_of_the_site_are_used(
    hub: Hub, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}

    def run(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        if environment:
            bundle = Path(environment["PIP_CERT"])
            seen.update(environment, bundle=bundle.read_text() if bundle.exists() else "")
        return subprocess.CompletedProcess(command, int(bool(environment)), "", "stop here")

    monkeypatch.setattr(sys.modules["ansible.module_utils.model_hub"], "run", run)
    monkeypatch.setenv("PIP_CERT", "/nonexistent")
    (tmp_path / "ca.pem").write_text("OUR OWN\n")
    site = {
        "package_index": "http://u:hunter22@index",
        "proxy": "http://proxy:1",
        "ca_bundle": str(tmp_path / "ca.pem"),
    }
    assert "stop here" in fail(hub, dest, hub_dir=str(tmp_path / "hub"), **site)
    assert (seen["PIP_INDEX_URL"], seen["https_proxy"]) == ("http://u:hunter22@index", "http://proxy:1")
    assert seen["bundle"].endswith("OUR OWN\n")
    assert ("BEGIN CERTIFICATE" in seen["bundle"]) == Path("/etc/ssl/certs/ca-certificates.crt").exists()


def test_a_folder_of_packages_is_no_index(
    hub: Hub, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}

    def run(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        seen.update(environment or {})
        return subprocess.CompletedProcess(command, int(bool(environment)), "", "stop here")

    monkeypatch.setattr(sys.modules["ansible.module_utils.model_hub"], "run", run)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    fail(hub, dest, hub_dir=str(tmp_path / "hub"), package_index="/srv/wheels")
    assert (seen["PIP_NO_INDEX"], seen["PIP_FIND_LINKS"], seen.get("PIP_INDEX_URL")) == ("1", "/srv/wheels", None)


def test_a_python_without_venv_says_what_to_install(
    hub: Hub, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'No module named ensurepip'\nexit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    message = fail(hub, dest, hub_dir=str(tmp_path / "hub"), attempts=1)
    assert "No module named ensurepip. Type on the host: apt-get install python3-venv" in message


def test_a_wrong_file_is_moved_away_though_there_is_nothing_to_ask_with(
    hub: Hub, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The role installs what is missing where a file is absent, not where one may be right.
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'No module named ensurepip'\nexit 1\n")
    bare.chmod(0o755)
    wrong = bytes(len(CONTENT))
    dest.write_bytes(wrong)
    monkeypatch.setattr(sys, "executable", str(bare))
    message = fail(hub, dest, hub_dir=str(tmp_path / "hub"), attempts=1)
    rejected = f"{dest}.rejected-{hashlib.sha256(wrong).hexdigest()[:12]}"
    assert "apt-get install python3-venv" in message
    assert f"The wrong file that was there is now {rejected}" in message
    assert Path(rejected).read_bytes() == wrong
    assert not dest.exists()


def test_a_broken_environment_says_how_to_mend_it(hub: Hub, dest: Path, tmp_path: Path) -> None:
    made = (hub.client / "made").read_text()
    (tmp_path / "hub" / "bin").mkdir(parents=True)
    (tmp_path / "hub" / "made").write_text(made)
    python = tmp_path / "hub" / "bin" / "python"
    python.write_text("#!/bin/sh\necho ModuleNotFoundError >&2\nexit 1\n")
    python.chmod(0o755)
    message = fail(hub, dest, hub_dir=str(tmp_path / "hub"), attempts=1)
    assert f"huggingface_hub in {tmp_path}/hub failed: ModuleNotFoundError. Remove that folder" in message


def test_a_hub_that_is_silent_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    wanted = Wanted("a/b", "c" * 40, "x", 1, "d" * 64, "/x", "http://user:hunter22@hub/hf")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(TemporaryError, match=r"^http://hub/hf: no answer within"):
        model_hub.ask(wanted, "python")


def test_a_replacement_that_was_cut_short_is_still_known_as_ours(
    hub: Hub, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hub"
    (folder / "bin").mkdir(parents=True)
    (folder / "made").write_text("of an older lock")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run(hub, dest, hub_dir=str(folder), attempts=1)
    assert (folder / "bin").exists()
    # As far as the index, which has no such package: nothing in the folder is taken for somebody else's.
    assert "could not be installed into" in fail(hub, dest, hub_dir=str(folder), attempts=1)


@pytest.mark.parametrize("name", ["good.safetensors", "pyvenv.cfg"])
def test_a_folder_with_something_else_is_never_emptied(hub: Hub, dest: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / name).write_bytes(CONTENT)
    message = fail(hub, dest, hub_dir=str(folder), attempts=1)
    assert f"{folder} holds {name}, expected a folder for huggingface_hub alone" in message
    assert "Set model_store_hub_dir" in message
    assert (folder / name).read_bytes() == CONTENT


def test_what_is_undone_is_what_was_made_here() -> None:
    tasks = (REPOSITORY / "roles/model_store/tasks/absent.yml").read_text()
    assert f'files: ["{{{{ model_store_hub_dir }}}}/{model_hub.MADE}"]' in tasks
    assert f"when: __model_store_there.files[model_store_hub_dir ~ '/{model_hub.MADE}'].kind == 'file'" in tasks
