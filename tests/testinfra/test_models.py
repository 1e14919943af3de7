"""Every wanted model is on the host with the published bytes, and nobody but root can change that."""

from __future__ import annotations

import json
import posixpath
from typing import Any

import pytest

# Above this, the record is compared with the file instead of reading gigabytes again; an audit is for that.
READ_LIMIT_B = 1 << 30

# One round trip for everything: each question through Ansible costs about a second.
READER = """
import hashlib, json, os, stat, sys
limit_b, folder, dests = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
parts = [dest + end for dest in dests for end in (".part", ".part.json")]
found = {"files": {}, "folders": {}, "leftovers": list(filter(os.path.lexists, parts))}
for dest in dests:
    entry = found["files"][dest] = {"there": os.path.isfile(dest)}
    if not entry["there"]:
        continue
    state = os.stat(dest)
    entry.update(owner=[state.st_uid, state.st_gid], mode=stat.S_IMODE(state.st_mode), size_b=state.st_size)
    entry.update(mtime_ns=state.st_mtime_ns, inode=state.st_ino)
    digest = hashlib.sha256()
    if state.st_size <= limit_b:
        with open(dest, "rb") as handle:
            while block := handle.read(1 << 22):
                digest.update(block)
        entry["sha256"] = digest.hexdigest()
    try:
        with open(dest + ".verified.json") as handle:
            entry["record"] = json.load(handle)
    except OSError:
        entry["record"] = None
for path in [folder, *{os.path.dirname(dest) for dest in dests}]:
    if os.path.isdir(path):
        state = os.stat(path)
        found["folders"][path] = {"owner": [state.st_uid, state.st_gid], "mode": stat.S_IMODE(state.st_mode)}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def wanted(site: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Path and catalogue entry of every model that the site asks for."""
    entries = [site["comfyui_model_catalogue"][name] for name in site["comfyui_models"]]
    folder = posixpath.join(site["comfyui_data_dir"], "models")
    names = [entry.get("filename") or posixpath.basename(entry["path"]) for entry in entries]
    return {posixpath.join(folder, entry["folder"], name): entry for entry, name in zip(entries, names, strict=True)}


@pytest.fixture(scope="module")
def found(host: Any, site: dict[str, Any], wanted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the host says of them."""
    folder = posixpath.join(site["comfyui_data_dir"], "models")
    words = [READER, str(READ_LIMIT_B), folder, *wanted]
    answer: dict[str, Any] = json.loads(host.check_output("python3 -c" + " %s" * len(words), *words))
    return answer


def test_the_site_wants_models(wanted: dict[str, dict[str, Any]]) -> None:
    assert wanted, "comfyui_models is empty: nothing below would be tested"


def test_criterion_02_every_model_has_the_published_bytes(
    found: dict[str, Any], wanted: dict[str, dict[str, Any]]
) -> None:
    for path, entry in wanted.items():
        file = found["files"][path]
        assert file["there"], f"{path} is missing"
        # What the catalogue leaves to the hub stands in the record.
        published = entry if "sha256" in entry else file["record"]
        assert file["size_b"] == published["size_b"], path
        if published["size_b"] <= READ_LIMIT_B:
            assert file["sha256"] == published["sha256"], path


def test_the_record_speaks_for_the_very_file(found: dict[str, Any], wanted: dict[str, dict[str, Any]]) -> None:
    for path, entry in wanted.items():
        file, record = found["files"][path], found["files"][path]["record"]
        assert record, f"{path} has no record: run site.yml"
        assert record["sha256"] == entry.get("sha256", record["sha256"]), path
        assert record["licence"] == entry["licence"], path
        assert {key: record[key] for key in ("size_b", "mtime_ns", "inode")} == {
            key: file[key] for key in ("size_b", "mtime_ns", "inode")
        }, f"{path} changed after it was proved: run site.yml"


def test_only_root_can_change_a_model(found: dict[str, Any], wanted: dict[str, dict[str, Any]]) -> None:
    for path in wanted:
        assert (found["files"][path]["owner"], oct(found["files"][path]["mode"])) == ([0, 0], "0o644"), path
    assert found["folders"]
    for path, state in found["folders"].items():
        assert (state["owner"], oct(state["mode"])) == ([0, 0], "0o755"), path


def test_no_transfer_was_left_half_done(found: dict[str, Any]) -> None:
    assert found["leftovers"] == []
