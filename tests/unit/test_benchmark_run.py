"""The course of a benchmark with an engine, a driver and servers that are told what to do."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
import yaml

import comfyui_releases

ROOT = Path(__file__).resolve().parents[2]
# On a host Ansible ships the helpers as ansible.module_utils.NAME; here they are made to be found there.
ansible.module_utils.__path__.append(str(ROOT / "plugins/module_utils"))
run = importlib.import_module("ansible.module_utils.benchmark_run")
server = importlib.import_module("ansible.module_utils.benchmark_server")
GUARD = ROOT / "templates/comfyui_guard.py"
CUDA = [{"type": "cuda", "name": "cuda:0 NVIDIA H200"}]
RELEASE = {
    "id": "abc",
    "bind_address": "127.0.0.1",
    "data_dir": "/srv/comfyui",
    "flags": ["--listen", "0.0.0.0", "--port", "8188", "--temp-directory", "/tmp/comfyui"],  # noqa: S104,S108 - in a container
    "gpus": ["--device", "nvidia.com/gpu=all"],
    "image": "dgx-comfyui:x",
    "port": 8188,
    "restart_limit": 5,
    "shm_size": "8g",
    "tmp_size": "4g",
    "user_id": 990,
}
CANDIDATES = [
    {"name": "defaults", "flags": []},
    {"name": "fast", "flags": ["--fast"]},
    {"name": "slow", "flags": ["--slow"]},
    {"name": "greedy", "flags": ["--greedy"]},
    {"name": "other-images", "flags": ["--other"]},
]
LATENCY_S = {"--fast": 1.0, "--slow": 2.0, "--other": 0.5}


def check(**changes: Any) -> None:
    state: dict[str, Any] = {
        "devices": CUDA,
        "waiting": 0,
        "url": "http://127.0.0.1:8199",
        "others": [],
        "utilisation": 0.0,
    }
    run.check_idle(**{**state, "gpu_required": True, "shared": False, **changes})


def test_an_idle_gpu_is_measured() -> None:
    check()
    check(utilisation=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": [{"type": "cpu"}]}, "computes on cpu, expected an NVIDIA GPU"),
        ({"devices": []}, "computes on nothing"),
        ({"waiting": 2}, "2 prompts to work on, expected an empty queue"),
        ({"others": [(77, 3 << 30)]}, "in use by others (process 77 with 3.0 GiB)"),
        ({"others": [(77, None)]}, "(process 77)"),
        ({"utilisation": 40.0}, "40 % busy and ComfyUI is idle, expected at most 5 %"),
    ],
)
def test_a_host_whose_figures_would_mean_nothing_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(run.RefusalError, match=re.escape(words)):
        check(**changes)


def test_others_are_tolerated_only_when_told() -> None:
    check(others=[(77, None)], utilisation=99.0, shared=True)
    with pytest.raises(run.RefusalError):
        check(devices=[{"type": "cpu"}], shared=True)
    check(devices=[{"type": "cpu"}], gpu_required=False)


def test_the_container_is_the_releases_own_but_for_name_port_and_data() -> None:
    guard = server.load_guard(str(GUARD))
    theirs = guard.run_arguments(RELEASE, "")
    work = {**RELEASE, "data_dir": "/scratch", "port": 9}
    ours = server.container_arguments(guard.run_arguments(work, ""), "/scratch", "/srv/comfyui/models")
    assert ours[ours.index("--name") + 1] == "comfyui-benchmark"
    assert ours[ours.index("--label") + 1] == "dgx-comfyui.benchmark=1"
    assert "--restart" not in ours
    assert "type=bind,src=/srv/comfyui/models,dst=/data/models,readonly" in ours
    assert "type=bind,src=/scratch/output,dst=/data/output" in ours
    same = {"--read-only", "--cap-drop", "--security-opt", "--shm-size", "--tmpfs", "--device"}
    assert same <= set(ours)
    assert same <= set(theirs)


def test_a_host_without_the_guard_was_not_provisioned() -> None:
    with pytest.raises(server.ServerError, match=r"Run ansible-playbook site\.yml"):
        server.load_guard("/nowhere/guard.py")


def test_a_host_without_the_drivers_program_has_no_gpu_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert server.call("nvidia-smi").returncode == 127
    assert server.gpu_processes() == []
    with server.Sampler() as sampler:
        assert sampler.samples == []


def test_a_process_counts_only_where_it_has_the_gpu_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, target in {"7": "/dev/nvidia0", "8": "/dev/null"}.items():
        (tmp_path / pid / "fd").mkdir(parents=True)
        (tmp_path / pid / "fd" / "3").symlink_to(target)
    assert [server.holds_gpu(pid, str(tmp_path)) for pid in (7, 8, 9)] == [True, False, False]
    listed = server.subprocess.CompletedProcess([], 0, "7, 2048\n8, 10\n9, [N/A]\n[Not Supported]\n", "")
    monkeypatch.setattr(server, "call", lambda *_: listed)
    monkeypatch.setattr(server, "holds_gpu", lambda pid: pid != 8)
    assert server.gpu_processes() == [(7, 2048 << 20), (9, None)]


def test_the_plain_run_enters_only_the_mounts() -> None:
    contained = server.ContainerServer(server.load_guard(str(GUARD)), RELEASE, "/scratch", ["--fast"])
    argv = server.PlainServer(contained).argv(42, ["A=b"], "/opt/comfyui/app", "990:990", ["python", "main.py"])
    assert argv[:8] == ["nsenter", "--target", "42", "--mount", "--", "env", "-i", "A=b"]
    assert argv[-6:] == ["sh", "/opt/comfyui/app", "990", "990", "python", "main.py"]
    assert contained.flags[-1] == "--fast"


def test_a_candidate_has_environment_variables_beside_those_of_the_release() -> None:
    release = {**RELEASE, "environment": {"MINE": "1", "BOTH": "release"}}
    guard = server.load_guard(str(GUARD))
    words = server.ContainerServer(guard, release, "/scratch", [], {"BOTH": "candidate", "ITS": "2"})._arguments
    given = [after for word, after in itertools.pairwise(words) if word == "--env"]
    assert given == ["MINE=1", "BOTH=candidate", "ITS=2"]
    assert words.index("--env") < words.index(RELEASE["image"])


def test_what_a_server_said_of_its_settings_is_kept_once() -> None:
    log = "attention\nattention\n\nserver\n\x1b[32mSet vram state to: HIGH_VRAM\x1b[0m\n"
    assert run.remarks(log) == ["attention", "Set vram state to: HIGH_VRAM"]


class Engine:
    """Servers that answer at once, as their flags say; no container is made."""

    def __init__(self) -> None:
        self.running = 0
        self.started: list[list[str]] = []

    def container(
        self, _guard: Any, _release: Any, work_dir: str, extra_flags: list[str], _environment: Any = None
    ) -> Server:
        return Server(self, extra_flags, Path(work_dir))

    def plain(self, beside: Server) -> Server:
        return Server(self, beside.flags, beside.folder)


class Server:
    """One of them."""

    def __init__(self, engine: Engine, flags: list[str], work_dir: Path) -> None:
        self.engine, self.flags, self.folder = engine, flags, work_dir
        self.clock_s = 100.0

    def start(self, _: float) -> float:
        self.engine.running += 1
        self.engine.started.append(self.flags)
        return 6.5

    def run(self, graph: Mapping[str, Any], limit_s: float) -> tuple[float, float, list[str]]:
        return self.run_queue([graph], limit_s)[0]

    def run_queue(self, graphs: list[Mapping[str, Any]], _: float) -> list[tuple[float, float, list[str]]]:
        if "--greedy" in self.flags:
            raise server.ServerError("node 5 (KSampler): torch.OutOfMemoryError: CUDA out of memory")
        taken_s = LATENCY_S.get(self.flags[0] if self.flags else "", 1.5)
        done = []
        for graph in graphs:
            (save,) = [node for node in graph.values() if node["class_type"] == "SaveImage"]
            name = f"{save['inputs']['filename_prefix']}.png"
            (self.folder / "output" / name).touch()
            done.append((self.clock_s, self.clock_s + taken_s, [name]))
            self.clock_s += taken_s
        return done

    def compare(self, _: str, new: str) -> dict[str, float]:
        return {"mean": 30.0 if new.startswith("other") else 0.1, "share": 0.0, "std": 60.0}

    def free(self) -> None:
        pass

    def stop(self) -> None:
        self.engine.running = 0


class Service:
    """The service's own API."""

    url = "http://127.0.0.1:8188"

    def __init__(self, *_: Any) -> None:
        self.freed = 0

    def json(self, _: str) -> tuple[int, Any]:
        system = {"comfyui_version": "0.28.1", "pytorch_version": "2.11.0+cu130", "python_version": "3.12.3 (main)"}
        return 200, {"system": system, "devices": CUDA}

    def queue(self) -> tuple[list[str], list[str]]:
        return [], []

    def request(self, *_: Any) -> tuple[int, bytes]:
        self.freed += 1
        return 200, b""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    found = Engine()
    monkeypatch.setattr(run, "ContainerServer", found.container)
    monkeypatch.setattr(run, "PlainServer", found.plain)
    monkeypatch.setattr(run, "Client", Service)
    monkeypatch.setattr(run, "gpu_processes", list)
    monkeypatch.setattr(run, "container_pids", lambda _: [])
    monkeypatch.setattr(run, "remove_container", lambda: None)
    monkeypatch.setattr(run, "QUIET_LOOK_S", 0)
    monkeypatch.setattr(run.os, "chown", lambda *_: None)
    monkeypatch.setattr(run.time, "sleep", lambda _: None)
    answer = server.subprocess.CompletedProcess([], 0, "NVIDIA H200, 580.159.04, 143771, 9.0\n", "")
    monkeypatch.setattr(run, "call", lambda *_: answer)
    yield found
    assert found.running == 0, "a server of the benchmark was left running"


@pytest.fixture
def begin(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    assert not engine.started
    data = tmp_path / "data"
    (data / "models/checkpoints").mkdir(parents=True)
    (data / "models/checkpoints/sd_xl_base_1.0.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    shutil.copytree(ROOT / "workflows", data / "workflows")
    releases = comfyui_releases.Releases(tmp_path / "etc")
    releases.path("one").parent.mkdir(parents=True)
    releases.path("one").write_text(json.dumps({**RELEASE, "data_dir": str(data)}))
    (releases.folder / "current").symlink_to(releases.path("one"))
    monkeypatch.setattr(comfyui_releases.Releases.__init__, "__defaults__", (releases.folder,))
    limits = yaml.safe_load((ROOT / "roles/comfyui_benchmark/vars/main.yml").read_text())
    params = {
        "guard": str(GUARD), "work_dir": str(tmp_path / "work"), "repeats": 3, "queue_length": 4, "rounds": 2,
        "compared_seeds": 2, "tune": True, "candidates": CANDIDATES, "tolerance": {"mean": 2.0, "share": 0.02},
        "memory_limit_gb": 30.0, "limits": limits["__comfyui_benchmark_limits"], "start_limit_s": 5, "image_limit_s": 5,
        "drop_caches": False, "shared_gpu": False, "gpu_required": True,
    }  # fmt: skip

    def make(keep: Callable[[dict[str, Any]], None] = lambda _: None, **changes: Any) -> Any:
        return run.Benchmark({**params, **changes}, lambda _: None, keep)

    return make


def test_everything_is_measured_and_the_fastest_of_the_same_images_wins(begin: Callable[..., Any]) -> None:
    result = begin().run()
    assert result["measured"]["txt2img"]["latency_s"]["median"] == 1.5
    assert result["measured"]["queue"]["images_per_minute"] == 40.0
    assert result["measured"]["container"]["cost_ratio"] == 1.0
    assert result["machine"]["gpu"] == "NVIDIA H200"
    rows = {row["name"]: row for row in result["tuning"]["ranking"]["rows"]}
    assert result["tuning"]["ranking"]["winner"] == "fast"
    assert rows["fast"]["ratio"] == 0.6667
    assert "images differ" in rows["other-images"]["rejected"]
    assert json.loads(json.dumps(result)) == result


def test_out_of_memory_is_recorded_and_the_run_goes_on(begin: Callable[..., Any]) -> None:
    result = begin().run()
    names = [candidate["name"] for candidate in result["tuning"]["candidates"]]
    (greedy,) = [row for row in result["tuning"]["ranking"]["rows"] if row["name"] == "greedy"]
    assert "OutOfMemoryError" in greedy["rejected"]
    assert names.index("greedy") < names.index("other-images")


def test_only_what_was_not_slower_is_tried_again(begin: Callable[..., Any], engine: Engine) -> None:
    result = begin().run()
    rounds = {candidate["name"]: len(candidate["rounds"]) for candidate in result["tuning"]["candidates"]}
    assert rounds == {"defaults": 2, "fast": 2, "slow": 1, "greedy": 0, "other-images": 2}
    assert engine.started.count(["--greedy"]) == 1


def test_without_tuning_no_candidate_is_started(begin: Callable[..., Any], engine: Engine) -> None:
    assert "tuning" not in begin(tune=False).run()
    assert engine.started == [[], [], []]


def test_nothing_stays_on_the_host(begin: Callable[..., Any], tmp_path: Path) -> None:
    begin().run()
    assert not (tmp_path / "work").exists()


def test_an_interrupted_tuning_keeps_its_figures_and_leaves_no_server(
    begin: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    original = Server.start

    def interrupted(self: Server, limit_s: float) -> float:
        taken_s = original(self, limit_s)
        if "--slow" in self.flags:
            raise server.ServerError("interrupted by signal 15")
        return taken_s

    def signal_arrives(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "start", interrupted)
    monkeypatch.setattr(Server, "compare", signal_arrives)
    with pytest.raises(KeyboardInterrupt):
        begin(keep=lambda result: kept.append(json.dumps(result))).run()
    assert not (tmp_path / "work").exists()
    assert json.loads(kept[-1])["measured"]["container"]["cost_ratio"] == 1.0


def test_a_failing_reference_ends_the_tuning_with_its_reason(
    begin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "compare", lambda *_: {"mean": 0.0, "share": 0.0, "std": 0.0})
    with pytest.raises(server.ServerError, match=r"default settings failed.*blank"):
        begin().run()


def test_without_the_checkpoint_nothing_is_started(begin: Callable[..., Any], engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "data/models/checkpoints/sd_xl_base_1.0.safetensors").unlink()
    with pytest.raises(run.RefusalError, match=r"sd_xl_base_1\.0\.safetensors is not there, expected the graphs"):
        begin().run()
    assert engine.started == []
