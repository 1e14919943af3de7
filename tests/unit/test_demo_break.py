"""make demo-break: the list, and what is refused in one sentence. Its damages are those of the drift matrix."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

import demo_break
from drift_matrix import Damage, Kind

FILE = Kind("file", "(/etc/.+)", (Damage("deleted", 'rm -- "$1"', "a file is gone"),), demo="/etc/a")
KINDS = (FILE, Kind("unit", "unit .+", (Damage("stopped", "true", "stopped"),)))


class Demo:
    """A host that does what it is told, or fails."""

    def __init__(self, resource: str = "/etc/a", status: int = 0) -> None:
        self.resource, self.status = resource, status
        self.scripts: list[str] = []

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        if script.startswith("echo "):
            return subprocess.CompletedProcess([], 0, f"{self.resource}\n", "")
        self.scripts.append(script)
        return subprocess.CompletedProcess([], self.status, "", "rm: no such file")


def test_without_a_name_the_list_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo_break.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("make demo-break NAME=...")
    assert "  container-deleted           ComfyUI's container is removed: container comfyui" in lines


def test_an_unknown_name_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo_break.main(["contaner-deleted"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("There is no damage contaner-deleted, expected one of these. make demo-break NAME=...")
    assert "container-deleted" in said.split("\n", 1)[1]


def test_without_a_demo_one_sentence_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_break, "DEMO", "no-such-demo")
    assert demo_break.main(["container-deleted"]) == 1
    assert capsys.readouterr().err == "No demo runs here, expected one to damage. Type: make demo\n"


def test_a_kind_without_a_resource_of_the_demo_is_none_of_the_list() -> None:
    assert list(demo_break.choices(KINDS)) == ["file-deleted"]


@pytest.mark.parametrize(
    ("demo", "status", "words"),
    [
        (Demo(), 0, "Done: a file is gone: /etc/a. Type make demo: the table after its site.yml names it as repaired."),
        (Demo(resource=""), 1, "The demo has no file now, expected one to damage. Type make demo, then this again."),
        (Demo(status=1), 1, "It could not be done to /etc/a: rm: no such file. Type make demo, then this again."),
    ],
)
def test_what_is_said_of_a_damage(demo: Any, status: int, words: str) -> None:
    assert demo_break.damage_demo(demo, "file-deleted", KINDS) == (words, status)
    assert demo.scripts == ([] if "no file" in words else ['set -e\nset -- /etc/a\nrm -- "$1"'])
