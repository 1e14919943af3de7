"""The module model_store_file as a test calls it, and the stand-in hub as a test sees it."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import ansible.module_utils
import pytest
from ansible.module_utils.testing import patch_module_args

from programs import load_program
from upstreams.hub import SAMPLE_COMMIT, SAMPLE_PATH, SAMPLE_REPO, sample_bytes

REPOSITORY = Path(__file__).resolve().parents[2]
HUB = REPOSITORY / "tests" / "upstreams" / "hub.py"

# On a host Ansible ships the helpers as ansible.module_utils.NAME; here they are made to be found there.
ansible.module_utils.__path__.append(str(REPOSITORY / "plugins" / "module_utils"))

model_store_file = importlib.import_module("model_store_file")

SIZE_B = 700_000
CONTENT = sample_bytes(SIZE_B)
# As good a model of the same size, and another one.
OTHER_CONTENT = CONTENT[:-4] + b"else"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GATED = "example/gated"
TOKEN = "hf_stand_in_token"  # noqa: S105  opens the stand-in only
OTHER_SHA256 = "0" * 64


class Hub(NamedTuple):
    """The stand-in as a test sees it."""

    url: str
    root: Path
    # On the host: what asks it.
    client: Path

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> str:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)  # noqa: S310  loopback
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  loopback
            text: str = answer.read().decode()
            return text

    def fault(self, kind: str, match: str = "/cdn/*", **more: Any) -> None:
        self.ask("PUT", "/control/faults", {"match": match, "kind": kind, **more})

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ask("GET", "/control/log").splitlines()]

    def content_log(self) -> list[dict[str, Any]]:
        """The requests for bytes; questions about them are HEAD."""
        return [line for line in self.log() if line["path"].startswith("/cdn/") and line["method"] == "GET"]


def start_hub(root: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, str(HUB), "--port", "0", "--root", str(root), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


REQUIREMENTS = "stand-in==1\n"
PROGRAM_PATH = REPOSITORY / "roles" / "model_store" / "files" / "hub_answer.py"
PROGRAM = PROGRAM_PATH.read_text()


def make_hub_dir(folder: Path) -> Path:
    """A folder that the module takes for the environment it made: this one, which has huggingface_hub too."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    # What the program is started with is noted: nobody may find a token there.
    notes = f"{folder}/seen"
    python.write_text(
        f"#!/bin/sh\ntr '\\0' '\\n' </proc/$$/environ >{notes}\necho \"$@\" >>{notes}\nexec {sys.executable} \"$@\"\n"
    )
    python.chmod(0o755)
    major, minor = sys.version_info[:2]
    (folder / "made").write_text(f"# Python {major}.{minor}\n{REQUIREMENTS}")
    return folder


@pytest.fixture(scope="module")
def hub_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hub_dir(tmp_path_factory.mktemp("host") / "huggingface_hub")


@pytest.fixture(scope="module")
def running_hub(tmp_path_factory: pytest.TempPathFactory, hub_dir: Path) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    for repo in (SAMPLE_REPO, GATED):
        folder = root / repo / SAMPLE_COMMIT
        folder.mkdir(parents=True)
        (folder / SAMPLE_PATH).write_bytes(CONTENT)
    process, url = start_hub(root, "--token", TOKEN, "--gated", GATED)
    yield Hub(url, root, hub_dir)
    process.terminate()
    process.wait(10)


@pytest.fixture
def hub(running_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    running_hub.ask("DELETE", "/control/faults")
    running_hub.ask("DELETE", "/control/log")
    return running_hub


@pytest.fixture
def asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is asked without a process of its own: loading the client takes longer than a transfer of these tests."""
    program = load_program(PROGRAM_PATH)
    # It speaks plain HTTP, and to read this machine's certificates takes 0.1 s each time.
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: None)

    def run(command: list[str], *, input: str, **_: object) -> subprocess.CompletedProcess[str]:  # noqa: A002
        return subprocess.CompletedProcess(command, 0, json.dumps(program.answer(json.loads(input))), "")

    model_hub = sys.modules["ansible.module_utils.model_hub"]
    monkeypatch.setattr(model_hub, "subprocess", SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired))


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / SAMPLE_PATH


@pytest.fixture(autouse=True)
def folder(dest: Path) -> None:
    dest.parent.mkdir()


def arguments(hub: Hub, dest: Path, **more: Any) -> dict[str, Any]:
    return {
        "repo": SAMPLE_REPO,
        "commit": SAMPLE_COMMIT,
        "path": SAMPLE_PATH,
        "size_b": SIZE_B,
        "sha256": SHA256,
        "dest": str(dest),
        "endpoint": hub.url,
        "hub_dir": str(hub.client),
        "hub_requirements": REQUIREMENTS,
        "hub_program": PROGRAM,
        "retry_delay_s": 0.01,
        "stall_timeout_s": 5,
        **more,
    }


def run(hub: Hub, dest: Path, **more: Any) -> dict[str, Any]:
    """The module's answer, as Ansible would read it."""
    output = io.StringIO()
    with patch_module_args(arguments(hub, dest, **more)), redirect_stdout(output), pytest.raises(SystemExit):
        model_store_file.main()
    answer: dict[str, Any] = json.loads(output.getvalue().splitlines()[-1])
    return answer


def succeed(hub: Hub, dest: Path, **more: Any) -> dict[str, Any]:
    answer = run(hub, dest, **more)
    assert not answer.get("failed"), answer["msg"]
    return answer


def fail(hub: Hub, dest: Path, **more: Any) -> str:
    answer = run(hub, dest, **more)
    assert answer.get("failed"), answer
    message: str = answer["msg"]
    return message


def names(dest: Path) -> list[str]:
    return sorted(path.name.removeprefix(SAMPLE_PATH) for path in dest.parent.iterdir())


def snapshot(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    statuses = {path: path.lstat() for path in [folder, *sorted(folder.rglob("*"))]}
    return {
        str(path): (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
        for path, status in statuses.items()
    }
