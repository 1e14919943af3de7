"""What root runs is compared with everything that matters about it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

differs = importlib.import_module("filter.comfyui_service").differs
FILE: dict[str, Any] = {"kind": "file", "mode": "0644", "uid": 0, "gid": 0, "content": "text"}


def test_what_is_right_does_not_differ() -> None:
    assert not differs(FILE, "file", "text")
    assert not differs({**FILE, "kind": "dir", "mode": "0755"}, "dir")


@pytest.mark.parametrize(
    "change",
    [{"kind": "absent"}, {"mode": "0666"}, {"uid": 990}, {"gid": 990}, {"content": "other"}, {"content": None}],
)
def test_everything_that_moved_is_noticed(change: dict[str, Any]) -> None:
    assert differs({**FILE, **change}, "file", "text")
