"""Releases as files: what is current, proved, bad, to go back to, and what an interruption leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from comfyui_releases import ReleaseError, Releases


@pytest.fixture(name="releases")
def three_releases(tmp_path: Path) -> Releases:
    (tmp_path / "releases").mkdir()
    for name in ("aaa", "bbb", "ccc"):
        (tmp_path / "releases" / f"{name}.json").write_text(json.dumps({"image": f"image:{name}"}))
    return Releases(tmp_path)


def test_a_virgin_host_has_none(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    assert releases.current == ""
    assert releases.before("aaa") == ""
    with pytest.raises(ReleaseError, match=r"no release to run .* expected one of: none\. .*ansible-playbook site.yml"):
        releases.load("")


def test_a_release_carries_its_id(releases: Releases) -> None:
    assert releases.load("aaa") == {"id": "aaa", "image": "image:aaa"}


def test_an_unknown_release_names_those_that_are_there(releases: Releases) -> None:
    with pytest.raises(ReleaseError, match="no release ddd on this host, expected one of: aaa, bbb, ccc"):
        releases.load("ddd")


def test_a_torn_release_is_one_sentence(releases: Releases) -> None:
    releases.path("aaa").write_text("{")
    with pytest.raises(ReleaseError, match="not valid JSON"):
        releases.load("aaa")


def test_the_numbers_of_the_releases_are_known_but_of_a_torn_one(releases: Releases) -> None:
    for name, text in (("aaa", '{"user_id": 990}'), ("bbb", '{"user_id": 995}'), ("ccc", "{")):
        releases.path(name).write_text(text)
    assert releases.user_ids() == {990, 995}


def test_the_last_that_proved_itself_is_the_one_to_go_back_to(releases: Releases) -> None:
    for name in ("aaa", "bbb", "aaa"):
        releases.point_at(name)
        releases.mark_proved(name)
    assert releases.current == "aaa"
    assert releases.state()["proved"] == ["bbb", "aaa"]
    assert releases.before("ccc") == "aaa"
    assert releases.before("aaa") == "bbb"


def test_nobody_goes_back_to_a_bad_one_or_to_one_that_is_gone(releases: Releases) -> None:
    for name in ("aaa", "bbb", "ccc"):
        releases.mark_proved(name)
    releases.mark_bad("ccc", "it broke")
    releases.path("bbb").unlink()
    assert releases.before("") == "aaa"
    assert releases.state()["bad"]["ccc"]["why"] == "it broke"


def test_proof_takes_the_mark_away(releases: Releases) -> None:
    releases.mark_bad("aaa", "it broke")
    releases.mark_proved("aaa")
    assert releases.state() == {"proved": ["aaa"], "bad": {}}


@pytest.mark.parametrize(("kept", "left"), [(0, ["ccc"]), (1, ["bbb", "ccc"]), (5, ["aaa", "bbb", "ccc"])])
def test_the_newest_are_kept(releases: Releases, kept: int, left: list[str]) -> None:
    for name in ("aaa", "bbb", "ccc"):
        releases.mark_proved(name)
    releases.point_at("ccc")
    releases.forget(kept)
    assert sorted(path.stem for path in (releases.folder / "releases").iterdir()) == left


def test_what_never_proved_itself_is_forgotten_unless_its_run_may_still_wait(releases: Releases) -> None:
    releases.mark_proved("aaa")
    releases.point_at("aaa")
    os.utime(releases.path("bbb"), (0, 0))
    assert releases.forget(5) == ["bbb"]
    releases.mark_bad("ccc", "it broke")
    assert releases.forget(5) == ["ccc"]


def test_the_state_does_not_grow(releases: Releases) -> None:
    for number in range(50):
        releases.mark_proved(f"good-{number}")
        releases.mark_bad(f"bad-{number}", "x" * 10_000)
    state = releases.state()
    assert (len(state["proved"]), len(state["bad"])) == (20, 20)
    assert state["proved"][-1] == "good-49"
    assert len(state["bad"]["bad-49"]["why"]) == 500


def test_an_interrupted_write_leaves_the_old_state(releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    releases.point_at("aaa")
    releases.mark_proved("aaa")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", die)
    for change in (releases.point_at, releases.mark_proved):
        with pytest.raises(KeyboardInterrupt):
            change("bbb")
    assert releases.current == "aaa"
    assert releases.state()["proved"] == ["aaa"]
