"""The model store's rules: catalogue, addresses, ranges, safetensors, records, plan."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import model_files as rules
from upstreams import hub

CATALOGUE = Path(__file__).parents[2] / "inventory" / "group_vars" / "all" / "model_catalogue.yml"
SHA256 = "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b"
ENTRY: dict[str, Any] = {
    "repo": "stabilityai/stable-diffusion-xl-base-1.0",
    "commit": "462165984030d82259a11f4367a4eed129e94a7b",
    "path": "sd_xl_base_1.0.safetensors",
    "size_b": 1000,
    "sha256": SHA256,
    "folder": "checkpoints",
    "licence": "CreativeML Open RAIL++-M",
}
# Its size and digest are left to the hub.
UNPROVED = {key: ENTRY[key] for key in ENTRY if key not in ("sha256", "size_b")}
DEST = "/srv/models/checkpoints/sd_xl_base_1.0.safetensors"


def test_the_shipped_catalogue_is_valid() -> None:
    catalogue = yaml.safe_load(CATALOGUE.read_text())["comfyui_model_catalogue"]
    assert rules.store_problems(catalogue, list(catalogue), "/srv/comfyui/models") == []
    base = catalogue["sd_xl_base_1.0"]
    assert (base["repo"], base["commit"], base["path"]) == (hub.SAMPLE_REPO, hub.SAMPLE_COMMIT, hub.SAMPLE_PATH)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"commit": "main"}, "commit is 'main', not 40 hexadecimal digits"),
        ({"commit": ENTRY["commit"].upper()}, "40 hexadecimal digits in lower case"),
        ({"sha256": SHA256[:-1]}, "not 64 hexadecimal digits"),
        ({"size_b": "1000"}, "size_b is '1000', not a number of bytes"),
        ({"size_b": True}, "not a number of bytes"),
        ({"size_b": 0}, "not a number of bytes"),
        ({"repo": "sdxl"}, "not owner/name"),
        ({"path": "../x.safetensors"}, "path is '../x.safetensors'"),
        ({"path": "a//b.safetensors"}, "path is 'a//b.safetensors'"),
        ({"folder": "/etc"}, "folder is '/etc'"),
        ({"folder": ""}, "folder is empty"),
        ({"filename": "a/b.safetensors"}, "a key of its own"),
        ({"path": "x.ckpt"}, "allow_pickle: true"),
        ({"filename": "x.PT"}, "filename is 'x.PT', expected .safetensors or .sft at its end"),
        ({"path": "x.pt2"}, "path is 'x.pt2', expected .safetensors or .sft at its end"),
        ({"path": "x.pickle"}, "allow_pickle: true"),
        ({"path": "safetensors"}, "allow_pickle: true"),
        ({"path": "x.gguf", "filename": "x.safetensors"}, "allow_pickle: true"),
        ({"allow_pickle": "yes"}, "not true or false"),
        ({"licens": "MIT"}, "licens is not a key of an entry"),
    ],
)
def test_a_bad_entry_is_named(change: dict[str, Any], expected: str) -> None:
    problems = rules.entry_problems("sdxl", {**ENTRY, **change})
    assert len(problems) == 1
    assert problems[0].startswith("model sdxl: ")
    assert expected in problems[0]


def test_another_format_may_be_allowed_by_its_entry() -> None:
    assert rules.entry_problems("x", {**ENTRY, "path": "x.ckpt", "allow_pickle": True}) == []
    assert rules.entry_problems("x", {**ENTRY, "path": "a/x.SFT", "filename": "X.Safetensors"}) == []


def test_what_is_missing_or_no_entry_at_all_is_named() -> None:
    assert rules.entry_problems("x", {**ENTRY, "folder": "vae"}) == []
    assert rules.entry_problems("x", {key: ENTRY[key] for key in ENTRY if key != "sha256"}) == [
        "model x: sha256 is missing"
    ]
    assert rules.entry_problems("x", "sd_xl_base_1.0") == ["model x: its entry is not a mapping"]


def test_an_entry_may_leave_the_proof_to_the_hub_but_not_half_of_it() -> None:
    assert rules.entry_problems("x", UNPROVED) == []
    assert rules.entry_problems("x", {key: ENTRY[key] for key in ENTRY if key != "size_b"}) == [
        "model x: size_b is missing"
    ]


def test_store_problems() -> None:
    catalogue = {"a": ENTRY, "b": ENTRY, "c": {**ENTRY, "filename": "c.safetensors"}, "bad": {}}
    assert rules.store_problems(catalogue, ["a", "c"], "/srv/models") == []
    assert "model z is not in the catalogue, which has a, b, bad, c" in rules.store_problems(catalogue, ["z"], "/srv")
    assert f"models a and b are both {DEST}" in rules.store_problems(catalogue, ["a", "b"], "/srv/models")[0]
    for directory in ("models", "/srv/../etc", "/srv/my models", "/srv/models/", "", None):
        assert "not an absolute path" in rules.store_problems(catalogue, ["a"], directory)[0]
    assert rules.store_problems([], ["a"], "/srv") == rules.store_problems({}, "a", "/srv") != []


@pytest.mark.parametrize("endpoint", ["https://huggingface.co", "http://u:p@10.0.0.1:8090/hf", "/media/usb/My models"])
def test_where_models_may_come_from(endpoint: str) -> None:
    assert rules.source_problems({"a": ENTRY}, ["a"], endpoint, {"a": "/data/x y.safetensors"}) == []
    assert rules.is_folder(endpoint) == endpoint.startswith("/media")


@pytest.mark.parametrize("endpoint", ["", "huggingface.co", "file:///srv", "media/usb", "https://", "/", None, 7])
def test_where_models_may_not_come_from(endpoint: object) -> None:
    (problem,) = rules.source_problems({"a": ENTRY}, ["a"], endpoint, {})
    assert "Set comfyui_model_endpoint to one" in problem


def test_a_refused_address_does_not_give_its_password_away() -> None:
    assert "hunter22" not in rules.endpoint_problem("ftp://u:hunter22@hub/")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("/x", "are a mapping of a model's name to a path"),
        ({"z": "/x"}, "model z, which is not wanted: add it to comfyui_models"),
        ({"a": "x"}, "the file for model a is 'x', not a path from the root on"),
        ({"a": None}, "the file for model a is None"),
        ({"b": "/x"}, "model b has no sha256 to prove a file by"),
    ],
)
def test_files_elsewhere_that_cannot_be_meant(files: object, expected: str) -> None:
    catalogue = {"a": ENTRY, "b": {**UNPROVED, "filename": "b.safetensors"}}
    (problem,) = rules.source_problems(catalogue, ["a", "b"], "https://hub", files)
    assert expected in problem


def test_a_folder_needs_a_digest_to_prove_by() -> None:
    assert rules.source_problems({"a": UNPROVED}, ["a"], "https://hub", {}) == []
    assert rules.source_problems([], ["a"], "https://hub", {}) == []
    assert (
        "model a has no sha256, and models come from the folder /usb"
        in (rules.source_problems({"a": UNPROVED}, ["a"], "/usb", {})[0])
    )


def test_where_a_model_may_lie_in_a_folder() -> None:
    assert rules.folder_candidates("/usb", {**ENTRY, "filename": "b.safetensors"}) == [
        "/usb/checkpoints/b.safetensors",
        "/usb/b.safetensors",
        "/usb/sd_xl_base_1.0.safetensors",
        f"/usb/models--stabilityai--stable-diffusion-xl-base-1.0/snapshots/{ENTRY['commit']}/sd_xl_base_1.0.safetensors",
    ]
    assert len(rules.folder_candidates("/usb", ENTRY)) == 3


@pytest.mark.parametrize(
    ("size_b", "text"), [(8388608, "8388608 bytes"), (6938078334, "6.46 GiB"), (1 << 30, "1.00 GiB")]
)
def test_sizes_for_people(size_b: int, text: str) -> None:
    assert rules.gib(size_b) == text


def test_addresses() -> None:
    url = rules.resolve_url("https://mirror.example.com/hf/", "a/b", "c" * 40, "x y/z.safetensors")
    assert url == f"https://mirror.example.com/hf/a/b/resolve/{'c' * 40}/x%20y/z.safetensors"
    assert rules.without_credentials("http://u:p@host:80/x?Signature=s#f") == "http://host:80/x"
    assert rules.credentials("http://u:p%40ss@host/") == ["p%40ss", "p@ss"]
    assert rules.credentials("http://host/") == []
    assert rules.user_of("http://u:p%40ss@host:80/x?y") == ("http://host:80/x?y", "u:p@ss")
    assert rules.user_of("http://host/x") == ("http://host/x", "")


@pytest.mark.parametrize(
    ("current", "location", "target", "same"),
    [
        ("https://a/x/y", "/z", "https://a/z", True),
        ("https://a/x", "https://a:8443/x", "https://a:8443/x", False),
        ("https://a/x", "https://b/x", "https://b/x", False),
        ("http://a/x", "https://a/x", "https://a/x", False),
        ("http://a/x", "//b/x", "http://b/x", False),
    ],
)
def test_the_next_hop(current: str, location: str, target: str, same: bool) -> None:
    assert rules.next_hop(current, location) == (target, same)


@pytest.mark.parametrize("location", ["http://a/x", "file:///etc/passwd", "ftp://a/x"])
def test_a_hop_out_of_the_web_or_into_the_clear_is_refused(location: str) -> None:
    with pytest.raises(ValueError, match="redirects"):
        rules.next_hop("https://a/x", location)


@pytest.mark.parametrize(
    ("value", "strong"), [('"abc"', '"abc"'), ('W/"abc"', ""), ("abc", ""), (None, ""), ('"a"b"', "")]
)
def test_only_a_strong_tag_serves_if_range(value: str | None, strong: str) -> None:
    assert rules.strong_etag(value) == strong


@given(st.integers(0, 10**13), st.integers(0, 10**13), st.integers(1, 10**13))
def test_a_content_range_is_read_back(first: int, more: int, rest: int) -> None:
    last = first + more
    assert rules.parse_content_range(f"bytes {first}-{last}/{last + rest}") == (first, last, last + rest)
    assert rules.parse_content_range(f"bytes {first}-{last}/*") == (first, last, None)
    with pytest.raises(ValueError, match="Content-Range"):
        rules.parse_content_range(f"bytes {first}-{last}/{last}")


@pytest.mark.parametrize("value", [None, "", "bytes */100", "bytes 5-4/10", "items 0-1/2", "bytes 0-1"])
def test_a_content_range_that_is_none(value: str | None) -> None:
    with pytest.raises(ValueError, match="Content-Range"):
        rules.parse_content_range(value)


def test_linked_digest() -> None:
    assert rules.linked_digest(f'"{SHA256}"') == rules.linked_digest(SHA256.upper()) == SHA256
    assert rules.linked_digest('"0123456789abcdef0123456789abcdef01234567"') == ""
    assert rules.linked_digest(None) == ""


def test_pauses() -> None:
    assert [rules.backoff_s(attempt, 1) for attempt in (1, 2, 3, 7, 99)] == [1, 2, 4, 60, 60]
    assert rules.backoff_s(1, 1, 30) == 30
    assert rules.retry_after_s("120") == 120
    assert rules.retry_after_s("99999") == rules.RETRY_AFTER_LIMIT_S
    assert rules.retry_after_s("Wed, 21 Oct 2026 07:28:00 GMT") == rules.retry_after_s(None) == 0


@pytest.mark.parametrize(("status", "temporary"), [(408, True), (429, True), (503, True), (404, False), (416, False)])
def test_which_status_is_worth_another_try(status: int, temporary: bool) -> None:
    assert rules.status_is_temporary(status) is temporary


@pytest.mark.parametrize(
    ("status", "code", "has_token", "words"),
    [
        (401, "GatedRepo", False, ["gated", "comfyui_model_token (the role's model_store_token)", "no token was sent"]),
        (403, "", True, ["gated", "the token was sent"]),
        (401, "RepoNotFound", False, ["does not exist, or is private", "comfyui_model_token"]),
        (404, "RepoNotFound", True, ["check repo in"]),
        (404, "RevisionNotFound", True, ["check commit in"]),
        (404, "EntryNotFound", True, ["check path in"]),
        (404, "", False, ["check repo, commit and path"]),
        (451, "", False, ["HTTP 451."]),
    ],
)
def test_an_error_says_what_to_do(status: int, code: str, has_token: bool, words: list[str]) -> None:
    message = rules.explain_status(status, code, "https://u:secret@hub/x?sig=1", has_token=has_token)
    assert message.startswith("https://hub/x: HTTP ")
    assert all(word in message for word in words)


def tensors(**more: Any) -> bytes:
    return json.dumps(
        {"__metadata__": {}, "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, **more}
    ).encode()


@pytest.mark.parametrize(
    ("header", "data_b", "problem"),
    [
        (b"<html>", 12, "not JSON"),
        (b"[]", 12, "not a JSON object"),
        (tensors(), 11, "there are 11 bytes of data"),
        (tensors(), 13, "its tensors end at 12"),
        (tensors(b={"dtype": "F32", "shape": [1], "data_offsets": [12, 14]}), 14, "has 2 bytes"),
        (tensors(b={"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}), 12, "lies at -4"),
        (tensors(b={"dtype": "F32", "shape": [1]}), 12, "not described"),
        (tensors(b=[]), 12, "not described"),
    ],
)
def test_a_broken_safetensors_header(header: bytes, data_b: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        rules.check_safetensors(header, data_b)


def test_a_sound_safetensors_header() -> None:
    assert rules.check_safetensors(tensors(), 12) == 1
    assert rules.check_safetensors(tensors(b={"dtype": "F4", "shape": [9], "data_offsets": [12, 17]}), 17) == 2


@pytest.mark.parametrize(("first", "size_b"), [(b"1234567", 100), (struct.pack("<Q", 93), 100), (b"<html><h", 10**9)])
def test_an_impossible_header_length(first: bytes, size_b: int) -> None:
    with pytest.raises(ValueError, match="header would have"):
        rules.safetensors_header_b(first, size_b)


@given(st.integers(600_000, 2_000_000))
def test_the_stand_ins_sample_is_valid_at_any_size(size_b: int) -> None:
    content = hub.sample_bytes(size_b)
    assert len(content) == size_b
    length_b = rules.safetensors_header_b(content[:8], size_b)
    assert rules.check_safetensors(content[8 : 8 + length_b], size_b - 8 - length_b) == 4


def test_the_stand_ins_sample_is_the_same_each_time() -> None:
    assert hub.sample_bytes(700_000) == hub.sample_bytes(700_000)
    with pytest.raises(ValueError, match="at least"):
        hub.sample_bytes(1000)


def record(**more: Any) -> str:
    facts: dict[str, Any] = {"entry": ENTRY, "sha256": SHA256, "size_b": 1000, "mtime_ns": 5, "inode": 7}
    return rules.make_record(**{**facts, **more}, verified_at="2026-01-01T00:00:00+00:00", source="x")


FOUND = {"kind": "file", "link": None, "mode": "0644", "uid": 0, "gid": 0, "size_b": 1000, "mtime_ns": 5, "inode": 7}


@pytest.mark.parametrize("field", ["size_b", "mtime_ns", "inode"])
def test_a_record_speaks_for_one_file_only(field: str) -> None:
    for entry in (ENTRY, UNPROVED):
        assert rules.record_proves(record(), FOUND, entry)
        assert not rules.record_proves(record(), {**FOUND, field: 1}, entry)
        assert not rules.record_proves(record(**{field: 1}), FOUND, entry)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", "{}"])
def test_what_is_no_record_proves_nothing(text: str | None) -> None:
    for entry in (ENTRY, UNPROVED):
        assert not rules.record_proves(text, FOUND, entry)


@pytest.mark.parametrize(
    "change", [{"size_b": None}, {"size_b": "8"}, {"sha256": None}, {"sha256": "x"}, {"commit": "0" * 40}]
)
def test_half_a_record_keeps_no_word_of_the_hub(change: dict[str, Any]) -> None:
    noted = {**json.loads(record()), **change}
    assert rules.proof(json.dumps({key: value for key, value in noted.items() if value}), UNPROVED) == (0, "")
    assert rules.proof(json.dumps(noted), ENTRY) == (1000, SHA256)
    assert rules.proof(record(), UNPROVED) == (1000, SHA256)


def test_a_record_proves_nothing_for_another_wish() -> None:
    assert not rules.record_proves(record(), FOUND, {**ENTRY, "sha256": "0" * 64})
    assert not rules.record_proves(record(), FOUND, {**ENTRY, "size_b": 1001})
    # With a digest in the catalogue it is the bytes that count, not where they were found.
    assert rules.record_proves(record(), FOUND, {**ENTRY, "commit": "0" * 40})


@pytest.mark.parametrize("key", ["repo", "commit", "path"])
def test_without_a_digest_a_record_proves_the_file_that_it_names(key: str) -> None:
    assert not rules.record_proves(record(), FOUND, {**UNPROVED, key: "0" * 40})
    assert not rules.record_proves(record(sha256=""), FOUND, UNPROVED)


def test_agrees() -> None:
    assert rules.agrees({"a": 1, "b": 2}, {"a": 1})
    assert not rules.agrees({"a": 1}, {"a": 2})
    assert not rules.agrees({}, {"a": None})


def test_layout_and_ancestors() -> None:
    assert rules.layout("/m", ["vae", "loras/pixel"]) == ["/m", "/m/loras", "/m/loras/pixel", "/m/vae"]
    assert rules.ancestors("/srv/m") == ["/srv/m", "/srv", "/"]


ABSENT = {
    "kind": "absent",
    "link": None,
    "mode": "",
    "uid": None,
    "gid": None,
    "size_b": None,
    "mtime_ns": None,
    "inode": None,
}
FOLDER = {**ABSENT, "kind": "dir", "mode": "0755", "uid": 0, "gid": 0}


def plan(
    changes: dict[str, Any],
    *,
    free_b: int | None = 10**12,
    audit: bool = False,
    entry: dict[str, Any] = ENTRY,
    endpoint: str = "https://hub",
    given: dict[str, str] | None = None,
) -> dict[str, Any]:
    files = {
        "/srv/models": FOLDER,
        "/srv/models/checkpoints": FOLDER,
        "/srv/models/vae": FOLDER,
        DEST: FOUND,
        f"{DEST}.part": ABSENT,
        f"{DEST}.verified.json": {**FOUND, "content": record()},
        **changes,
    }
    output = "" if free_b is None else f"    Avail Mounted on File\n{free_b} /srv     /srv/models\n9 / /\n"
    return rules.plan_store(
        entries={"sdxl": entry},
        directory="/srv/models",
        folders=["vae"],
        endpoint=endpoint,
        given=given or {},
        owner_id=0,
        group_id=0,
        audit=audit,
        probe={"files": files, "commands": {"space": {"stdout": output}}},
    )


def test_nothing_is_to_do_where_the_record_speaks() -> None:
    idle = {"folders": [], "pending": [], "licences": [], "problems": [], "asks_hub": False}
    idle |= {"missing": []}
    assert plan({}) == plan({}, entry=UNPROVED) == idle
    # Nobody needs the stick any more.
    assert plan({}, endpoint="/usb") == plan({}, given={"sdxl": "/gone"}) == idle


@pytest.mark.parametrize(
    ("changes", "audit", "reason", "needed"),
    [
        ({DEST: ABSENT}, False, "fetch", "1000 bytes"),
        ({DEST: ABSENT, f"{DEST}.part": {**FOUND, "size_b": 400}}, False, "fetch", "600 bytes"),
        ({DEST: ABSENT, f"{DEST}.part": FOUND}, False, "fetch", ""),
        ({DEST: {**FOUND, "size_b": 999}}, False, "wrong size", "1000 bytes"),
        ({DEST: {**FOUND, "inode": 8}}, False, "not proved", ""),
        ({f"{DEST}.verified.json": {**ABSENT, "content": None}}, False, "not proved", ""),
        ({DEST: {**FOUND, "uid": 990}}, False, "permissions", ""),
        ({DEST: {**FOUND, "mode": "0666"}}, False, "permissions", ""),
        (
            {f"{DEST}.verified.json": {**FOUND, "content": record(entry={**ENTRY, "licence": "MIT"})}},
            False,
            "licence",
            "",
        ),
        ({}, True, "audit", ""),
    ],
)
def test_why_a_file_is_looked_at(changes: dict[str, Any], audit: bool, reason: str, needed: str) -> None:
    found = plan(changes, audit=audit, free_b=0)
    assert [(item["dest"], item["reason"]) for item in found["pending"]] == [(DEST, reason)]
    assert [f" {needed} are still to come" in text for text in found["missing"]] == [True] * bool(needed)
    assert found["asks_hub"] == (reason in ("fetch", "wrong size"))


def test_who_has_no_digest_asks_the_hub_for_it() -> None:
    unknown = {f"{DEST}.verified.json": {**ABSENT, "content": None}}
    assert plan(unknown)["asks_hub"] is False
    assert plan(unknown, entry=UNPROVED)["asks_hub"] is True
    assert plan({}, entry=UNPROVED, audit=True)["asks_hub"] is False
    # What the hub said once is kept, and may prove a file that was touched.
    assert plan({DEST: {**FOUND, "mtime_ns": 6}}, entry=UNPROVED)["asks_hub"] is False


@pytest.mark.parametrize("path", [DEST, "/srv/models/checkpoints", "/srv/models/vae"])
def test_a_symbolic_link_in_the_store_is_refused(path: str) -> None:
    before = {DEST: FOUND}.get(path, FOLDER)
    (problem,) = plan({path: {**before, "link": "/data/x"}})["problems"]
    assert f"{path} is a symbolic link to /data/x, expected no links below the folder of the models" in problem
    assert "Remove it; a model that lies elsewhere is named in comfyui_model_files" in problem


def test_the_folder_of_the_store_may_be_a_symbolic_link() -> None:
    assert plan({"/srv/models": {**FOLDER, "link": "/data/models"}})["problems"] == []


STICK = {"/usb/checkpoints/sd_xl_base_1.0.safetensors": FOUND, "/usb/sd_xl_base_1.0.safetensors": ABSENT}


def test_a_file_comes_from_the_host_where_it_is_said_to_lie() -> None:
    cache = f"/usb/models--stabilityai--stable-diffusion-xl-base-1.0/snapshots/{ENTRY['commit']}/{ENTRY['path']}"
    found = plan({DEST: ABSENT, **STICK, cache: ABSENT}, endpoint="/usb")
    assert (found["asks_hub"], found["problems"]) == (False, [])
    assert found["pending"][0]["sources"] == [*STICK, cache]
    found = plan({DEST: ABSENT, "/data/x": FOUND}, given={"sdxl": "/data/x"}, endpoint="/usb")
    assert (found["asks_hub"], found["problems"], found["missing"]) == (False, [], [])
    assert found["pending"][0]["sources"] == ["/data/x"]
    # It may be linked, and then takes no space.
    assert plan({DEST: ABSENT, "/data/x": FOUND}, given={"sdxl": "/data/x"}, free_b=0)["missing"] == []
    (problem,) = plan({DEST: ABSENT, "/data/x": ABSENT}, given={"sdxl": "/data/x"})["problems"]
    assert "there is no /data/x; expected a file of 1000 bytes. Correct comfyui_model_files" in problem
    wrong = {path: {**ABSENT, "kind": "file", "size_b": 7} for path in [*STICK, cache]}
    (problem,) = plan({DEST: ABSENT, **wrong}, endpoint="/usb")["problems"]
    assert f"{next(iter(STICK))} has 7 bytes" in problem
    assert "or correct comfyui_model_endpoint" in problem


def test_a_licence_is_shown_until_it_is_recorded() -> None:
    shown = ["sdxl: CreativeML Open RAIL++-M (https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0)"]
    assert plan({DEST: ABSENT, f"{DEST}.verified.json": {**ABSENT, "content": None}})["licences"] == shown
    assert plan({DEST: {**FOUND, "inode": 8}})["licences"] == []
    assert plan({DEST: {**FOUND, "inode": 8}}, entry={**ENTRY, "licence": "MIT"})["licences"] != []


def test_folders_that_are_missing_or_foreign() -> None:
    assert plan({"/srv/models/vae": ABSENT})["folders"] == ["/srv/models/vae"]
    assert plan({"/srv/models/checkpoints": {**FOLDER, "mode": "0777"}})["folders"] == ["/srv/models/checkpoints"]
    # No wanted model lies in it.
    assert plan({"/srv/models/vae": {**FOLDER, "mode": "0775", "uid": 1000}})["folders"] == []
    assert plan({"/srv/models": {**FOLDER, "uid": 990}})["folders"] == ["/srv/models"]
    assert plan({"/srv/models/checkpoints": ABSENT})["folders"] == ["/srv/models/checkpoints"]


def test_missing_space_is_told_only_where_something_is_to_come() -> None:
    margin_b = rules.SPACE_MARGIN_B
    assert plan({DEST: ABSENT}, free_b=1000 + margin_b)["missing"] == []
    (missing,) = plan({DEST: ABSENT}, free_b=999 + margin_b)["missing"]
    assert missing.startswith("1 bytes of space are missing on the filesystem of /srv: 1000 bytes are still to come, ")
    assert plan({}, free_b=0)["missing"] == []
    assert plan({DEST: ABSENT}, free_b=None)["missing"] == []


def test_space_is_counted_by_filesystem() -> None:
    output = "Avail Mounted on File\n9 / /m\n99 / /\n{} /mnt/my disk /m/loras\n"
    needed_b = {"/m/loras": 600, "/m/loras/pixel": 400}
    enough_b = rules.SPACE_MARGIN_B + 1000
    assert rules.missing_space(needed_b, output.format(enough_b)) == []
    (missing,) = rules.missing_space(needed_b, output.format(enough_b - 1))
    assert missing.startswith("1 bytes of space are missing on the filesystem of /mnt/my disk: 1000 bytes are")
    assert len(rules.missing_space({**needed_b, "/m/vae": 1}, output.format(0))) == 2
    assert rules.missing_space(needed_b, "df: /m: No such file or directory") == []


@pytest.mark.parametrize(
    ("header", "span"),
    [("", None), ("bytes=0-", (0, 99)), ("bytes=5-9", (5, 9)), ("bytes=90-200", (90, 99)), ("bytes=-10", (90, 99)),
     ("bytes=0-1,5-6", None), ("items=0-1", None), ("bytes=-", None)],
)  # fmt: skip
def test_the_stand_in_reads_ranges(header: str, span: tuple[int, int] | None) -> None:
    assert hub.parse_range(header, 100) == span


def test_the_stand_in_refuses_a_range_outside() -> None:
    with pytest.raises(ValueError, match="outside"):
        hub.parse_range("bytes=100-", 100)
