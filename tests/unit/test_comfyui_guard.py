"""The guard's decisions: what it runs, what it adopts, what it refuses; the Docker CLI is a recording here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "templates" / "comfyui_guard.py"
RELEASE: dict[str, Any] = {
    "bind_address": "127.0.0.1",
    "data_dir": "/srv/comfyui",
    "flags": ["--listen", "0.0.0.0"],  # noqa: S104 - in the container
    "gpus": ["--device", "nvidia.com/gpu=all"],
    "image": "dgx-comfyui:0.28.1-0123456789ab",
    "port": 8188,
    "restart_limit": 5,
    "shm_size": "8g",
    "tmp_size": "4g",
    "user_id": 990,
}


class Engine:
    """Answers the guard's calls as an engine with this container and image would, and keeps them."""

    def __init__(self, container: str | None, image: bool = True, fail: str = "") -> None:
        self.container = container
        self.image = image
        self.fail = fail
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.calls.append(arguments)
        verb = arguments[0]
        if verb == "container":
            return self.answer(self.container is not None, self.container or "")
        if verb == "image":
            return self.answer(self.image)
        return self.answer(verb != self.fail)

    def answer(self, good: bool, output: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0 if good else 1, output + "\n", "" if good else "engine says no")

    @property
    def changes(self) -> list[str]:
        return [call[0] for call in self.calls if call[0] not in {"container", "image"}]


@pytest.fixture(name="guard")
def load_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("comfyui_guard", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "0123456789ab.json").write_text(json.dumps(RELEASE))
    (tmp_path / "current").symlink_to("releases/0123456789ab.json")
    monkeypatch.setattr(module, "load_release", lambda load=module.load_release: load(tmp_path / "current"))
    return module


def use(guard: ModuleType, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Engine:
    monkeypatch.setattr(guard, "docker", engine)
    return engine


def test_a_release_is_named_by_its_file(guard: ModuleType) -> None:
    assert guard.load_release() == {**RELEASE, "id": "0123456789ab"}


def test_nothing_to_run_says_what_to_type(guard: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "current").unlink()
    with pytest.raises(guard.GuardError, match="ansible-playbook"):
        guard.load_release()


def test_a_torn_release_is_one_sentence(guard: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "releases" / "0123456789ab.json").write_text("{")
    with pytest.raises(guard.GuardError, match="not valid JSON"):
        guard.load_release()


def test_a_first_start_creates(guard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use(guard, monkeypatch, Engine(container=None))
    guard.start()
    assert engine.changes == ["run"]


def test_the_releases_own_container_is_adopted(guard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use(guard, monkeypatch, Engine(container="0123456789ab"))
    guard.start()
    assert engine.changes == ["start"]


def test_another_releases_container_is_replaced(guard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use(guard, monkeypatch, Engine(container="ffffffffffff"))
    guard.start()
    assert engine.changes == ["rm", "run"]


def test_a_missing_image_leaves_the_old_container_alone(guard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use(guard, monkeypatch, Engine(container="ffffffffffff", image=False))
    with pytest.raises(guard.GuardError, match="is not on this host"):
        guard.start()
    assert engine.changes == []


def test_a_strangers_container_is_never_touched(guard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use(guard, monkeypatch, Engine(container=""))
    with pytest.raises(guard.GuardError, match="docker rename comfyui"):
        guard.start()
    guard.stop()
    assert engine.changes == []


def test_stopping_keeps_the_container(guard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use(guard, monkeypatch, Engine(container="0123456789ab"))
    guard.stop()
    assert engine.changes == ["stop"]


def test_the_engines_words_reach_the_journal(
    guard: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(guard, monkeypatch, Engine(container=None, fail="run"))
    assert guard.main(["start"]) == 1
    assert capsys.readouterr().err == "creating the container of release 0123456789ab failed: engine says no\n"


def test_the_container_is_confined(guard: ModuleType) -> None:
    line = " ".join(guard.run_arguments({**RELEASE, "id": "0123456789ab"}))
    for words in (
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--user 990:990",
        "--init",
        "--log-driver journald",
        "--publish 127.0.0.1:8188:8188",
        "type=bind,src=/srv/comfyui/models,dst=/data/models,readonly",
        "--label dgx-comfyui.release=0123456789ab",
    ):
        assert words in line
    assert line.endswith("dgx-comfyui:0.28.1-0123456789ab python main.py --listen 0.0.0.0")
    assert "--privileged" not in line
    assert "docker.sock" not in line


@pytest.mark.parametrize("gpus", [["--device", "nvidia.com/gpu=0", "--device", "nvidia.com/gpu=1:0"], []])
def test_gpus_are_asked_for_as_the_release_says(guard: ModuleType, gpus: list[str]) -> None:
    arguments = guard.run_arguments({**RELEASE, "id": "x", "gpus": gpus})
    image = arguments.index(RELEASE["image"])
    assert arguments[image - len(gpus) : image] == gpus
    assert sum("nvidia.com/gpu" in word for word in arguments) == len(gpus) / 2


def test_a_wrong_call_explains_itself(guard: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert guard.main(["restart"]) == 2
    assert "start|stop" in capsys.readouterr().err
