"""The filters of the role model_store."""

from __future__ import annotations

import importlib
from typing import Any

model_store = importlib.import_module("filter.model_store")

ENTRY = {"folder": "loras/pixel", "path": "a/x.safetensors", "repo": "owner/name", "commit": "0" * 40}


SOUND = {
    "repo": "owner/name",
    "commit": "0" * 40,
    "path": "x.safetensors",
    "size_b": 1,
    "sha256": "0" * 64,
    "folder": "loras",
    "licence": "MIT",
}


def test_the_wanted_part_of_a_catalogue() -> None:
    assert model_store.model_store_entries({"a": SOUND, "b": SOUND}, ["b"]) == {"b": SOUND}


def test_what_is_not_sound_is_left_to_the_one_who_refuses_it() -> None:
    catalogue = {"a": SOUND, "b": {**SOUND, "size_b": "much"}, "c": None}
    assert model_store.model_store_entries(catalogue, ["a", "b", "c", "d", []]) == {"a": SOUND}
    assert model_store.model_store_entries(catalogue, "a") == {}
    assert model_store.model_store_entries(["a"], ["a"]) == {}


def test_what_the_probe_looks_at() -> None:
    dest = "/m/loras/pixel/x.safetensors"
    assert model_store.model_store_paths({"x": ENTRY}, "/m", ["vae"], "https://hub", {"x": "/data/x"}) == {
        "files": ["/m", "/m/loras", "/m/loras/pixel", "/m/vae", dest, f"{dest}.part", "/data/x"],
        "contents": [f"{dest}.verified.json"],
        "space": ["df", "--block-size=1", "--output=avail,target,file", "/m", "/", "/m/loras/pixel", "/m/loras"],
    }


def test_the_plan_reads_what_the_probe_was_asked_for() -> None:
    paths = model_store.model_store_paths({"x": {**ENTRY, "size_b": 1}}, "/m", [], "/usb", {})
    absent = {"kind": "absent", "link": None, "size_b": None, "content": None}
    probe = {
        "files": dict.fromkeys(paths["files"] + paths["contents"], absent),
        "commands": {"space": {"stdout": "Avail Mounted on File\n1 / /\n"}},
    }
    entry = {**ENTRY, "size_b": 1, "sha256": "0" * 64, "licence": "MIT"}
    plan = model_store.model_store_plan(
        probe,
        entries={"x": entry},
        directory="/m",
        folders=[],
        endpoint="/usb",
        given={},
        owner_id=0,
        group_id=0,
        audit=False,
    )
    assert plan["folders"] == ["/m", "/m/loras", "/m/loras/pixel"]
    assert [(item["name"], item["reason"], item["size"]) for item in plan["pending"]] == [("x", "fetch", "1 bytes")]
    assert "there is no /usb/loras/pixel/x.safetensors and no /usb/x.safetensors and no" in plan["problems"][0]
    assert plan["missing"] != []


def test_every_filter_is_named_after_the_role() -> None:
    assert all(name.startswith("model_store_") for name in model_store.FilterModule().filters())


def test_files_are_listed_with_path_and_size() -> None:
    entries: dict[str, dict[str, Any]] = {"x": {"folder": "loras", "path": "deep/pixel.safetensors", "size_b": 7}}
    files = [{"path": "/srv/models/loras/pixel.safetensors", "size_b": 7}]
    assert model_store.model_store_files(entries, "/srv/models") == files
    del entries["x"]["size_b"]
    assert model_store.model_store_files(entries, "/srv/models") == [{**files[0], "size_b": 0}]
