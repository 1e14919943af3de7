"""The guard against a world of its own: engine, systemd, driver and ComfyUI do what a release makes them do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from comfyui_api import ComfyuiError
from comfyui_releases import Releases
from programs import load_program

PATH = Path(__file__).parents[2] / "templates" / "comfyui_guard.py"
RELEASE: dict[str, Any] = {
    "backup_dir": "",
    "bind_address": "127.0.0.1",
    "data_dir": "/srv/comfyui",
    "flags": ["--listen", "0.0.0.0"],  # noqa: S104 - in the container
    "gpus": ["--device", "nvidia.com/gpu=all"],
    "image": "good",
    "memory_limit": "",
    "pids_limit": 4096,
    "port": 8188,
    "restart_limit": 5,
    "shm_size": "8g",
    "start_timeout_s": 0,
    "tmp_size": "4g",
    "user_id": 990,
}
REFRESH = ("systemctl", "--job-mode=ignore-dependencies", "restart", "nvidia-cdi-refresh.service")
OLD, NEW, BAD = "aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"


class KilledError(BaseException):
    """The process ends here."""


class World:
    """A host. Images: good, exits, silent (its API does not answer), blind (CUDA fails in it).

    And some whose API is not ComfyUI's: strange (its answers have another shape), nodeless, takes-all (any graph).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.container: dict[str, Any] | None = None
        self.images = {"good", "exits", "silent", "blind", "strange", "nodeless", "takes-all"}
        self.engine_answers = True
        self.exec_fails = ""
        self.restarts = 0
        self.between_starts = False
        self.deaf = self.slow = False
        self.lost = ""  # a folder that the container has and the host no longer does
        self.spec_problems: list[str] = []
        self.spec_mends = True
        self.spec = "spec-1"
        self.queue: tuple[list[str], list[str]] = ([], [])
        # Of ComfyUI, below its folders, under another number; and whether the disk lets its owner be changed.
        self.earlier_files = False
        self.may_chown = True
        self.calls: list[tuple[str, ...]] = []
        self.die_at = 10**6
        self.steps = 0
        self.guard: Any = None

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.die_at:
            raise KilledError

    def made(self, release: str, image: str, *, running: bool = True) -> None:
        labels = {"dgx-comfyui.release": release, "dgx-comfyui.gpu": self.spec} if release else {}
        state = {"Running": running and image != "exits", "ExitCode": 3, "StartedAt": "2026-01-01T00:00:00.123456789Z"}
        self.container = {"Config": {"Labels": labels}, "State": state, "image": image, "RestartCount": self.restarts}

    @property
    def image(self) -> str:
        """What runs; empty where nothing does."""
        return str(self.container["image"]) if self.container and self.container["State"]["Running"] else ""

    @property
    def release(self) -> str:
        return str((self.container or {"Config": {"Labels": {}}})["Config"]["Labels"].get("dgx-comfyui.release", ""))

    def command(self, *words: str, timeout_s: float = 0) -> subprocess.CompletedProcess[str]:
        del timeout_s
        self.calls.append(words)
        self.step()
        good, output, error = self.answer(words)
        self.step()
        return subprocess.CompletedProcess(words, 0 if good else 1, output, "" if good else error)

    def answer(self, words: tuple[str, ...]) -> tuple[bool, str, str]:
        if words[0] != "docker":
            return self.answer_host(words)
        if not self.engine_answers:
            return False, "", "Cannot connect to the Docker daemon"
        if words[1:3] == ("container", "inspect"):
            if self.container and self.restarts:  # Docker has a status of it only until it starts it again
                self.between_starts = not self.between_starts
                self.container["State"] |= {"Restarting": self.between_starts, "ExitCode": 3 * self.between_starts}
            return self.container is not None, json.dumps([self.container]), "Error: No such container: comfyui"
        if words[1:3] == ("image", "inspect"):
            return words[3] in self.images, "", "No such image"
        if words[1] == "rm":
            self.container = None
        elif words[1] in {"start", "stop"}:
            assert self.container
            self.lost = ""
            self.container["State"]["Running"] = words[1] == "start" and self.container["image"] != "exits"
        elif words[1] == "exec":
            return self.image != "blind" and not self.exec_fails, "", self.exec_fails or "no CUDA: cuInit answered 999"
        elif words[1] == "run":
            labels = dict(word.split("=", 1) for word in words if word.startswith("dgx-comfyui."))
            self.made(labels["dgx-comfyui.release"], words[words.index("python") - 1])
        return True, "its last words" if words[1] == "logs" else "", "engine says no"

    def answer_host(self, words: tuple[str, ...]) -> tuple[bool, str, str]:
        if words == ("systemctl", "restart", "comfyui.service"):
            try:
                self.guard.stop()
                self.guard.serve()
            except self.guard.errors as error:
                return False, "", str(error)
        if words[0] == "test":
            return not (self.lost and words[1].endswith(self.lost)), "", ""
        if words == REFRESH and self.spec_mends:
            self.spec_problems, self.spec = [], "spec-2"
        if words[0] == "find" and self.earlier_files:
            if "chown" in words:
                self.earlier_files = not self.may_chown
            return self.may_chown, "995:995", "chown: Operation not permitted"
        return True, "", ""

    @property
    def changes(self) -> list[str]:
        """What was done to the container."""
        return [words[1] for words in self.calls if words[0] == "docker" and words[1] in {"start", "stop", "rm", "run"}]


class Api:
    """ComfyUI's API in that world."""

    url = "http://127.0.0.1:8188"

    def __init__(self, world: World) -> None:
        self.world = world

    def wait(self, wait_s: float) -> None:
        del wait_s
        if self.world.image not in {"good", "blind", "strange", "nodeless", "takes-all"} or self.world.deaf:
            raise ComfyuiError("unreachable", "it does not answer")

    def queue(self) -> tuple[list[str], list[str]]:
        self.wait(0)
        if self.world.image == "strange":
            raise KeyError("queue_running")
        return self.world.queue

    def node_classes(self, names: list[str]) -> dict[str, Any]:
        return {} if self.world.image == "nodeless" else dict.fromkeys(names)

    def json(self, path: str, body: object, accept: tuple[int, ...]) -> tuple[int, Any]:
        assert path == "/prompt"
        assert body
        assert accept == (200, 400)
        return 200 if self.world.image == "takes-all" else 400, {}

    def run(self, graph: object, timeout_s: float, *, front: bool) -> dict[str, Any]:
        del graph, timeout_s, front
        self.world.step()
        self.wait(0)
        if self.world.slow:
            raise ComfyuiError("timeout", "no result in time")
        if self.world.image == "strange":
            raise TypeError("list indices must be integers")
        return {"images": [{}]}


@pytest.fixture(name="module")
def load_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_program(PATH)
    (tmp_path / "render.json").write_text('{"1": {"class_type": "SaveImage"}}')
    monkeypatch.setattr(module, "RUN_FOLDER", tmp_path / "run")
    monkeypatch.setattr(module, "RENDER_CHECK", tmp_path / "render.json")
    monkeypatch.setattr(module, "POLL_S", 0)
    monkeypatch.setattr(module, "room_problems", lambda _: [])
    return module


@pytest.fixture(name="world")
def make_world(tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> World:
    """A host on which OLD runs and has proved itself; NEW is as good, BAD is not."""
    world = World(tmp_path)
    folder = tmp_path / "etc"
    (folder / "releases").mkdir(parents=True)
    for identity, image in ((OLD, "good"), (NEW, "good"), (BAD, "exits")):
        (folder / "releases" / f"{identity}.json").write_text(json.dumps({**RELEASE, "image": image}))
    monkeypatch.setattr(module, "command", world.command)
    monkeypatch.setattr(module, "client_of", lambda _: Api(world))
    monkeypatch.setattr(module.cdi_host, "spec_problems", lambda **_: world.spec_problems)
    monkeypatch.setattr(module.cdi_host, "driver_problem", lambda: "")
    monkeypatch.setattr(module.cdi_host, "fingerprint", lambda: world.spec)
    guard = module.Guard(Releases(folder))
    guard.errors = (module.GuardError,)
    world.guard = guard
    guard.releases.point_at(OLD)
    guard.releases.mark_proved(OLD)
    world.made(OLD, "good")
    real = __import__("os").replace

    def replace(*paths: Any) -> None:
        world.step()
        real(*paths)
        world.step()

    monkeypatch.setattr("os.replace", replace)
    return world


def activate(world: World, identity: str, *, again: bool = False, drain_s: float = 0) -> dict[str, Any]:
    return cast("dict[str, Any]", world.guard.activate(identity, drain_s=drain_s, again=again, kept=2))


def set_image(world: World, identity: str, image: str, **changes: Any) -> None:
    world.guard.releases.path(identity).write_text(json.dumps({**RELEASE, "image": image, **changes}))


def error_of(world: World, call: Any) -> str:
    with pytest.raises(world.guard.errors) as caught:
        call()
    return str(caught.value)


# What start and stop do.


def test_a_first_start_creates(world: World) -> None:
    world.container = None
    world.guard.start()
    assert world.changes == ["run"]


def test_the_releases_own_container_is_adopted(world: World) -> None:
    world.guard.start()
    assert world.changes == ["start"]


def test_another_releases_container_is_replaced(world: World) -> None:
    world.guard.releases.point_at(NEW)
    world.guard.start()
    assert world.changes == ["stop", "rm", "run"]
    assert world.release == NEW


def test_a_container_of_another_driver_is_replaced(world: World) -> None:
    world.spec = "spec-2"
    world.guard.start()
    assert world.changes == ["stop", "rm", "run"]


def test_a_missing_image_leaves_the_old_container_alone(world: World) -> None:
    world.guard.releases.point_at(NEW)
    world.images.clear()
    assert "is not on this host" in error_of(world, world.guard.start)
    assert world.changes == []


def test_a_change_that_was_left_before_its_release_could_start_is_undone_by_the_next_start(world: World) -> None:
    world.guard.releases.point_at(NEW)
    world.images.clear()
    world.guard.serve()
    assert (world.guard.releases.current, world.release, world.image) == (OLD, OLD, "good")


def test_a_start_goes_back_from_nothing_that_proved_itself_or_is_being_changed(
    world: World, module: ModuleType
) -> None:
    world.container, world.images = None, set()
    assert "is not on this host" in error_of(world, world.guard.serve)
    assert world.guard.releases.current == OLD
    world.guard.releases.point_at(NEW)
    with module.alone(0):
        assert "is not on this host" in error_of(world, world.guard.serve)
    assert world.guard.releases.current == NEW
    assert world.changes == []


def test_a_strangers_container_is_never_touched(world: World) -> None:
    world.made("", "good")
    assert "docker rename comfyui" in error_of(world, world.guard.start)
    world.guard.stop()
    assert world.changes == []


def test_stopping_keeps_the_container(world: World) -> None:
    world.guard.stop()
    assert world.changes == ["stop"]


def test_a_specification_that_does_not_fit_is_mended_before_a_start(world: World) -> None:
    world.container, world.spec_problems = None, ["/dev/nvidia-uvm is not in it"]
    world.guard.start()
    assert world.release == OLD
    assert REFRESH in world.calls


def test_without_a_gpu_to_hand_over_nothing_starts_and_what_runs_stays(world: World) -> None:
    world.spec_problems, world.spec_mends = ["there is none"], False
    world.guard.start()
    assert world.changes == ["start"]
    world.container = None
    assert "does not fit this host: there is none" in error_of(world, world.guard.start)
    assert world.changes == ["start"]


def test_settings_are_packed_before_another_release_starts(world: World, tmp_path: Path) -> None:
    (tmp_path / "data" / "user").mkdir(parents=True)
    (tmp_path / "data" / "user" / "comfy.settings.json").write_text("{}")
    backups = tmp_path / "backups"
    set_image(world, NEW, "good", data_dir=str(tmp_path / "data"), backup_dir=str(backups))
    world.guard.releases.point_at(NEW)
    world.guard.start()
    (packed,) = backups.iterdir()
    with tarfile.open(packed) as archive:
        assert "user/comfy.settings.json" in archive.getnames()
    assert packed.name.endswith(f"-{OLD}.tar.gz")


def test_a_release_that_never_proved_itself_pushes_no_backup_out(world: World, tmp_path: Path) -> None:
    (tmp_path / "data" / "user").mkdir(parents=True)
    for identity, image in ((OLD, "good"), (BAD, "exits")):
        set_image(world, identity, image, data_dir=str(tmp_path / "data"), backup_dir=str(tmp_path / "backups"))
    for _ in range(2):
        error_of(world, lambda: activate(world, BAD, again=True))
    assert world.image == "good"
    assert {path.name.rpartition("-")[2] for path in (tmp_path / "backups").iterdir()} == {f"{OLD}.tar.gz"}


def test_the_newest_backups_of_this_host_are_kept_and_all_of_others(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "backups").mkdir()
    others = {"user-dgx-20200101T000000Z-a.tar.gz", "user-dgx-1-b-20200101T000000Z-a.tar.gz", "user-mine.tar.gz"}
    ours = [f"user-dgx-1-2020010{day}T000000Z-{OLD}.tar.gz" for day in (1, 2, 3)]
    for name in (*others, *ours):
        (tmp_path / "backups" / name).touch()
    monkeypatch.setattr(module.platform, "node", lambda: "dgx-1")
    module.keep_settings({"backup_dir": str(tmp_path / "backups"), "data_dir": str(tmp_path)}, OLD)
    left = {path.name for path in (tmp_path / "backups").iterdir()}
    assert left > {*others, *ours[1:]}
    assert ours[0] not in left
    assert len(left) == 6


def test_a_backup_that_fails_keeps_the_old_container(world: World, tmp_path: Path) -> None:
    set_image(world, NEW, "good", data_dir=str(tmp_path / "absent"), backup_dir=str(tmp_path))
    world.guard.releases.point_at(NEW)
    assert "The backup of" in error_of(world, world.guard.start)
    assert world.release == OLD
    assert "rm" not in world.changes


# What a check finds and repairs.


def check(world: World, times: int = 1) -> list[str]:
    return [finding for _ in range(times) for finding in world.guard.check()]


def test_a_healthy_host_is_left_alone(world: World) -> None:
    assert check(world) == []
    assert world.changes == []


def test_a_container_that_is_gone_or_gave_up_is_made_anew(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.container = None
    assert check(world) == []
    assert world.image == "good"
    world.made(OLD, "good", running=False)
    assert check(world) == []
    assert world.image == "good"
    assert "anew: it ended with status 3 and Docker does not start it again" in capsys.readouterr().err


def test_a_lost_gpu_is_a_reason(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.made(OLD, "blind")
    assert check(world) == []
    assert world.image == "good"
    assert "it lost the GPU: no CUDA: cuInit answered 999" in capsys.readouterr().err


def test_an_engine_that_cannot_ask_for_the_gpu_is_no_reason(world: World) -> None:
    world.exec_fails = "OCI runtime exec failed: exec failed: resource temporarily unavailable"
    for _ in range(3):
        assert "CUDA could not be asked" in check(world)[0]
    assert world.changes == []


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("", "libcuda.so.1: cannot open shared object file"),
        ("int cuInit(int f) { return 999; } int cuDeviceGetCount(int *n) { return 0; }", "cuInit answered 999"),
        ("int cuInit(int f) { return 0; } int cuDeviceGetCount(int *n) { return 0; }", "it finds no GPU"),
        ("int cuInit(int f) { return 0; } int cuDeviceGetCount(int *n) { *n = 1; return 0; }", ""),
    ],
)
def test_what_is_asked_in_the_container_says_what_is_wrong(
    module: ModuleType, tmp_path: Path, library: str, words: str
) -> None:
    if library:
        (tmp_path / "cuda.c").write_text(library)
        compiler = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "cuda.c")]
        subprocess.run(compiler, check=True)
    done = subprocess.run(
        [sys.executable, "-c", module.CUDA_ANSWERS],
        env={"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (not words)
    assert done.stderr.startswith(f"{module.NO_CUDA}{words}" if words else "")
    assert "Traceback" not in done.stderr


def test_a_host_without_its_gpu_keeps_the_container_that_still_has_it(world: World) -> None:
    world.made(OLD, "blind")
    world.spec_problems, world.spec_mends = ["there is none"], False
    assert "does not fit this host" in check(world)[0]
    assert world.changes == []


def test_a_changed_driver_waits_for_an_empty_queue(world: World) -> None:
    world.spec, world.queue = "spec-2", (["running"], [])
    assert check(world) == []
    assert world.changes == []
    world.queue = ([], [])
    assert check(world) == []
    assert world.changes == ["rm", "run"]


def test_silence_counts_three_times_and_not_while_it_starts(world: World) -> None:
    world.made(OLD, "silent")
    assert [len(check(world)) for _ in range(2)] == [1, 1]
    assert world.changes == []
    check(world)
    assert world.image == "good"
    set_image(world, OLD, "good", start_timeout_s=10**9)
    world.made(OLD, "silent")
    assert check(world, times=5) == []


def test_answers_of_another_shape_are_silence(world: World) -> None:
    world.made(OLD, "strange")
    assert "silent 1 times in a row: its answer is not what ComfyUI answers" in check(world)[0]


def test_a_queue_that_stands_still_is_a_reason_and_a_long_prompt_a_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.queue = ([], ["waiting"])
    check(world)
    assert world.changes == []
    check(world)
    assert world.changes == ["rm", "run"]
    world.queue = (["long"], [])
    assert check(world) == []
    later = time.time() + 4000
    monkeypatch.setattr(time, "time", lambda: later)
    assert "The prompt long runs for 67 minutes" in check(world)[0]
    assert world.changes == ["rm", "run"]


def test_what_does_not_help_is_not_repeated_for_ever(world: World) -> None:
    set_image(world, OLD, "exits")
    world.images.add("exits")
    world.made(OLD, "exits")
    assert check(world, times=3) == []
    assert "made anew 3 times and it did not help" in check(world)[0]
    assert "its last words" in check(world)[0]
    assert world.changes.count("run") == 3


def test_a_start_does_not_show_that_a_repair_helped(world: World) -> None:
    set_image(world, OLD, "silent", start_timeout_s=10**9)
    world.made(OLD, "silent")
    for _ in range(3):
        assert check(world) == []  # it starts
        world.made(OLD, "silent", running=False)
        assert check(world) == []
    assert check(world) == []
    world.made(OLD, "silent", running=False)
    assert "made anew 3 times and it did not help" in check(world)[0]
    world.made(OLD, "good")
    assert check(world) == []
    world.made(OLD, "good", running=False)
    check(world)
    assert world.image == "silent"


def test_a_check_without_an_engine_touches_nothing(world: World) -> None:
    world.engine_answers = False
    assert "Docker does not answer" in error_of(world, world.guard.check)


def test_a_change_that_was_left_halfway_is_undone(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.guard.releases.point_at(BAD)
    assert check(world) == []
    assert (world.guard.releases.current, world.release, world.changes) == (OLD, OLD, ["start"])
    world.guard.releases.point_at(BAD)
    world.made(BAD, "exits")
    assert check(world) == []
    assert (world.guard.releases.current, world.release, world.image) == (OLD, OLD, "good")
    assert f"Going back to release {OLD}" in capsys.readouterr().err
    assert world.guard.releases.state()["bad"] == {}


def test_a_check_gives_way_to_a_change(world: World, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Guard", lambda: world.guard)
    world.container = None
    with module.alone(0):
        assert module.main(["check"]) == 0
        assert "Another run has been changing ComfyUI" in error_of(world, world.guard.check)
    assert world.changes == []


def test_a_report_repairs_nothing(world: World) -> None:
    world.spec_problems = ["/dev/nvidia-uvm is not in it"]
    report = world.guard.report()
    assert report["release"] == OLD
    assert "/dev/nvidia-uvm is not in it" in report["findings"][0]
    assert not any(words[0] == "systemctl" for words in world.calls)


# What provisioning asks and does where the release is the same.


def drift(world: World) -> str:
    """What a row says that was found; empty where nothing had drifted."""
    return ", ".join(str(row["found"]) for row in world.guard.drift(None))


def test_a_container_made_with_another_driver_is_named_and_replaced(world: World) -> None:
    assert (drift(world), activate(world, OLD)["changed"]) == ("", False)
    world.spec = "spec-2"
    assert drift(world) == "made with another driver"
    assert activate(world, OLD)["changed"] is True
    assert world.changes[-2:] == ["rm", "run"]
    assert (drift(world), activate(world, OLD)["changed"]) == ("", False)


def test_a_container_made_with_a_specification_that_is_wrong_now_is_named_before_that_is_mended(world: World) -> None:
    world.spec_problems = ["/usr/lib/libcuda.so.1 is not there"]
    assert drift(world) == "made with another driver"
    assert REFRESH not in world.calls
    activate(world, OLD)
    assert (world.changes[-2:], drift(world)) == (["rm", "run"], "")


def test_a_container_made_before_the_specification_went_wrong_stays(world: World) -> None:
    world.spec, world.spec_problems = "spec-1 without uvm", ["/dev/nvidia-uvm is not in it"]
    assert drift(world) == ""
    world.spec, world.spec_problems = "spec-1", []
    assert activate(world, OLD)["changed"] is False
    assert world.changes == []


def test_a_container_whose_folder_is_gone_on_the_host_is_named_and_started_again(world: World) -> None:
    world.lost = "/output"
    assert drift(world).startswith("with another ")
    assert activate(world, OLD)["changed"] is True
    assert world.changes == ["stop", "start"]
    assert (drift(world), activate(world, OLD)["changed"]) == ("", False)


def test_a_container_that_may_be_the_last_to_have_its_gpu_is_not_replaced(
    world: World, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.spec = "spec-2"
    monkeypatch.setattr(module.cdi_host, "driver_problem", lambda: "Reboot this host.")
    assert drift(world) == ""
    assert activate(world, OLD)["changed"] is False
    assert world.changes == []


def test_a_container_that_does_not_run_or_is_another_is_named(world: World) -> None:
    world.made(NEW, "good")
    assert drift(world) == f"of release {NEW}"
    world.made(OLD, "good", running=False)
    assert drift(world) == "ended with status 3"
    world.made("", "good")
    assert drift(world) == "not of this service"
    world.container = None
    assert drift(world) == "absent"
    assert world.changes == []


def test_what_an_earlier_number_left_is_named_and_handed_over(world: World) -> None:
    world.earlier_files = True
    assert drift(world) == "", "no release had another number"
    set_image(world, NEW, "good", user_id=995)
    assert drift(world) == "owner 995:995"
    assert activate(world, OLD)["changed"] is True
    assert world.changes == []
    assert ("chown", "--no-dereference", "990:990") in {words[-5:-2] for words in world.calls}
    assert (drift(world), activate(world, OLD)["changed"]) == ("", False)


def test_a_release_with_another_number_gets_the_files_once_nobody_else_writes_to_them(world: World) -> None:
    world.earlier_files = True
    set_image(world, NEW, "good", user_id=995)
    activate(world, NEW)
    (given,) = (place for place, words in enumerate(world.calls) if "chown" in words)
    assert [words[2] if words[0] == "find" else words[1] for words in world.calls[given - 1 : given + 2]] == [
        "rm",
        "/srv/comfyui/cache",
        "run",
    ]


def test_files_that_cannot_be_handed_over_fail_the_run_and_no_start(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.earlier_files, world.may_chown = True, False
    set_image(world, NEW, "good", user_id=995)
    words = "giving user 990 the files that ComfyUI left under another number failed: chown: Operation not permitted"
    assert words in error_of(world, lambda: activate(world, OLD))
    world.container = None
    world.guard.start()
    assert world.image == "good"
    assert words in capsys.readouterr().err


def test_an_earlier_number_is_one_of_a_release(
    world: World, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in module.WRITABLE:
        (tmp_path / "data" / name / "folder").mkdir(parents=True)
    real = load_program(PATH).command
    monkeypatch.setattr(module, "command", lambda *words: real(*words) if words[0] == "find" else world.command(*words))
    mine = os.getuid()
    set_image(world, OLD, "good", data_dir=str(tmp_path / "data"), user_id=mine + 1)
    for stranger in (mine, 54321):  # who runs this, and who has no account
        for name in module.WRITABLE:
            os.chown(tmp_path / "data" / name / "folder", stranger, -1)
        assert world.guard.drift(None) == []
    for name in module.WRITABLE:
        os.chown(tmp_path / "data" / name / "folder", mine, -1)
    set_image(world, NEW, "good", user_id=mine)
    (row,) = world.guard.drift(None)
    assert (row["expected"], row["found"]) == (f"owner {mine + 1}:{mine + 1}", f"owner {mine}:{os.getgid()}")
    assert world.guard.drift(mine) == []
    # The folders are handed over as well, and the release to go back to can write to them.
    handed = subprocess.run(
        world.guard.earlier_files(str(tmp_path / "data"), mine + 1), capture_output=True, check=True
    )
    assert len(handed.stdout.split()) == 2 * len(module.WRITABLE)
    # A stranger's file stays theirs in ComfyUI's group too, and a folder on another disk is one of the folders.
    output = tmp_path / "data" / "output"
    output.rename(tmp_path / "disk")
    output.symlink_to(tmp_path / "disk")
    os.chown(tmp_path / "disk" / "folder", 54321, mine)
    find = world.guard.earlier_files(str(tmp_path / "data"), mine + 1, mindepth=1)
    found = subprocess.run(find, capture_output=True, text=True, check=True).stdout
    assert f"{output}/folder" not in found.split()
    os.chown(tmp_path / "disk" / "folder", mine, mine)
    found = subprocess.run(find, capture_output=True, text=True, check=True).stdout
    assert f"{output}/folder" in found.split()


def test_what_is_found_goes_to_the_output_as_json(
    world: World, module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "Guard", lambda: world.guard)
    world.container = None
    assert module.main(["drift"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["resource"], row["found"]) == ("container comfyui", "absent")


# How releases change.


def test_a_good_release_takes_over(world: World) -> None:
    result = activate(world, NEW)
    assert (result["changed"], result["before"]) == (True, OLD)
    assert (world.guard.releases.current, world.release) == (NEW, NEW)
    assert world.guard.releases.state()["proved"] == [OLD, NEW]
    assert activate(world, NEW)["changed"] is False


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("exits", "its container ends, with status 3"),
        ("silent", "does not answer"),
        ("blind", "cuInit answered 999"),
        ("strange", "its answer is not what ComfyUI answers"),
        ("nodeless", "it knows no node SaveImage"),
        ("takes-all", "it answers 200 to a graph that makes nothing"),
    ],
)
def test_a_release_that_fails_is_taken_back_and_marked(world: World, image: str, why: str) -> None:
    set_image(world, BAD, image)
    words = error_of(world, lambda: activate(world, BAD))
    assert why in words
    assert f"The release before ({OLD}) was started again and renders" in words
    assert "its last words" in words
    assert (world.guard.releases.current, world.release, world.image) == (OLD, OLD, "good")
    assert why in world.guard.releases.state()["bad"][BAD]["why"]


def test_a_bad_release_is_refused_until_it_is_asked_for(world: World) -> None:
    error_of(world, lambda: activate(world, BAD))
    done = len(world.changes)
    assert "is marked bad: its container ends" in error_of(world, lambda: activate(world, BAD))
    assert len(world.changes) == done
    set_image(world, BAD, "good")
    assert activate(world, BAD, again=True)["changed"] is True
    assert world.guard.releases.state()["bad"] == {}


def test_a_first_release_that_fails_stays_for_another_try(world: World) -> None:
    world.guard.releases.mark_bad(OLD, "gone")
    assert "there is none before it" in error_of(world, lambda: activate(world, BAD))
    assert world.guard.releases.current == BAD
    assert BAD not in world.guard.releases.state()["bad"]


def test_a_proved_release_that_fails_now_is_not_blamed(world: World) -> None:
    activate(world, NEW)
    world.made(NEW, "silent")
    error_of(world, lambda: activate(world, NEW))
    assert world.guard.releases.current == NEW
    assert world.guard.releases.state()["bad"] == {}


def test_a_full_queue_is_not_lost_unless_asked(world: World) -> None:
    world.queue = (["one"], ["two", "three"])
    words = error_of(world, lambda: activate(world, NEW, drain_s=0.01))
    assert "3 jobs run or wait after 0.01 s, expected an empty queue" in words
    assert world.changes == []
    assert activate(world, NEW, drain_s=0)["jobs_lost"] == 3


def test_an_unanswered_queue_is_not_taken_for_an_empty_one(world: World) -> None:
    world.queue, world.deaf = (["one"], []), True
    words = error_of(world, lambda: activate(world, NEW, drain_s=0.01))
    assert "an unknown number of jobs (the queue does not answer) run or wait after 0.01 s" in words
    world.made(OLD, "strange")
    assert "an unknown number of jobs" in error_of(world, lambda: activate(world, NEW, drain_s=0.01))
    assert world.changes == []
    world.deaf = False
    assert activate(world, NEW, drain_s=0)["jobs_lost"] is None


def test_a_server_that_is_not_there_or_never_worked_has_no_queue(world: World) -> None:
    world.made(OLD, "good", running=False)
    assert activate(world, NEW, drain_s=10**6)["jobs_lost"] == 0
    set_image(world, BAD, "silent")
    world.guard.releases.point_at(BAD)
    world.made(BAD, "silent")
    assert activate(world, NEW, drain_s=10**6)["jobs_lost"] == 0


def test_a_release_that_runs_is_not_asked_for_an_image_while_it_renders(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.slow = True
    assert "no result in time" in error_of(world, lambda: activate(world, OLD))
    world.queue = (["long"], [])
    world.exec_fails = "CUDA out of memory"
    assert activate(world, OLD)["changed"] is False
    assert "neither an image nor the GPU is asked for: it renders another one" in capsys.readouterr().err


@pytest.mark.parametrize("first_look", [False, True])
def test_a_release_that_keeps_ending_is_not_waited_for(world: World, first_look: bool) -> None:
    set_image(world, BAD, "silent", start_timeout_s=10**6)
    world.restarts, world.between_starts = 2, first_look  # Docker starts it again each time, so it always runs
    assert "its container ends, with status 3" in error_of(world, lambda: activate(world, BAD))


def test_a_missing_image_and_a_full_disk_are_seen_before_the_stop(
    world: World, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_image(world, NEW, "absent")
    assert "is not on this host" in error_of(world, lambda: activate(world, NEW))
    set_image(world, NEW, "good")
    monkeypatch.setattr(module, "room_problems", lambda _: ["The disk is full."])
    assert "The disk is full." in error_of(world, lambda: activate(world, NEW))
    assert world.changes == []


def test_a_host_that_cannot_back_up_or_hand_over_its_gpus_is_seen_before_the_stop(
    world: World, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "user").mkdir(parents=True)
    (tmp_path / "data" / "user" / "comfyui.db").write_bytes(bytes(3 * 1024**2))
    (tmp_path / "file").touch()
    set_image(world, NEW, "good", data_dir=str(tmp_path / "data"), backup_dir=str(tmp_path / "file" / "below"))
    assert "below cannot be used" in error_of(world, lambda: activate(world, NEW))
    set_image(world, NEW, "good", data_dir=str(tmp_path / "data"), backup_dir=str(tmp_path / "backups"))
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=7))
        assert "has 0.0 MiB free, expected 3.0, the size of" in error_of(world, lambda: activate(world, NEW))
    world.spec_problems, world.spec_mends = ["there is none"], False
    assert "does not fit this host: there is none" in error_of(world, lambda: activate(world, NEW))
    assert world.changes == []
    assert world.guard.releases.state()["bad"] == {}


def test_a_release_whose_container_was_never_made_is_not_blamed(
    world: World, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise module.GuardError("The backup failed.")

    set_image(world, NEW, "good", data_dir="/absent", backup_dir=str(world.folder))
    monkeypatch.setattr(module, "keep_settings", full)
    words = error_of(world, lambda: activate(world, NEW))
    assert f"{NEW} is not marked bad, since it never started" in words
    assert (world.guard.releases.current, world.release, world.image) == (OLD, OLD, "good")
    assert world.guard.releases.state()["bad"] == {}


def test_a_full_disk_is_said_in_one_sentence_and_the_old_release_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = world.guard.releases.point_at

    def full(identity: str) -> None:
        if identity == NEW:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/etc/comfyui/current.new")
        real(identity)

    monkeypatch.setattr(world.guard.releases, "point_at", full)
    words = error_of(world, lambda: activate(world, NEW))
    assert "No space left on device: '/etc/comfyui/current.new'" in words
    assert (world.guard.releases.current, world.release, world.image) == (OLD, OLD, "good")


def test_one_change_at_a_time(world: World, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0)
    with module.alone(0):
        assert "Another run has been changing ComfyUI" in error_of(world, lambda: activate(world, NEW))
    assert world.changes == []
    assert activate(world, NEW)["changed"]


# At each step the process may end: before and after each command, each rename, and the render.
CHANGE_STEPS = 60
RETURN_STEPS = 90


def test_no_change_takes_more_steps_than_are_interrupted_below(world: World) -> None:
    activate(world, NEW)
    assert world.steps < CHANGE_STEPS
    world.steps = 0
    error_of(world, lambda: activate(world, BAD))
    assert world.steps < RETURN_STEPS


@pytest.mark.parametrize("step", range(1, CHANGE_STEPS))
def test_an_interrupted_change_can_be_run_again(world: World, step: int) -> None:
    world.die_at = step
    try:
        activate(world, NEW)
    except KilledError:
        assert world.guard.releases.current in {OLD, NEW}
        assert OLD in world.guard.releases.state()["proved"]
    else:
        assert world.steps < step
    world.die_at = 10**6
    activate(world, NEW)
    assert (world.guard.releases.current, world.release, world.image) == (NEW, NEW, "good")
    assert world.guard.releases.state() == {"proved": [OLD, NEW], "bad": {}}


@pytest.mark.parametrize("step", range(1, RETURN_STEPS))
@pytest.mark.parametrize("then", ["run again", "leave it to the guard"])
def test_an_interrupted_return_ends_with_what_worked(world: World, step: int, then: str) -> None:
    world.die_at = step
    with pytest.raises((KilledError, *world.guard.errors)):
        activate(world, BAD)
    world.die_at = 10**6
    if then == "run again":
        error_of(world, lambda: activate(world, BAD))
        assert BAD in world.guard.releases.state()["bad"]
    else:
        assert check(world) == []
    assert (world.guard.releases.current, world.release, world.image) == (OLD, OLD, "good")


def test_going_back(world: World) -> None:
    activate(world, NEW)
    world.guard.rollback("", drain_s=0)
    assert (world.guard.releases.current, world.release) == (OLD, OLD)
    assert world.guard.releases.state()["bad"][NEW]["why"] == "an operator went back from it"
    world.guard.rollback(NEW, drain_s=0)
    assert world.release == NEW
    assert "is the current one" in error_of(world, lambda: world.guard.rollback(NEW, drain_s=0))


def test_nothing_to_go_back_to_is_said(world: World) -> None:
    said = error_of(world, lambda: world.guard.rollback("", drain_s=0))
    assert "no release before the current one" in said
    assert "-e comfyui_service_rollback_to=ID" in said
    assert world.changes == []


# What the container may.


def line(module: ModuleType, **changes: Any) -> str:
    return " ".join(module.run_arguments({**RELEASE, "id": OLD, **changes}, "spec-1"))


def test_the_container_is_confined(module: ModuleType) -> None:
    words = line(module)
    for part in (
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--user 990:990",
        "--init",
        "--ipc private",
        "--cgroupns private",
        "--pids-limit 4096",
        "--tmpfs /tmp:rw,nosuid,nodev,mode=1777,",  # otherwise it takes the mode of the image's own
        "--log-driver journald",
        "--publish 127.0.0.1:8188:8188",
        "type=bind,src=/srv/comfyui/models,dst=/data/models,readonly",
        f"--label dgx-comfyui.release={OLD}",
        "--label dgx-comfyui.gpu=spec-1",
        "--device nvidia.com/gpu=all",
    ):
        assert part in words
    assert words.endswith("good python main.py --listen 0.0.0.0")
    for part in (
        "--privileged",
        "docker.sock",
        "--memory",
        "--gpus",
        "seccomp",
        "--network",
        "--pid ",
        "--uts",
        "--userns",
    ):
        assert part not in words


def test_limits_and_addresses_are_passed_on(module: ModuleType) -> None:
    assert "--memory 64g" in line(module, memory_limit="64g")
    assert "--publish [::1]:8188:8188" in line(module, bind_address="::1")
    assert "nvidia.com" not in line(module, gpus=[])


@pytest.mark.parametrize(
    ("address", "url"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("10.0.0.7", "10.0.0.7")],  # noqa: S104
)
def test_the_api_is_asked_where_it_listens(module: ModuleType, address: str, url: str) -> None:
    assert module.client_of({**RELEASE, "bind_address": address}).url == f"http://{url}:8188"


@pytest.mark.parametrize(("words", "status"), [(["restart"], 2), (["activate"], 2), (["start", "now"], 2)])
def test_a_wrong_call_explains_itself(module: ModuleType, words: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as caught:
        module.main(words)
    assert caught.value.code == status


def test_who_may_not_is_told_so_without_a_traceback(
    world: World, module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/run/comfyui")

    monkeypatch.setattr(world.guard, "check", check)
    monkeypatch.setattr(module, "Guard", lambda: world.guard)
    assert module.main(["check"]) == 1
    assert "Permission denied: '/run/comfyui'" in capsys.readouterr().err


def test_an_error_is_one_line_and_one_result(
    world: World, module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "Guard", lambda: world.guard)
    assert module.main(["activate", "dddddddddddd"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["error"] in said.err
    assert "There is no release dddddddddddd on this host" in said.err
