"""Two runs of site.yml on one host: the second is refused, and one that was killed stands in nobody's way."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

from live_host import LiveHost

HOST = os.environ.get("MOLECULE_SCENARIO_NAME", "upgrade")
CLAIM = "/run/dgx-comfyui/claim.json"
GUARDS_LOCK = "/run/comfyui/lock"


def test_the_second_of_two_runs_is_refused_and_takes_over_when_the_first_is_dead() -> None:
    live = LiveHost(HOST)
    with ThreadPoolExecutor() as pool:
        # While somebody else has the guard's lock, a run waits in the middle of its work.
        lock = live.begin(f"mkdir --parents /run/comfyui; exec flock {GUARDS_LOCK} sh -c 'echo locked; cat'")
        try:
            assert lock.stdout is not None
            assert lock.stdout.readline() == "locked\n"
            first = pool.submit(live.playbook, "site.yml", "--tags", "comfyui_service")
            live.shell(
                f"for i in $(seq 600); do grep --silent '\"ended_s\": null' {CLAIM} && exit; sleep 0.1; done; exit 1"
            )
            second = live.playbook("site.yml", "--tags", "comfyui_service")
            words = " ".join(second.stdout.split())
            assert second.returncode == 2, words
            assert "Another run changes this host: that of" in words
            assert "Wait for its end and run this again." in words
            assert "changed=0" in words
            assert not first.done()
            os.kill(int(json.loads(live.shell(f"cat {CLAIM}"))["run"].split("/")[2]), signal.SIGKILL)
            third = pool.submit(live.playbook, "site.yml", "--tags", "comfyui_service")
        finally:
            lock.communicate()
        # What the first began on the host has ended by now, and with it the processes that waited for that.
        assert first.result().returncode == -signal.SIGKILL
        done = third.result()
    assert done.returncode == 0, done.stdout
    assert "Took this host over from the run of" in " ".join((done.stdout + done.stderr).split())
    assert json.loads(live.shell(f"cat {CLAIM}"))["ended_s"]
    assert live.answers()
