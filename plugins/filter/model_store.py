"""Filters of the role model_store: what is wrong with its input, what to look at, what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# The control node imports no module_utils by itself; hosts and control node are to judge by the same functions.
sys.path.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

import model_files as rules


def model_store_entries(catalogue: object, models: object) -> dict[str, Any]:
    """The wanted part of a catalogue, as far as it is sound; model_store_problems says what is wrong with the rest.

    Other roles' inputs are made of it, and are looked at before a bad catalogue can be refused in a sentence.
    """
    if not isinstance(catalogue, Mapping) or not isinstance(models, list):
        return {}
    wanted = {str(name): catalogue.get(name) for name in models if isinstance(name, str)}
    return {name: entry for name, entry in wanted.items() if not rules.entry_problems(name, entry)}


def model_store_paths(
    entries: Mapping[str, Any], directory: str, folders: list[str], endpoint: str, given: Mapping[str, str]
) -> dict[str, list[str]]:
    """What host_probe is to look at: `files`, `contents` (the records), and the command `space`."""
    sources = [path for name, entry in entries.items() for path in rules.local_sources(name, entry, endpoint, given)]
    dests = [rules.entry_dest(directory, entry) for entry in entries.values()]
    layout = rules.layout(directory, [*folders, *(entry["folder"] for entry in entries.values())])
    return {
        "files": [*layout, *dests, *(f"{dest}.part" for dest in dests), *sources],
        "contents": [f"{dest}.verified.json" for dest in dests],
        "space": rules.space_command(directory, dests),
    }


def model_store_files(entries: Mapping[str, Any], directory: str) -> list[dict[str, Any]]:
    """Path and size in bytes of each entry's file: for roles that count disk or look models up by name.

    The size is 0 where only the hub knows it.
    """
    return [
        {"path": rules.entry_dest(directory, entry), "size_b": entry.get("size_b", 0)} for entry in entries.values()
    ]


def model_store_plan(probe: Mapping[str, Any], **wanted: Any) -> dict[str, Any]:
    """Compare a probe of `model_store_paths` with what is wanted; see model_files.plan_store."""
    return rules.plan_store(probe=probe, **wanted)


class FilterModule:
    """The filters, by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "model_store_problems": rules.store_problems,
            "model_store_source_problems": rules.source_problems,
            "model_store_entries": model_store_entries,
            "model_store_files": model_store_files,
            "model_store_paths": model_store_paths,
            "model_store_plan": model_store_plan,
        }
