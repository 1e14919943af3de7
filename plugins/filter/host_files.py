"""What the roles ask of a host_probe's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any


def of_another_kind(files: Mapping[str, Mapping[str, Any]], paths: Iterable[str], kind: str) -> list[str]:
    """The paths at which something else stands than a V(file) or V(dir), such as a link that leads nowhere."""
    return [
        path
        for path in paths
        if files[path]["kind"] not in (kind, "absent") or (files[path]["kind"] == "absent" and files[path]["link"])
    ]


def folders_above(paths: Iterable[str]) -> list[str]:
    """Every folder that these absolute paths lie in, an outer one before what is in it, and V(/) not among them."""
    above = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
    return sorted(above - {"/"})


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filters by name."""
        return {"of_another_kind": of_another_kind, "folders_above": folders_above}
