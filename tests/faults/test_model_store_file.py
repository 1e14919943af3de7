"""model_store_file against the stand-in hub on loopback: what arrives, what is kept, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
import urllib.error
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import model_transfer, progress
from ansible.module_utils.basic import AnsibleModule

from faults.model_store import (
    CONTENT,
    GATED,
    OTHER_CONTENT,
    OTHER_SHA256,
    PROGRAM,
    REPOSITORY,
    REQUIREMENTS,
    SHA256,
    SIZE_B,
    TOKEN,
    Hub,
    arguments,
    fail,
    names,
    run,
    snapshot,
    start_hub,
    succeed,
)
from upstreams.hub import SAMPLE_COMMIT, SAMPLE_PATH, SAMPLE_REPO

pytestmark = pytest.mark.usefixtures("asked_here")


def test_a_fresh_file_arrives_whole_and_is_recorded(hub: Hub, dest: Path) -> None:
    answer = succeed(hub, dest, mode="0640", licence="stand-in")
    assert (answer["changed"], answer["outcome"], answer["found"]) == (True, "fetched", "absent")
    assert answer["bytes_fetched"] == SIZE_B
    assert dest.read_bytes() == CONTENT
    assert dest.stat().st_mode & 0o777 == 0o640
    assert names(dest) == ["", ".verified.json"]
    record = json.loads(Path(answer["record"]).read_text())
    status = dest.stat()
    assert (record["sha256"], record["size_b"]) == (SHA256, SIZE_B)
    assert (record["mtime_ns"], record["inode"]) == (status.st_mtime_ns, status.st_ino)
    assert record["source"] == answer["url"] == f"{hub.url}/{SAMPLE_REPO}/resolve/{SAMPLE_COMMIT}/{SAMPLE_PATH}"
    assert record["licence"] == "stand-in"


def test_files_are_readable_for_the_service_unless_told_otherwise(hub: Hub, dest: Path) -> None:
    succeed(hub, dest)
    assert dest.stat().st_mode & 0o777 == 0o644


def test_a_second_run_changes_nothing_and_asks_for_nothing(hub: Hub, dest: Path) -> None:
    succeed(hub, dest)
    hub.ask("DELETE", "/control/log")
    before = snapshot(dest.parent)
    answer = succeed(hub, dest)
    assert (answer["changed"], answer["outcome"]) == (False, "verified")
    assert hub.log() == []
    assert snapshot(dest.parent) == before


def test_a_second_run_does_not_read_the_file(hub: Hub, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    succeed(hub, dest)
    fetcher = sys.modules["ansible.module_utils.model_fetch"]
    monkeypatch.setattr(fetcher, "hash_file", lambda path, _: pytest.fail(f"{path} was read"))
    assert succeed(hub, dest)["changed"] is False


@pytest.mark.parametrize("audit", [False, True])
def test_a_corrected_licence_is_recorded_and_nothing_else(hub: Hub, dest: Path, audit: bool) -> None:
    record = Path(succeed(hub, dest, licence="MIT")["record"])
    hub.ask("DELETE", "/control/log")
    before = json.loads(record.read_text())
    asked = {"licence": "Open RAIL++-M", "audit": audit}
    predicted = succeed(hub, dest, **asked, _ansible_check_mode=True)
    assert json.loads(record.read_text()) == before
    answer = succeed(hub, dest, **asked)
    for found in (predicted, answer):
        assert (found["changed"], found["outcome"], found["found"]) == (True, "verified", "recorded")
    assert json.loads(record.read_text()) == {**before, "licence": "Open RAIL++-M"}
    assert hub.log() == []
    assert succeed(hub, dest, **asked)["changed"] is False


def test_a_dry_run_sees_no_model_below_a_file_in_the_place_of_its_folder(hub: Hub, dest: Path) -> None:
    dest.parent.rmdir()
    dest.parent.write_text("of somebody")
    assert succeed(hub, dest, _ansible_check_mode=True)["outcome"] == "fetched"


def test_whoever_waits_is_told_how_far_it_is(
    hub: Hub, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "progress" / "job"
    told: list[dict[str, Any]] = []
    replace = os.replace

    def watch(source: str, target: str) -> None:
        if target == str(path):
            told.append(json.loads(Path(source).read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    monkeypatch.setattr(progress, "WRITE_INTERVAL_S", 0)
    monkeypatch.setenv(progress.ENVIRONMENT, str(path))
    hub.fault("drop", after_b=300_000, times=1)
    succeed(hub, dest)
    done_b = [state["done_b"] for state in told if state["total_b"] == SIZE_B]
    assert done_b == sorted(done_b)
    assert 300_000 in done_b
    assert done_b[-1] == SIZE_B
    assert "the transfer broke off, trying again (1 of 6)" in [state["text"] for state in told]
    assert not path.exists()
    told.clear()
    os.utime(dest, ns=(1, 1))
    succeed(hub, dest)
    assert [state["done_b"] for state in told if state["text"] == "proving the file that is there"][-1] == SIZE_B


def test_wrong_permissions_alone_are_mended(hub: Hub, dest: Path) -> None:
    succeed(hub, dest, mode="0644")
    dest.chmod(0o666)
    assert succeed(hub, dest, mode="0644", _ansible_check_mode=True)["changed"] is True
    answer = succeed(hub, dest, mode="0644")
    assert (answer["changed"], answer["outcome"]) == (True, "verified")
    assert dest.stat().st_mode & 0o777 == 0o644


def test_a_file_has_its_mode_before_it_has_its_name(hub: Hub, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    replace = os.replace

    def watch(source: str, target: str) -> None:
        seen[str(target)] = os.stat(source).st_mode & 0o777
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    succeed(hub, dest, mode="0600")
    assert seen[str(dest)] == 0o600


@pytest.mark.parametrize("tenth", range(1, 10))
def test_a_cut_connection_is_resumed_in_the_same_run(hub: Hub, dest: Path, tenth: int) -> None:
    kept_b = SIZE_B * tenth // 10
    hub.fault("drop", after_b=kept_b, times=1)
    answer = succeed(hub, dest)
    assert dest.read_bytes() == CONTENT
    first, second = hub.content_log()
    assert (first["sent_b"], second["sent_b"]) == (kept_b, SIZE_B - kept_b)
    assert second["range"] == f"bytes={kept_b}-"
    assert second["if_range"] == f'"{SHA256}"'
    assert answer["bytes_fetched"] == SIZE_B


FAULTS: dict[str, dict[str, Any]] = {
    **{f"cut at {tenth} tenths": {"kind": "drop", "after_b": SIZE_B * tenth // 10} for tenth in range(10)},
    "stalled": {"kind": "stall", "after_b": 200_000, "seconds": 20},
    "wrong bytes": {"kind": "corrupt", "after_b": SIZE_B // 2},
    "said to be shorter": {"kind": "short", "after_b": 400_000},
    "no ranges, and cut": {"kind": "ignore_range"},
    **{f"the hub answers {status}": {"kind": "status", "status": status, "match": "*/resolve/*"}
       for status in (401, 403, 404, 429, 500, 503)},
    **{f"the content network answers {status}": {"kind": "status", "status": status, "method": "GET"}
       for status in (401, 403, 404, 416, 429, 500, 503)},
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_after_every_fault_the_next_run_completes_with_what_was_kept(hub: Hub, dest: Path, name: str) -> None:
    hub.fault(**FAULTS[name])
    if name == "no ranges, and cut":
        hub.fault("drop", after_b=300_000)
    fail(hub, dest, attempts=1, stall_timeout_s=0.3)
    assert not dest.exists()
    part = Path(f"{dest}.part")
    kept_b = part.stat().st_size if part.exists() else 0
    assert kept_b == FAULTS[name].get("after_b", 0) * (FAULTS[name]["kind"] in ("drop", "stall")) or "no ranges" in name
    hub.ask("DELETE", "/control/faults")
    answer = succeed(hub, dest)
    assert (answer["bytes_kept"], answer["bytes_fetched"]) == (kept_b, SIZE_B - kept_b)
    assert dest.read_bytes() == CONTENT
    assert names(dest) == ["", ".verified.json"]


def test_a_later_run_fetches_only_what_is_missing(hub: Hub, dest: Path) -> None:
    hub.fault("drop", after_b=400_000)
    message = fail(hub, dest, attempts=1)
    assert "400000 of 700000 bytes are kept" in message
    assert names(dest) == [".part", ".part.json"]
    hub.ask("DELETE", "/control/faults")
    hub.ask("DELETE", "/control/log")
    answer = succeed(hub, dest)
    assert (answer["bytes_kept"], answer["bytes_fetched"]) == (400_000, 300_000)
    assert [line["sent_b"] for line in hub.content_log()] == [300_000]
    assert [line["if_range"] for line in hub.content_log()] == [f'"{SHA256}"']
    assert dest.read_bytes() == CONTENT
    assert names(dest) == ["", ".verified.json"]


@pytest.mark.parametrize("size_b", [20, 500_000, SIZE_B + 4])
@pytest.mark.parametrize("unsized", [False, True], ids=["said to be so long", "of no said length"])
def test_what_is_kept_survives_a_page_in_the_place_of_the_rest(
    hub: Hub, dest: Path, size_b: int, unsized: bool
) -> None:
    hub.fault("drop", after_b=400_000)
    fail(hub, dest, attempts=1)
    hub.ask("DELETE", "/control/faults")
    note = Path(f"{dest}.part.json").read_bytes()
    (hub.root / "page").write_bytes(b"<" * size_b)
    hub.fault("other", path="page")
    if unsized:
        hub.fault("unsized")
    message = fail(hub, dest, attempts=2)
    if not unsized:
        assert f"what answers there has {size_b} bytes, the catalogue says {SIZE_B}" in message
    if not unsized or size_b < 400_000:
        assert Path(f"{dest}.part").read_bytes() == CONTENT[:400_000]
        assert Path(f"{dest}.part.json").read_bytes() == note
    hub.ask("DELETE", "/control/faults")
    answer = succeed(hub, dest)
    if not unsized or size_b < 400_000:
        assert (answer["bytes_kept"], answer["bytes_fetched"]) == (400_000, 300_000)
    assert dest.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["ignore_range", "refuse_range", "unsized"])
def test_what_is_kept_survives_a_server_without_ranges_that_breaks_off_earlier(hub: Hub, dest: Path, kind: str) -> None:
    Path(f"{dest}.part").write_bytes(CONTENT[:400_000])
    hub.fault("ignore_range" if kind == "unsized" else kind)
    if kind == "unsized":
        hub.fault(kind)
    hub.fault("drop", after_b=100_000)
    assert "400000 of 700000 bytes are kept" in fail(hub, dest, attempts=3)
    assert Path(f"{dest}.part").read_bytes() == CONTENT[:400_000]
    hub.ask("DELETE", "/control/faults")
    assert succeed(hub, dest)["bytes_fetched"] == 300_000
    assert dest.read_bytes() == CONTENT


def test_a_killed_run_is_continued(hub: Hub, dest: Path) -> None:
    hub.fault("stall", after_b=300_000, seconds=60, times=1)
    code = (
        "import sys, ansible.module_utils as m; m.__path__.append(sys.argv[1]); sys.path.insert(0, sys.argv[2])\n"
        "import json, model_store_file\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        "with patch_module_args(json.loads(sys.argv[3])): model_store_file.main()\n"
    )
    plugins = REPOSITORY / "plugins"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(plugins / "module_utils"), str(plugins / "modules"),
         json.dumps(arguments(hub, dest))]
    )  # fmt: skip
    deadline = time.monotonic() + 40
    while not any(line["sent_b"] == 300_000 for line in hub.content_log()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    part = Path(f"{dest}.part")
    while not part.exists() or part.stat().st_size == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert not dest.exists()
    kept_b = part.stat().st_size
    answer = succeed(hub, dest)
    assert dest.read_bytes() == CONTENT
    assert (answer["bytes_kept"], answer["bytes_fetched"]) == (kept_b, SIZE_B - kept_b)


def test_a_whole_part_needs_no_request(hub: Hub, dest: Path) -> None:
    Path(f"{dest}.part").write_bytes(CONTENT)
    answer = succeed(hub, dest)
    assert (answer["bytes_kept"], answer["bytes_fetched"]) == (SIZE_B, 0)
    assert hub.log() == []
    assert dest.read_bytes() == CONTENT


def test_kept_bytes_that_are_wrong_are_fetched_once_more(hub: Hub, dest: Path) -> None:
    Path(f"{dest}.part").write_bytes(bytes(500_000))
    answer = succeed(hub, dest)
    assert dest.read_bytes() == CONTENT
    assert [line["range"] for line in hub.content_log()] == ["bytes=500000-", ""]
    assert answer["bytes_kept"] == 0


def test_kept_bytes_of_another_file_are_not_used(hub: Hub, dest: Path) -> None:
    Path(f"{dest}.part").write_bytes(bytes(500_000))
    Path(f"{dest}.part.json").write_text(json.dumps({"sha256": OTHER_SHA256, "etag": '"x"', "url": "http://x"}))
    succeed(hub, dest)
    assert [line["range"] for line in hub.content_log()] == [""]
    assert dest.read_bytes() == CONTENT


def test_a_server_without_ranges_is_read_from_the_start(hub: Hub, dest: Path) -> None:
    hub.fault("ignore_range")
    hub.fault("drop", after_b=400_000, times=1)
    answer = succeed(hub, dest)
    assert dest.read_bytes() == CONTENT
    assert [line["status"] for line in hub.content_log()] == [200, 200]
    assert answer["bytes_fetched"] == 400_000 + SIZE_B


@pytest.mark.parametrize("kind", ["ignore_range", "refuse_range"])
def test_a_server_that_never_gets_further_is_given_up(
    hub: Hub, dest: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_transfer, "PROGRESS_B", 100_000)
    hub.fault(kind)
    # Each time as much as would be progress, were it not the same bytes again. It would succeed in the end.
    hub.fault("drop", after_b=300_000, times=12)
    assert "Gave up after 3 attempts" in fail(hub, dest, attempts=3)
    assert len(hub.content_log()) == 3
    assert not dest.exists()


def test_a_transfer_that_gets_further_is_not_given_up(hub: Hub, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_transfer, "PROGRESS_B", 100_000)
    hub.fault("drop", after_b=60_000)
    answer = succeed(hub, dest, attempts=3)
    assert answer["bytes_fetched"] == SIZE_B
    assert len(hub.content_log()) == 12


def test_wrong_bytes_fail_leave_nothing_and_are_not_retried(hub: Hub, dest: Path) -> None:
    hub.fault("corrupt", after_b=SIZE_B // 2)
    message = fail(hub, dest)
    changed = bytearray(CONTENT)
    changed[SIZE_B // 2] ^= 0xFF
    assert hashlib.sha256(changed).hexdigest() in message
    assert SHA256 in message
    assert names(dest) == []
    assert len(hub.content_log()) == 1


def test_another_file_is_refused_before_its_first_byte(hub: Hub, dest: Path) -> None:
    message = fail(hub, dest, sha256=OTHER_SHA256)
    assert SHA256 in message
    assert OTHER_SHA256 in message
    assert hub.content_log() == []
    assert names(dest) == []


@pytest.fixture(name="other")
def publish_another(hub: Hub) -> str:
    """The path of another sound model below the hub's root."""
    path = f"{SAMPLE_REPO}/{SAMPLE_COMMIT}/other.safetensors"
    (hub.root / path).write_bytes(OTHER_CONTENT)
    return path


def test_another_file_that_answers_for_the_right_one_is_refused(hub: Hub, dest: Path, other: str) -> None:
    hub.fault("other", path=other)
    message = fail(hub, dest)
    assert hashlib.sha256(OTHER_CONTENT).hexdigest() in message
    assert "Nothing was kept" in message
    assert names(dest) == []
    hub.ask("DELETE", "/control/faults")
    assert succeed(hub, dest)["bytes_fetched"] == SIZE_B
    assert dest.read_bytes() == CONTENT


def test_another_file_of_another_size_is_refused_before_its_first_byte(hub: Hub, dest: Path, other: str) -> None:
    (hub.root / other).write_bytes(OTHER_CONTENT + b"more")
    hub.fault("other", path=other)
    assert f"has {SIZE_B + 4} bytes, the catalogue says {SIZE_B}" in fail(hub, dest)
    assert names(dest) == []


def test_a_file_that_became_another_meanwhile_is_not_mixed_with_it(hub: Hub, dest: Path, other: str) -> None:
    hub.fault("drop", after_b=400_000)
    fail(hub, dest, attempts=1)
    hub.ask("DELETE", "/control/faults")
    hub.fault("other", path=other, times=1)
    message = fail(hub, dest)
    assert hashlib.sha256(OTHER_CONTENT).hexdigest() in message
    assert [line["status"] for line in hub.content_log()] == [200, 200]
    assert names(dest) == []
    succeed(hub, dest)
    assert dest.read_bytes() == CONTENT


def test_another_models_file_under_the_name_is_moved_away(hub: Hub, dest: Path) -> None:
    dest.write_bytes(OTHER_CONTENT)
    answer = succeed(hub, dest)
    assert answer["found"] == "wrong"
    assert Path(answer["quarantined"]).read_bytes() == OTHER_CONTENT
    assert dest.read_bytes() == CONTENT


@pytest.mark.parametrize("wanted", ["page.safetensors", "page.SFT"])
def test_what_is_no_safetensors_file_is_refused_whatever_its_digest(hub: Hub, dest: Path, wanted: str) -> None:
    content = b"<html>" * 1000
    folder = hub.root / SAMPLE_REPO / SAMPLE_COMMIT
    (folder / wanted).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    dest = dest.with_name(wanted)
    message = fail(hub, dest, path=wanted, size_b=len(content), sha256=digest)
    assert "no valid safetensors file" in message
    assert names(dest) == []


def test_another_size_is_refused_before_the_first_byte(hub: Hub, dest: Path) -> None:
    message = fail(hub, dest, size_b=SIZE_B - 1)
    assert "has 700000 bytes, the catalogue says 699999" in message
    assert hub.content_log() == []


@pytest.mark.parametrize("content", [CONTENT[:-1], bytes(SIZE_B)], ids=["truncated", "wrong bytes of the right size"])
def test_a_wrong_file_is_moved_away_reported_and_replaced(
    hub: Hub, dest: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the control node's part of Ansible was imported before, a module's warnings leave its answer.
    warnings: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _, text: warnings.append(text))
    dest.write_bytes(content)
    rejected = f"{dest}.rejected-{hashlib.sha256(content).hexdigest()[:12]}"
    before = snapshot(dest.parent)
    predicted = succeed(hub, dest, _ansible_check_mode=True)
    assert (predicted["changed"], predicted["outcome"], predicted["quarantined"]) == (True, "fetched", rejected)
    assert snapshot(dest.parent) == before
    answer = succeed(hub, dest)
    assert (answer["changed"], answer["found"], answer["quarantined"]) == (True, "wrong", rejected)
    assert any(rejected in warning for warning in warnings)
    assert Path(rejected).read_bytes() == content
    assert dest.read_bytes() == CONTENT
    assert succeed(hub, dest)["changed"] is False


def test_a_synthetic_checkpoint_never_passes_for_the_real_one(hub: Hub, dest: Path) -> None:
    # Even at the published size: only the digest counts.
    header = json.dumps({"__metadata__": {"synthetic": "random values in SDXL's layout"}}).encode()
    dest.write_bytes((struct.pack("<Q", len(header)) + header).ljust(SIZE_B, b"\0"))
    hub.fault("status", status=503, match="*")
    fail(hub, dest, attempts=2)
    assert not dest.exists()


def test_a_wrong_file_is_not_left_in_place_when_the_hub_fails(hub: Hub, dest: Path) -> None:
    dest.write_bytes(b"wrong")
    hub.fault("status", status=503, match="*")
    message = fail(hub, dest, attempts=1)
    assert ".rejected-" in message
    assert not dest.exists()


def test_a_right_file_is_adopted(hub: Hub, dest: Path) -> None:
    dest.write_bytes(CONTENT)
    inode = dest.stat().st_ino
    predicted = succeed(hub, dest, _ansible_check_mode=True)
    answer = succeed(hub, dest)
    for found in (predicted, answer):
        assert (found["changed"], found["outcome"], found["found"]) == (True, "adopted", "unproved")
    assert dest.stat().st_ino == inode
    assert hub.log() == []
    assert succeed(hub, dest)["changed"] is False


def test_a_touched_file_is_read_again(hub: Hub, dest: Path) -> None:
    succeed(hub, dest)
    os.utime(dest, ns=(1, 1))
    answer = succeed(hub, dest)
    assert (answer["changed"], answer["outcome"]) == (True, "adopted")
    assert succeed(hub, dest)["changed"] is False


def test_a_changed_file_is_never_taken_for_the_recorded_one(hub: Hub, dest: Path) -> None:
    succeed(hub, dest)
    changed = bytearray(CONTENT)
    changed[-1] ^= 1
    dest.write_bytes(changed)
    assert succeed(hub, dest)["found"] == "wrong"
    assert dest.read_bytes() == CONTENT


def test_an_audit_reads_what_the_record_hides(hub: Hub, dest: Path) -> None:
    succeed(hub, dest)
    status = dest.stat()
    with dest.open("r+b") as handle:
        handle.seek(SIZE_B - 1)
        handle.write(bytes([CONTENT[-1] ^ 1]))
    os.utime(dest, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert succeed(hub, dest)["changed"] is False
    assert succeed(hub, dest, audit=True, _ansible_check_mode=True)["found"] == "wrong"
    assert succeed(hub, dest, audit=True)["found"] == "wrong"
    assert dest.read_bytes() == CONTENT


def test_an_audit_that_confirms_changes_nothing(hub: Hub, dest: Path) -> None:
    succeed(hub, dest)
    names_before, record = names(dest), Path(f"{dest}.verified.json").read_bytes()
    answer = succeed(hub, dest, audit=True)
    assert (answer["changed"], answer["outcome"]) == (False, "verified")
    assert (names(dest), Path(f"{dest}.verified.json").read_bytes()) == (names_before, record)


def test_a_dry_run_on_a_virgin_host_predicts_and_asks_nothing(hub: Hub, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    answer = succeed(hub, tmp_path / "not" / "there" / SAMPLE_PATH, mode="0644", _ansible_check_mode=True)
    assert (answer["changed"], answer["outcome"], answer["found"]) == (True, "fetched", "absent")
    assert snapshot(tmp_path) == before
    assert hub.log() == []


def test_a_missing_folder_is_named(hub: Hub, tmp_path: Path) -> None:
    message = fail(hub, tmp_path / "not" / "there" / SAMPLE_PATH)
    assert f"The folder {tmp_path / 'not' / 'there'} does not exist" in message


def test_a_disk_that_is_too_small_is_refused_before_the_transfer(
    hub: Hub, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(dest.parent)
    full = os.statvfs_result((*real[:4], 100, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    for check_mode in (True, False):
        message = fail(hub, dest, _ansible_check_mode=check_mode)
        assert f"of space are missing on the filesystem of {dest.parent}" in message
    assert hub.log() == []
    assert names(dest) == []


def test_a_disk_that_fills_up_keeps_what_arrived(hub: Hub, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def write(handle: int, data: Any) -> int:
        if not str(os.readlink(f"/proc/self/fd/{handle}")).endswith(".part"):
            return real(handle, data)
        if os.fstat(handle).st_size >= 300_000:
            raise OSError(28, "No space left on device")
        return real(handle, data[: 300_000 - os.fstat(handle).st_size])

    monkeypatch.setattr(os, "write", write)
    message = fail(hub, dest)
    monkeypatch.undo()
    assert "No space left on device after" in message
    assert "They are kept" in message
    answer = succeed(hub, dest)
    assert (answer["bytes_kept"], answer["bytes_fetched"]) == (300_000, 400_000)


@pytest.fixture(name="done")
def note_syncs_and_renames(dest: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was brought to the disk, and what got another name, in their order."""
    done: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        done.append(f"sync {os.path.relpath(os.readlink(f'/proc/self/fd/{handle}'), dest.parent)}")
        real_sync(handle)

    def replace(source: str, target: str) -> None:
        done.append(f"rename {os.path.basename(source)}")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    return done


RECORDED = [
    f"sync {SAMPLE_PATH}", f"sync {SAMPLE_PATH}.verified.json.new", f"rename {SAMPLE_PATH}.verified.json.new", "sync ."
]  # fmt: skip


def test_bytes_are_on_the_disk_before_they_get_their_name(hub: Hub, dest: Path, done: list[str]) -> None:
    succeed(hub, dest)
    note = [f"sync {SAMPLE_PATH}.part.json.new", f"rename {SAMPLE_PATH}.part.json.new", "sync ."]
    file = [f"sync {SAMPLE_PATH}.part", f"rename {SAMPLE_PATH}.part", "sync ."]
    assert done == note + file + RECORDED


def test_an_adopted_file_is_on_the_disk_before_its_record(hub: Hub, dest: Path, done: list[str]) -> None:
    dest.write_bytes(CONTENT)
    succeed(hub, dest)
    assert done == RECORDED


@pytest.mark.parametrize(
    ("call", "sent_b"),
    [("fsync", SIZE_B), ("fdatasync", SIZE_B), ("fdatasync", 400_000)],
    ids=["at the end", "meanwhile", "and the network broke as well"],
)
def test_what_a_disk_did_not_keep_is_not_kept(
    hub: Hub, dest: Path, call: str, sent_b: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_transfer, "SYNC_B", sent_b)
    hub.fault("drop", after_b=sent_b)
    real = getattr(os, call)

    def refuse(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith(".part"):
            raise OSError(5, "Input/output error")
        real(handle)

    monkeypatch.setattr(os, call, refuse)
    message = fail(hub, dest, attempts=1)
    monkeypatch.undo()
    hub.ask("DELETE", "/control/faults")
    assert "the disk did not keep what was written: Input/output error" in message
    assert names(dest) == []
    # The kernel would show the lost bytes as if they were there, and say nothing a second time.
    assert succeed(hub, dest)["bytes_fetched"] == SIZE_B


@pytest.mark.parametrize("leads_to", ["out.safetensors", "nowhere.safetensors"])
def test_a_symbolic_link_in_the_place_of_the_file_is_refused(
    hub: Hub, dest: Path, tmp_path: Path, leads_to: str
) -> None:
    (tmp_path / "out.safetensors").write_bytes(CONTENT)
    dest.symlink_to(tmp_path / leads_to)
    before = snapshot(tmp_path)
    for check_mode in (True, False):
        message = fail(hub, dest, _ansible_check_mode=check_mode)
        assert f"{dest} is a symbolic link to {tmp_path / leads_to}, expected no links" in message
        assert "named in comfyui_model_files" in message
    assert snapshot(tmp_path) == before
    assert hub.log() == []


def test_a_link_to_the_recorded_file_is_refused_as_well(hub: Hub, dest: Path, tmp_path: Path) -> None:
    succeed(hub, dest)
    dest.rename(tmp_path / "out.safetensors")
    dest.symlink_to(tmp_path / "out.safetensors")
    assert "is a symbolic link to" in fail(hub, dest)


def test_a_gated_repository_says_which_variable_holds_the_token(hub: Hub, dest: Path) -> None:
    message = fail(hub, dest, repo=GATED)
    assert "gated" in message
    assert "model_store_token" in message
    assert "no token was sent" in message
    assert len(hub.log()) == 1, "a refusal is not retried"
    refused = run(hub, dest, repo=GATED, token=TOKEN[::-1])
    assert "HTTP 403" in refused["msg"]
    assert TOKEN[::-1] not in json.dumps(refused)


def test_the_token_opens_and_appears_nowhere(hub: Hub, dest: Path) -> None:
    answer = succeed(hub, dest, repo=GATED, token=TOKEN)
    assert answer["invocation"]["module_args"]["repo"] == GATED
    assert TOKEN not in json.dumps(answer)
    for path in dest.parent.iterdir():
        assert TOKEN.encode() not in path.read_bytes()
    assert {line["authorization"] for line in hub.log()} == {True}


def test_what_the_module_was_called_with_fits_on_a_page(hub: Hub, dest: Path) -> None:
    for answer in (succeed(hub, dest), run(hub, dest, commit="main")):
        told = answer["invocation"]["module_args"]
        assert told["dest"] == str(dest)
        assert PROGRAM not in told.values()
        assert REQUIREMENTS not in told.values()


def test_the_token_stays_with_its_host(hub: Hub, dest: Path) -> None:
    # The same machine under another name is another host.
    process, url = start_hub(hub.root, "--cdn", hub.url.replace("127.0.0.1", "localhost"), "--token", TOKEN)
    try:
        front = Hub(url, hub.root, hub.client)
        succeed(front, dest, token=TOKEN)
        assert {line["authorization"] for line in front.log()} == {True}
        assert {line["authorization"] for line in hub.log()} == {False}
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"repo": "example/nothing", "token": "t"}, "check repo"),
        ({"repo": "example/nothing"}, "does not exist, or is private"),
        ({"commit": "f" * 40}, "check commit"),
        ({"path": "nothing.safetensors"}, "check path"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub: Hub, dest: Path, change: dict[str, str], expected: str) -> None:
    assert expected in fail(hub, dest, **change)
    assert len(hub.log()) == 1
    assert names(dest) == []


def test_a_busy_hub_is_asked_again_when_it_says(hub: Hub, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fault("status", status=429, retry_after="77", match="*/resolve/*", times=1)
    hub.fault("status", status=500, times=1)
    waits_s: list[float] = []
    monkeypatch.setattr(time, "sleep", waits_s.append)
    succeed(hub, dest)
    assert 77 in waits_s
    assert dest.read_bytes() == CONTENT


def test_a_stalled_connection_is_broken_off_and_resumed(hub: Hub, dest: Path) -> None:
    hub.fault("stall", after_b=200_000, seconds=60, times=1)
    began = time.monotonic()
    answer = succeed(hub, dest, stall_timeout_s=0.3)
    assert time.monotonic() - began < 30  # half of the stall
    assert answer["bytes_fetched"] == SIZE_B


def test_a_hub_that_is_not_there_is_tried_a_few_times(hub: Hub, dest: Path) -> None:
    message = fail(Hub("http://127.0.0.1:1", hub.root, hub.client), dest, attempts=3)
    assert "Connection refused" in message
    assert "Gave up after 3 attempts" in message
    assert names(dest) == []


def two_at_once(hub: Hub, dest: Path) -> list[str]:
    """What two processes say that begin together."""
    code = (
        "import sys, ansible.module_utils as m; m.__path__.append(sys.argv[1])\n"
        "import json\n"
        "from ansible.module_utils.model_fetch import ensure\n"
        "from ansible.module_utils.model_wanted import StoreError, Wanted\n"
        "class Attributes:\n"
        "    def give(self, path): pass\n"
        "try:\n"
        "    done = ensure(Wanted(**json.loads(sys.argv[2])), Attributes(), audit=False, check_mode=False)\n"
        "    print(done.outcome)\n"
        "except StoreError:\n"
        "    print('refused')\n"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(REPOSITORY / "plugins" / "module_utils"),
        json.dumps(arguments(hub, dest)),
    ]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return sorted(process.communicate(timeout=20)[0].strip() for process in processes)


def test_two_runs_at_once_fetch_once(hub: Hub, dest: Path) -> None:
    hub.fault("trickle", seconds=0.05)
    assert two_at_once(hub, dest) == ["fetched", "verified"]
    assert len(hub.content_log()) == 1
    assert names(dest) == ["", ".verified.json"]


def test_a_run_that_waited_for_a_failed_one_begins_anew(hub: Hub, dest: Path) -> None:
    hub.fault("trickle", seconds=0.05)
    hub.fault("corrupt", after_b=0, times=1)
    assert two_at_once(hub, dest) == ["fetched", "refused"]
    assert dest.read_bytes() == CONTENT
    assert names(dest) == ["", ".verified.json"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"commit": "main"}, "40 hexadecimal digits"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"size_b": -1}, "not a number of bytes"),
        ({"size_b": 0}, "size_b is missing"),
        ({"sha256": ""}, "sha256 is missing"),
        ({"path": "../x.safetensors"}, "none of them '..'"),
        ({"path": "x.ckpt"}, "allow_pickle"),
        ({"path": "x.pt2"}, "allow_pickle"),
        ({"endpoint": "file:///srv"}, "not an http or https address"),
        ({"attempts": 0}, "attempts is 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything(hub: Hub, dest: Path, change: dict[str, Any], expected: str) -> None:
    assert expected in fail(hub, dest, **change)
    assert hub.log() == []
    assert names(dest) == []


def test_the_hub_client_itself_takes_the_stand_in_for_a_hub(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import sys; from huggingface_hub import hf_hub_download as get\n"
        "print(get(sys.argv[1], sys.argv[2], revision=sys.argv[3], endpoint=sys.argv[4], cache_dir=sys.argv[5]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, SAMPLE_REPO, SAMPLE_PATH, SAMPLE_COMMIT, hub.url, str(tmp_path / "cache")],
        check=True, capture_output=True, text=True,
        env={**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert Path(done.stdout.strip()).read_bytes() == CONTENT


def test_the_stand_in_refuses_an_unknown_fault(hub: Hub) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        hub.fault("melt")
