"""Filters of the role comfyui_service: whether what root runs is what it should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

MODES = {"dir": "0755", "file": "0644"}


def differs(found: Mapping[str, Any], kind: str, text: str | None = None) -> bool:
    """Whether an entry of host_probe is another kind, not root's alone, or of another content than `text`."""
    wanted = (kind, MODES[kind], 0, 0)
    if (found["kind"], found["mode"], found["uid"], found["gid"]) != wanted:
        return True
    return text is not None and found["content"] != text


class FilterModule:
    """The filters, by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"comfyui_service_differs": differs}
