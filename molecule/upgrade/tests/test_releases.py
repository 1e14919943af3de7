"""Releases change, fail, are interrupted and taken back; what people made survives, and the API is away for seconds."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from live_host import GATE_S, GUARD, LiveHost
from playbook_runs import ROOT

HOST = os.environ.get("MOLECULE_SCENARIO_NAME", "upgrade")
# Programs in place of ComfyUI's, in an image of its own each.
BROKEN = {
    "exits": "raise SystemExit('no such wheel')",
    "hangs": "import time; print('waiting for ever', flush=True); time.sleep(10**6)",
    "answers-500": (
        "import http.server\n"
        "class Broken(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_error(500, 'broken inside')\n"
        "http.server.ThreadingHTTPServer(('0.0.0.0', 8188), Broken).serve_forever()"
    ),
    "knows-nothing": (
        "import http.server\n"
        "class Broken(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b'{\"system\": {}}')\n"
        "http.server.ThreadingHTTPServer(('0.0.0.0', 8188), Broken).serve_forever()"
    ),
}
SURVIVORS = (
    "find /srv/comfyui/user /srv/comfyui/workflows /srv/comfyui/input -type f -not -name '*.db*' -not -name '*.log*'"
)


@pytest.fixture(scope="module")
def live() -> LiveHost:
    """The host, with a gate that is short enough to wait for, something that people made, and broken images."""
    live = LiveHost(HOST)
    live.shorten_gate()
    live.shell(
        "cd /srv/comfyui/user; mkdir --parents default/workflows; echo '{}' > default/workflows/mine.json;"
        "echo '{\"Comfy.Mine\": 1}' > default/comfy.settings.json; chown --recursive 990:990 default"
    )
    for name, program in BROKEN.items():
        live.shell("mkdir --parents /root/broken")
        live.write("/root/broken/main.py", program)
        live.write("/root/broken/Dockerfile", f"FROM {current(live)['image']}\nCOPY main.py /opt/comfyui/app/main.py\n")
        live.shell(f"docker build --quiet --tag dgx-comfyui-broken:{name} /root/broken")
    return live


def current(live: LiveHost) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(live.shell("cat /etc/comfyui/current"))
    return found


def add_release(live: LiveHost, identity: str, **changes: Any) -> str:
    """Write a release that differs from the current one."""
    live.write(f"/etc/comfyui/releases/{identity}.json", json.dumps({**current(live), **changes}))
    return identity


def activate(live: LiveHost, identity: str, *words: str) -> tuple[int, dict[str, Any], str]:
    done = live.run(f"{GUARD} activate {identity} {' '.join(words)}")
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_good_release_takes_over_and_nothing_that_people_made_is_lost(live: LiveHost, evidence: Path) -> None:
    before = live.state()["current"]
    kept = live.shell(f"{SURVIVORS} -print0 | sort -z | xargs -0 sha256sum")
    for number in range(20):
        graph = json.loads((ROOT / "workflows/render_check.json").read_text())
        graph["1"]["inputs"].update(color=number, width=1024, height=1024)
        graph["2"]["inputs"]["filename_prefix"] = "drained"
        live.write("/root/prompt.json", json.dumps({"prompt": graph}))
        live.shell("curl --silent --fail --data @/root/prompt.json http://127.0.0.1:8188/prompt")
    with live.watched() as watch:
        done = live.playbook(
            "site.yml",
            "--tags",
            "comfyui_service",
            comfyui_service_start_timeout_s=GATE_S,
            comfyui_extra_flags=["--preview-size", "256"],
        )
    assert done.returncode == 0, done.stdout
    assert "0 jobs were lost" in " ".join(done.stdout.split())
    ended = done.stdout.partition(f"OUTCOME [{HOST}]")[2]
    assert f"release {live.state()['current']}, image {current(live)['image']}" in ended
    assert live.shell("ls /srv/comfyui/output/drained_*.png | wc --lines") == "20"
    assert live.state()["proved"][-2:] == [before, live.state()["current"]]
    assert live.shell(f"{SURVIVORS} -print0 | sort -z | xargs -0 sha256sum") == kept
    assert "user/default/comfy.settings.json" in live.shell(
        f"tar --list --file /var/backups/comfyui/user-*-{before}.tar.gz"
    )
    (evidence / "upgrade.json").write_text(json.dumps(watch))
    assert watch["away_s"] < GATE_S


def test_going_back_by_the_playbook(live: LiveHost) -> None:
    left = live.state()["current"]
    target = live.state()["proved"][-2]
    kept = live.shell(f"{SURVIVORS} -print0 | sort -z | xargs -0 sha256sum")
    done = live.playbook("playbooks/rollback.yml", "--check")
    assert done.returncode == 0, done.stdout
    assert f"Would go back from {left}" in " ".join(done.stdout.split())
    assert live.state()["current"] == left
    done = live.playbook("playbooks/rollback.yml", comfyui_service_rollback_to=target)
    assert done.returncode == 0, done.stdout
    assert live.state()["current"] == target
    assert live.state()["bad"][left]["why"] == "an operator went back from it"
    assert live.shell(f"{SURVIVORS} -print0 | sort -z | xargs -0 sha256sum") == kept


def test_going_back_on_the_host_itself(live: LiveHost) -> None:
    before = live.state()["current"]
    (other,) = live.state()["bad"]
    live.shell(f"{GUARD} rollback {other}")
    assert live.state()["current"] == other
    assert before in live.state()["bad"]
    assert other not in live.state()["bad"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("exits", "its container ends, with status 1"),
        ("hangs", f"after {GATE_S} s"),
        ("answers-500", "answered 500: .*broken inside"),
        ("knows-nothing", "it knows no node EmptyImage, SaveImage"),
        ("no-gpu", "a matrix product on the GPU failed|its container ends"),
    ],
)
def test_a_broken_release_is_taken_back(live: LiveHost, name: str, why: str) -> None:
    before = live.state()["current"]
    changes = (
        {"flags": [flag for flag in current(live)["flags"] if flag != "--cpu"]}
        if name == "no-gpu"
        else {"image": f"dgx-comfyui-broken:{name}"}
    )
    identity = add_release(live, f"broken-{name}", **changes)
    with live.watched() as watch:
        status, result, _ = activate(live, identity)
    assert status == 1
    assert re.search(why, result["error"], re.DOTALL), result
    assert f"The release before ({before}) was started again and renders" in result["error"]
    state = live.state()
    assert state["current"] == before
    assert identity in state["bad"]
    assert live.inspect()["Config"]["Labels"]["dgx-comfyui.release"] == before
    assert live.answers()
    # The gate, and two starts of ComfyUI.
    assert watch["away_s"] < GATE_S + 30


def test_a_broken_release_fails_the_run_with_its_words_and_is_refused_the_next_time(live: LiveHost) -> None:
    before = live.state()["current"]
    typed = {"comfyui_service_start_timeout_s": GATE_S, "comfyui_service_image": "dgx-comfyui-broken:exits"}
    done = live.playbook("site.yml", "--tags", "comfyui_service", **typed)
    words = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "ComfyUI did not prove itself: its container ends, with status 1" in words
    assert "no such wheel" in words
    assert live.state()["current"] == before
    container = live.inspect()["Id"]
    done = live.playbook("site.yml", "--tags", "comfyui_service", **typed)
    words = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "is marked bad: its container ends" in words
    assert "comfyui_service_retry_bad_release=true" in words
    assert live.inspect()["Id"] == container


@pytest.mark.parametrize("after_s", [0.3, 0.8, 1.5, 3.0, 5.0])
def test_an_interrupted_change_can_be_run_again(live: LiveHost, after_s: float) -> None:
    identity = add_release(live, f"interrupted-{after_s}", pids_limit=4000 + round(after_s * 10))
    change = live.begin(f"exec {GUARD} activate {identity}")
    time.sleep(after_s)
    live.run(f"pkill --signal KILL --full 'comfyui_guard.py activate {identity}'")
    change.communicate()
    if after_s == 3.0:  # nobody runs it again: the guard sees to it that something works
        live.run(f"systemctl start comfyui.service; {GUARD} check")
        live.wait()
    status, result, _ = activate(live, identity)
    assert status == 0, result
    assert live.state()["current"] == live.state()["proved"][-1] == identity
    assert live.inspect()["Config"]["Labels"]["dgx-comfyui.release"] == identity
    assert live.answers()


def test_of_two_changes_at_once_one_waits(live: LiveHost) -> None:
    one = add_release(live, "first", pids_limit=4097)
    two = add_release(live, "second", pids_limit=4098)
    first = live.begin(f"exec {GUARD} activate {one}")
    live.shell("timeout 60 sh -c 'until ! flock --nonblock /run/comfyui/lock true; do sleep 0.1; done'")
    status, result, said = activate(live, two)
    first.communicate()
    assert first.returncode == 0
    assert status == 0, result
    assert "waiting for another run that changes ComfyUI on this host" in said
    assert result["before"] == one
    assert live.state()["current"] == two
    assert live.answers()


def test_older_releases_and_backups_do_not_pile_up(live: LiveHost) -> None:
    proved = live.state()["proved"]
    assert set(live.shell("ls /etc/comfyui/releases").split()) == {f"{one}.json" for one in proved[-3:]}
    assert len(live.shell("ls /var/backups/comfyui").split()) == 3
