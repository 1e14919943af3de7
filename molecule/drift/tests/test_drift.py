"""Damage is named as it is, repaired and nothing beside it, in rounds that cover every resource that the roles keep."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from drift_matrix import (
    Round,
    all_damages,
    differences,
    every_round,
    quick_rounds,
    read,
)
from live_host import LiveHost
from playbook_runs import ROOT

HOST = os.environ.get("MOLECULE_SCENARIO_NAME", "drift")
STATE = (ROOT / ".config/molecule/file_state.sh").read_text() + (ROOT / "molecule/drift/state.sh").read_text()
# What is written by whatever runs: ComfyUI itself, dpkg and apt, the model's record, an image's record.
OWN = re.compile(
    r"/srv/comfyui/(cache|output)/|/srv/comfyui/user/(?!default/workflows)|/var/lib/dpkg/status"
    r"|\.verified\.json|/etc/(passwd|group|g?shadow)|^\w+  /etc/docker/daemon\.json$"
    r"|/var/lib/comfyui/image/source/\.git/"
)
LEVELS = ":".join(str(ROOT / "tests" / "testinfra" / name) for name in ("test_api.py", "test_render.py"))


def rounds_of(live: LiveHost) -> list[Round]:
    """The rounds of this run, for what the first run of this host named: three that touch all of it, or every one."""
    made = [row["resource"] for row in json.loads(live.shell("cat /var/local/first-drift.json"))]
    probed = json.loads((ROOT / "artifacts" / HOST / "probed.json").read_text())
    # A first run names no hold beside its package, and the roles' probes read all packages' alike.
    held = [f"hold of {name}" for name in live.shell("apt-mark showhold").splitlines()]
    resources = sorted({*made, *probed, *held})
    planted = all_damages(resources, read()[0])
    rounds = every_round(planted) if os.environ.get("DRIFT_ROUNDS") == "all" else quick_rounds(planted)
    wanted = os.environ.get("DRIFT_ROUND")
    return [one for one in rounds if not wanted or re.fullmatch(wanted, one.title)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "planned" in metafunc.fixturenames:
        rounds = rounds_of(LiveHost(HOST))
        metafunc.parametrize("planned", rounds, ids=[one.title for one in rounds])


@pytest.fixture(scope="module")
def live() -> LiveHost:
    """The host, with what belongs to others beside everything that is ours."""
    live = LiveHost(HOST)
    for foreign in read()[1]:
        live.shell(foreign.making)
    live.shell("systemctl daemon-reload")
    return live


def state(live: LiveHost) -> set[str]:
    return set(live.shell(STATE).splitlines())


def site(live: LiveHost, *words: str) -> subprocess.CompletedProcess[str]:
    """Run site.yml. Where daemon.json was written by others, Docker's restart is the operator's decision: allowed."""
    return live.playbook("site.yml", *words, docker_engine_restart_may_stop_containers=True)


def table(live: LiveHost) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads((ROOT / "artifacts" / live.name / "drift.json").read_text())
    return rows


def moved(before: set[str], after: set[str], allowed: Round | None = None) -> list[str]:
    """Lines of the state that differ, but for what writes itself and what the repair of this round may leave."""
    left = [pattern for one in (allowed.planted if allowed else ()) for pattern in one.damage.leaves]
    left += [re.escape(foreign.path) for foreign in read()[1] if allowed and foreign.gone_with(allowed)]
    patterns = [OWN, *map(re.compile, left)]
    return sorted(line for line in before ^ after if not any(pattern.search(line) for pattern in patterns))


def test_what_others_put_beside_ours_is_no_drift(live: LiveHost) -> None:
    before = state(live)
    done = site(live)
    assert done.returncode == 0, done.stdout
    assert table(live) == []
    assert moved(before, state(live)) == []


@pytest.fixture
def before(live: LiveHost, request: pytest.FixtureRequest) -> Iterator[set[str]]:
    """The state before a round. One that failed leaves damage, which the next one would be blamed for."""
    failed = request.session.testsfailed
    yield state(live)
    if request.session.testsfailed > failed:
        site(live)


def test_exactly_what_was_damaged_is_named_and_repaired(
    live: LiveHost, planned: Round, before: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print("\n".join(one.title for one in planned.planted))
    for one in planned.planted:
        live.shell(one.script)
    damaged = state(live)
    assert moved(before, damaged), "the scripts damaged nothing"

    dry = site(live, "--check")
    assert dry.returncode == 0, dry.stdout
    wrong = differences(planned, table(live), "to be repaired")
    wrong += [f"a dry run changed {line}" for line in moved(damaged, state(live))]

    repair = site(live)
    assert repair.returncode == 0, repair.stdout
    wrong += differences(planned, table(live), "repaired")
    repaired = state(live)
    wrong += [f"not as it was: {line}" for line in moved(before, repaired, planned)]

    clean = site(live)
    assert clean.returncode == 0, clean.stdout
    wrong += [f"repaired a second time: {row}" for row in table(live)]
    wrong += [] if re.search(r"changed=0 ", clean.stdout) else [clean.stdout]
    wrong += [f"the second repair changed {line}" for line in moved(repaired, state(live))]

    for foreign in read()[1]:
        if foreign.gone_with(planned):
            live.shell(foreign.making)
        elif live.run(foreign.looking).returncode != 0:
            wrong.append(f"{foreign.name} is not as it was planted")
    monkeypatch.setenv("VERIFY_TESTS", LEVELS)
    live.shell(r"find / -xdev \( -name '*.aside*' -o -name '*.rejected-*' \) -prune -exec rm --recursive {} +")
    verdict = live.playbook("playbooks/verify.yml")
    assert verdict.returncode == 0, verdict.stdout
    assert wrong == [], "\n".join(wrong)
