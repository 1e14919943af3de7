"""What a cut-off host is refused for before any change, and what is left to those who fetch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sources_reached as reached
from sources_reached import Place

BASE = f"nvcr.io/nvidia/pytorch:26.09-py3@sha256:{'a' * 64}"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


@pytest.fixture(name="engine")
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the engine says to `docker image` and `docker info`; git is the real one."""
    answers: dict[str, str] = {}
    real = reached.said
    monkeypatch.setattr(reached, "said", lambda *argv: answers.get(argv[1], "") if argv[0] == "docker" else real(*argv))
    return answers


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://github.com/Comfy-Org/ComfyUI.git", ("github.com", 443)),
        ("http://mirror.example.com:8080/x", ("mirror.example.com", 8080)),
        ("docker://localhost/nvidia/pytorch:1@sha256:0", ("localhost", 443)),
        (f"docker://{BASE}", ("nvcr.io", 443)),
        ("docker://127.0.0.1:5000/nvidia/pytorch:1@sha256:0", ("127.0.0.1", 5000)),
        ("https://[::1]:8443/simple", ("::1", 8443)),
        ("file:///srv/air-gapped/comfyui.git", ("/srv/air-gapped/comfyui.git", 0)),
        ("/srv/wheels", ("/srv/wheels", 0)),
    ],
)
def test_a_place_is_read_from_an_address(address: str, expected: tuple[str, int]) -> None:
    assert reached.place("v", address) == Place("v", *expected)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "git@github.com:Comfy-Org/ComfyUI.git",
        "ssh://git@an-alias/x.git",
        "ftp://example.com/x",
        "https://example.com:port/x",
        "http://[::1/x",
        f"docker://pytorch/pytorch:2.9@sha256:{'a' * 64}",
        f"docker://debian:13@sha256:{'a' * 64}",
    ],
)
def test_what_tells_no_place_is_not_judged(address: str) -> None:
    assert reached.place("v", address) is None


def test_who_listens_and_who_refuses_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reached.silence(Place("v", "127.0.0.1", port), 5) == ""
    assert reached.silence(Place("v", "127.0.0.1", port), 5) == ""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(-3, "Temporary failure in name resolution"), "Temporary failure in name resolution"),
        (OSError(101, "Network is unreachable"), "Network is unreachable"),
        (TimeoutError("timed out"), "no answer within 2 s"),
        (UnicodeError("label empty or too long"), "that cannot be a host's name"),
    ],
)
def test_a_host_that_is_cut_off_says_how(monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert reached.silence(Place("v", "github.com", 443), 2) == reason


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    assert reached.silence(Place("v", str(tmp_path), 0), 5) == ""
    assert reached.silence(Place("v", str(tmp_path / "no"), 0), 5) == "there is no such folder on this host"


def test_an_image_that_the_engine_has_is_not_asked_for(engine: dict[str, str]) -> None:
    asked = {"comfyui_base_image": [f"docker://{BASE}"]}
    assert [str(where) for where in reached.places(asked, "")] == ["nvcr.io:443"]
    engine["image"] = "sha256:11"
    assert reached.places(asked, "") == []


def test_a_proxy_of_the_engine_is_the_engines_affair(engine: dict[str, str]) -> None:
    engine["info"] = "http://proxy:3128"
    sources = {"comfyui_base_image": [f"docker://{BASE}"], "comfyui_source_repo": ["https://github.com/x"]}
    assert [where.name for where in reached.places(sources, "")] == ["github.com"]


def test_a_proxy_of_the_site_must_be_reached_itself(engine: dict[str, str]) -> None:
    sources = {
        "comfyui_base_image": [f"docker://{BASE}"],
        "comfyui_source_repo": ["https://github.com/x"],
        "comfyui_package_index": ["/srv/wheels"],
    }
    found = reached.places(sources, "http://proxy.example.com:3128")
    assert [str(where) for where in found] == ["nvcr.io:443", "proxy.example.com:3128", "/srv/wheels"]
    assert found[1].variable == "comfyui_proxy"
    found = reached.places(sources, "socks5://proxy.example.com")
    assert [str(where) for where in found] == ["nvcr.io:443", "/srv/wheels"]  # what it reaches is its own affair
    assert engine == {}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("setting", ["http.proxy", "http.https://github.com.proxy", "url.https://mirror/.insteadOf"])
def test_where_git_goes_its_own_way_nothing_is_judged(setting: str) -> None:
    asked = {"comfyui_source_repo": ["https://github.com/x"]}
    assert len(reached.places(asked, "")) == 1
    subprocess.run(["git", "config", "--global", setting, "http://proxy:1"], check=True)
    assert reached.places(asked, "") == []


@pytest.mark.usefixtures("engine")
def test_where_the_environment_names_a_proxy_nothing_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    assert reached.places({"comfyui_model_endpoint": ["https://huggingface.co"]}, "") == []


def run(**parameters: Any) -> dict[str, Any]:
    """The module's answer."""
    document = json.dumps({"ANSIBLE_MODULE_ARGS": parameters})
    done = subprocess.run(
        [sys.executable, reached.__file__], input=document, capture_output=True, text=True, check=False
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_refusal_names_variable_reason_and_what_to_type(tmp_path: Path) -> None:
    wheels = str(tmp_path / "wheels")
    answer = run(sources={"comfyui_package_index": [wheels]})
    assert answer["failed"]
    assert f"does not reach {wheels} (comfyui_package_index: there is no such folder on this host)" in answer["msg"]
    assert "set comfyui_package_index to a mirror or to a folder of this host: docs/air-gapped.md" in answer["msg"]


def test_nothing_is_asked_where_everything_is_there(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    asked = {"comfyui_package_index": [str(tmp_path / "wheels")]}
    assert run(sources=asked, unless_files=[str(tmp_path / "here")])["asked"] == []
    assert run(sources=asked, unless_files=[str(tmp_path / "here"), str(tmp_path / "not")])["failed"]


def test_an_image_that_is_there_needs_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\n[ "$1 $2 $5" = "image inspect dgx-comfyui:1-0" ] && echo sha256:11\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asked = {"comfyui_package_index": ["/nonexistent"]}
    assert run(sources=asked, unless_image="dgx-comfyui:1-0")["asked"] == []
    assert run(sources=asked, unless_image="dgx-comfyui:1-1")["failed"]
