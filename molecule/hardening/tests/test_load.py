"""Many prompts and many clients on the loopback: nothing fails, nothing is lost, nothing stays in memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from live_host import LiveHost

HOST = os.environ.get("MOLECULE_SCENARIO_NAME", "hardening")
PROMPTS, CLIENTS, SECONDS = 200, 50, 60


@pytest.fixture(scope="module")
def outcome(evidence: Path) -> dict[str, object]:
    live = LiveHost(HOST)
    live.write("/root/load.py", Path(__file__).with_name("load.py").read_text())
    pid = live.shell("pgrep --parent $(docker container inspect --format '{{.State.Pid}}' comfyui)")
    text = live.shell(f"python3 /root/load.py {pid} {PROMPTS} {CLIENTS} {SECONDS}", timeout_s=300)
    (evidence / "load.json").write_text(text)
    found: dict[str, object] = json.loads(text)
    return found


def test_no_request_fails(outcome: dict[str, object]) -> None:
    assert outcome["failed"] == []
    assert isinstance(outcome["requests"], int)
    assert outcome["requests"] > CLIENTS * 10


def test_every_prompt_has_its_image(outcome: dict[str, object]) -> None:
    assert outcome["prompts"] == PROMPTS
    assert outcome["wrong"] == []


def test_the_memory_comes_back(outcome: dict[str, object]) -> None:
    assert isinstance(outcome["growth"], float)
    assert outcome["growth"] <= 1.1
