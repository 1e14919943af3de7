"""reprovision.yml on a host: a dry run tells drift by its status, a run repairs and judges, and apt is waited for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from demo_break import damage_demo
from drift_matrix import read
from live_host import LiveHost
from playbook_runs import ROOT, last_words

HOST = os.environ.get("MOLECULE_SCENARIO_NAME", "drift")
PLAYBOOK = "playbooks/reprovision.yml"
LEVELS = ":".join(str(ROOT / "tests/testinfra" / name) for name in ("test_api.py", "test_render.py"))
HELD = "libnvidia-container1"
MISSING = "/usr/local/lib/comfyui/render_check.json"
STATE = (ROOT / ".config/molecule/file_state.sh").read_text()
HOLDER = """
import fcntl, time
streams = [open(f"/var/lib/dpkg/{name}", "w") for name in ("lock-frontend", "lock")]
for stream in streams:
    fcntl.lockf(stream, fcntl.LOCK_EX)
open("/run/lock-is-held", "w").close()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def live() -> LiveHost:
    return LiveHost(HOST)


def table() -> dict[str, str]:
    """What became of each resource that the last run named."""
    rows: list[dict[str, Any]] = json.loads((ROOT / "artifacts" / HOST / "drift.json").read_text())
    return {row["resource"]: row["outcome"] for row in rows}


@contextmanager
def apt_in_use(live: LiveHost) -> Iterator[None]:
    """Somebody holds the locks of dpkg."""
    live.write("/run/hold-lock.py", HOLDER)
    live.shell("systemd-run --quiet --unit hold-lock python3 /run/hold-lock.py")
    live.shell("until [ -e /run/lock-is-held ]; do sleep 0.1; done")
    try:
        yield
    finally:
        live.shell("systemctl stop hold-lock; rm --force /run/hold-lock.py /run/lock-is-held")


def test_a_dry_run_tells_drift_and_a_run_repairs_and_judges(live: LiveHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERIFY_TESTS", LEVELS)
    said, status = damage_demo(live, "hold-deleted", read()[0])  # as make demo-break does
    assert status == 0, said
    live.shell(f"rm {MISSING}")
    dry = live.playbook(PLAYBOOK, "--check")
    assert dry.returncode == 3, dry.stdout
    assert table() == dict.fromkeys([f"hold of {HELD}", MISSING], "to be repaired")
    assert HELD not in live.shell("apt-mark showhold").split()
    assert "verify |" not in dry.stdout

    with apt_in_use(live):
        done = live.playbook(PLAYBOOK, nvidia_container_toolkit_apt_wait_s=2)
    assert done.returncode == 2, done.stdout
    words = last_words(done.stdout)
    assert re.search(r"apt is in use: python3 \(process \d+\) has held /var/lib/dpkg/lock\S* for 2 s", words), words
    assert re.search(r"Nothing was changed. See what it does: ps -fp \d+; let it end, then run this again", words)
    assert re.search(r"changed=0 ", done.stdout), done.stdout

    done = live.playbook(PLAYBOOK)
    assert done.returncode == 0, done.stdout
    assert table() == dict.fromkeys([f"hold of {HELD}", MISSING], "repaired")
    assert re.search(r"verify \| Say the verdict\].*\n.*ok: \[", done.stdout), done.stdout
    assert live.playbook(PLAYBOOK, "--check").returncode == 0
    assert table() == {}


def test_the_look_before_a_reboot_stops_at_a_lost_hold_and_changes_nothing(live: LiveHost) -> None:
    live.shell(f"apt-mark unhold {HELD}")
    before = live.shell(STATE)
    done = live.playbook(PLAYBOOK, "--tags", "before_reboot")
    assert live.shell(STATE) == before
    assert done.returncode == 2, done.stdout
    assert f"not held: {HELD}" in " ".join(last_words(done.stdout).split())
    live.shell(f"apt-mark hold {HELD}")
    done = live.playbook(PLAYBOOK, "--tags", "before_reboot")
    assert done.returncode == 0, done.stdout


def test_a_host_that_does_not_answer_is_named_and_a_dry_run_says_so_too(live: LiveHost) -> None:
    done = live.playbook(PLAYBOOK, "--check", reprovision_wait_s=1, ansible_host="no-such-container")
    assert done.returncode == 4, done.stdout
    assert f"{HOST} did not answer for 1 s, expected that it does" in " ".join(done.stdout.split())
    assert not (ROOT / "artifacts" / HOST / "drift.json").exists()
