"""The provisioned snapshot: which one belongs to this tree, and what an interrupted one leaves."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest

from sandbox import containers, snapshot
from sandbox.stages import RefusalError

VARIABLES = {"ansible_host": "dgx-comfyui-default", "comfyui_base_image": "base@sha256:0", "comfyui_version": "1"}


@pytest.fixture(name="engine")
def make_engine(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """An engine that holds one provisioned host and no snapshot."""
    engine = MagicMock()
    engine.attach_mock(MagicMock(name="host"), "host")
    engine.host.attrs = {
        "Config": {"Image": "host:1"},
        "Mounts": [{"Destination": snapshot.ENGINE_DATA, "Name": "data"}],
    }
    engine.containers.get.return_value = engine.host
    engine.volumes.list.return_value = engine.images.list.return_value = []
    monkeypatch.setattr(containers, "wait_for_boot", lambda _: None)
    monkeypatch.setattr(snapshot, "there", lambda *_: False)
    monkeypatch.setattr(snapshot, "ensure_host_image", lambda _: "host:1")
    monkeypatch.setattr(snapshot, "ensure_upstreams_image", lambda _: "upstreams:1")
    return engine


def steps(engine: MagicMock) -> list[str]:
    """What was asked of the engine, in order."""
    wanted = {"host.stop", "host.start", "host.commit", "containers.run"}
    return [name for name, _, _ in engine.mock_calls if name in wanted]


def test_the_image_comes_last_since_it_says_that_the_snapshot_is_whole(engine: MagicMock) -> None:
    snapshot.take(engine, "default", "tag")
    assert steps(engine) == ["host.stop", "containers.run", "host.commit", "host.start"]


def test_a_copy_that_fails_leaves_no_snapshot_and_the_host_running(engine: MagicMock) -> None:
    engine.containers.run.side_effect = OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        snapshot.take(engine, "default", "tag")
    assert steps(engine) == ["host.stop", "containers.run", "host.start"]


def test_a_copy_goes_into_a_new_volume(engine: MagicMock) -> None:
    snapshot.copy_volume(engine, "image", "source", "target")
    engine.volumes.get.assert_called_once_with("target")
    names = [name for name, _, _ in engine.mock_calls]
    assert names.index("volumes.get().remove") < names.index("volumes.create") < names.index("containers.run")


def test_no_host_to_keep_is_one_sentence(engine: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "find", lambda *_: None)
    with pytest.raises(RefusalError, match="python -m sandbox up default"):
        snapshot.take(engine, "default", "tag")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"ansible_host": "dgx-comfyui-seed"}, True),
        ({"comfyui_base_image": "base@sha256:1"}, False),
        ({"comfyui_source_commit": "a" * 40}, False),
    ],
)
def test_a_snapshot_is_one_of_the_same_upstreams(engine: MagicMock, change: dict[str, Any], same: bool) -> None:
    assert (snapshot.key(engine, VARIABLES) == snapshot.key(engine, VARIABLES | change)) == same


@pytest.mark.parametrize("name", snapshot.FILES)
def test_a_snapshot_is_one_of_the_same_tree(
    engine: MagicMock, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    before = snapshot.key(engine, VARIABLES)
    for other in snapshot.FILES:
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_bytes((snapshot.ROOT / other).read_bytes())
    for folder in snapshot.FOLDERS:
        (tmp_path / folder).symlink_to(snapshot.ROOT / folder)
    monkeypatch.setattr(snapshot, "ROOT", tmp_path)
    assert snapshot.key(engine, VARIABLES) == before
    (tmp_path / name).write_text("# changed\n")
    assert snapshot.key(engine, VARIABLES) != before
