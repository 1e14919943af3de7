"""model_store_file: files of the host as a source, the hub's word against the catalogue's, mirrors, proxies, TLS."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.model_store import (
    CONTENT,
    GATED,
    OTHER_SHA256,
    SHA256,
    SIZE_B,
    TOKEN,
    Hub,
    arguments,
    fail,
    names,
    snapshot,
    start_hub,
    succeed,
)
from upstreams.hub import SAMPLE_COMMIT, SAMPLE_REPO

NOBODY = "http://127.0.0.1:1"
OWN = {"owner": str(os.getuid()), "group": str(os.getgid()), "mode": "0644"}


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    """A file of the host that is the published one, and not the store's: its mode is another."""
    path = tmp_path / "stick" / "x.safetensors"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    path.chmod(0o600)
    return path


def test_a_file_of_the_host_is_copied_and_nobody_is_asked(hub: Hub, dest: Path, stick: Path) -> None:
    before = snapshot(stick.parent)
    sources = [str(stick.with_name("not-there")), str(stick)]
    asked = {"sources": sources, "endpoint": NOBODY, "hub_dir": "/nonexistent/hub", **OWN}
    assert succeed(hub, dest, **asked, _ansible_check_mode=True)["outcome"] == "copied"
    answer = succeed(hub, dest, **asked)
    assert (answer["changed"], answer["outcome"], answer["bytes_fetched"]) == (True, "copied", SIZE_B)
    assert dest.read_bytes() == CONTENT
    assert dest.stat().st_ino != stick.stat().st_ino
    assert json.loads(Path(answer["record"]).read_text())["source"] == str(stick)
    assert snapshot(stick.parent) == before
    assert succeed(hub, dest, **asked)["changed"] is False


def test_a_file_that_could_be_the_stores_own_is_linked(hub: Hub, dest: Path, stick: Path) -> None:
    stick.chmod(0o644)
    Path(f"{dest}.part").write_bytes(CONTENT[:1000])
    before = stick.stat()
    asked = {"sources": [str(stick)], "endpoint": NOBODY, **OWN}
    assert succeed(hub, dest, **asked, _ansible_check_mode=True)["outcome"] == "linked"
    answer = succeed(hub, dest, **asked)
    assert (answer["outcome"], answer["bytes_fetched"]) == ("linked", 0)
    assert dest.stat().st_ino == stick.stat().st_ino
    assert (stick.stat().st_mtime_ns, stick.stat().st_mode) == (before.st_mtime_ns, before.st_mode)
    assert names(dest) == ["", ".verified.json"]
    stick.unlink()
    assert succeed(hub, dest, **asked)["changed"] is False


@pytest.mark.parametrize("mode", [0o600, 0o644], ids=["copied", "linked"])
def test_a_wrong_file_of_the_host_is_named_and_left(hub: Hub, dest: Path, stick: Path, mode: int) -> None:
    stick.write_bytes(bytes(SIZE_B))
    stick.chmod(mode)
    before = snapshot(stick.parent)
    message = fail(hub, dest, sources=[str(stick)], endpoint=NOBODY, **OWN)
    assert message.startswith(
        f"{stick} has the SHA-256 {hashlib.sha256(bytes(SIZE_B)).hexdigest()}, the catalogue says"
    )
    assert "comfyui_model_files" in message
    assert snapshot(stick.parent) == before
    assert names(dest) == []


def test_a_copy_that_was_cut_off_is_continued(hub: Hub, dest: Path, stick: Path) -> None:
    Path(f"{dest}.part").write_bytes(CONTENT[:500_000])
    answer = succeed(hub, dest, sources=[str(stick)], endpoint=NOBODY)
    assert (answer["bytes_kept"], answer["bytes_fetched"]) == (500_000, 200_000)
    assert dest.read_bytes() == CONTENT


def test_what_is_at_none_of_the_paths_is_said(hub: Hub, dest: Path, stick: Path) -> None:
    stick.write_bytes(CONTENT[:-1])
    message = fail(hub, dest, sources=["/a", str(stick)], endpoint=NOBODY)
    assert message.startswith(f"There is no file of {SIZE_B} bytes at /a or {stick}.")
    assert names(dest) == []


def test_a_link_gives_the_file_that_it_leads_to(hub: Hub, dest: Path, stick: Path) -> None:
    stick.chmod(0o644)
    link = stick.with_name("link.safetensors")
    link.symlink_to(stick)
    assert succeed(hub, dest, sources=[str(link)], endpoint=NOBODY, **OWN)["outcome"] == "linked"
    assert not dest.is_symlink()


# The hub's word against the catalogue's.


@pytest.mark.parametrize("change", [{"sha256": OTHER_SHA256}, {"path": "nothing.safetensors"}])
def test_a_good_file_survives_a_wrong_catalogue(hub: Hub, dest: Path, change: dict[str, object]) -> None:
    dest.write_bytes(CONTENT)
    before = snapshot(dest.parent)
    if "path" in change:
        change = {**change, "sha256": OTHER_SHA256}
    message = fail(hub, dest, **change)
    assert f"{dest} has the SHA-256 {SHA256}, not the catalogue's, and was left as it is" in message
    assert "the catalogue" in message
    after = snapshot(dest.parent)
    assert after.pop(str(dest.parent))[0] == before.pop(str(dest.parent))[0]
    assert after == before
    assert hub.content_log() == []


def test_a_file_is_not_judged_before_the_hub_can_be_asked(hub: Hub, dest: Path, tmp_path: Path) -> None:
    dest.write_bytes(CONTENT)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    message = fail(hub, dest, sha256=OTHER_SHA256, hub_dir=str(tmp_path / "mine"))
    assert "expected a folder for huggingface_hub alone" in message
    assert "was left as it is" in message
    assert names(dest) == [""]
    # Here the hub is asked, and keeps its word to itself.
    message = fail(hub, dest, sha256=OTHER_SHA256, repo=GATED)
    assert "comfyui_model_token" in message
    assert names(dest) == [""]


def test_a_good_file_survives_a_wrong_size_in_the_catalogue(hub: Hub, dest: Path) -> None:
    dest.write_bytes(CONTENT)
    message = fail(hub, dest, size_b=SIZE_B - 1)
    assert f"{SIZE_B} bytes, the catalogue says {SIZE_B - 1}. It was left as it is. Correct size_b" in message
    assert dest.read_bytes() == CONTENT
    assert hub.log() == []


def test_a_file_that_was_proved_before_needs_no_second_opinion(hub: Hub, dest: Path) -> None:
    succeed(hub, dest)
    dest.write_bytes(bytes(SIZE_B))
    message = fail(hub, dest, endpoint=NOBODY, attempts=1)
    assert "The wrong file that was there is now" in message
    assert names(dest)[0].startswith(".rejected-")


def test_without_a_digest_the_hubs_word_is_taken_once(hub: Hub, dest: Path) -> None:
    asked = {"sha256": "", "size_b": 0}
    predicted = succeed(hub, dest, **asked, _ansible_check_mode=True)
    assert (predicted["outcome"], predicted["sha256"]) == ("fetched", "")
    assert hub.log() == []
    answer = succeed(hub, dest, **asked)
    assert (answer["outcome"], answer["sha256"]) == ("fetched", SHA256)
    assert dest.read_bytes() == CONTENT
    assert json.loads(Path(answer["record"]).read_text())["sha256"] == SHA256
    hub.ask("DELETE", "/control/log")
    again = succeed(hub, dest, **asked)
    assert (again["changed"], again["sha256"]) == (False, SHA256)
    os.utime(dest, ns=(1, 1))
    assert succeed(hub, dest, **asked, endpoint=NOBODY)["outcome"] == "adopted"
    dest.write_bytes(bytes(SIZE_B))
    assert succeed(hub, dest, **asked)["found"] == "wrong"
    assert succeed(hub, dest, **asked, audit=True)["changed"] is False


@pytest.mark.parametrize("missing", ["size_b", "sha256"])
def test_without_a_digest_half_a_record_is_none(hub: Hub, dest: Path, missing: str) -> None:
    asked = {"sha256": "", "size_b": 0}
    record = Path(succeed(hub, dest, **asked)["record"])
    noted = json.loads(record.read_text())
    del noted[missing]
    record.write_text(json.dumps(noted))
    assert succeed(hub, dest, **asked)["outcome"] == "adopted"
    assert json.loads(record.read_text())["sha256"] == SHA256


def test_without_a_digest_a_file_that_is_there_is_adopted_by_the_hubs(hub: Hub, dest: Path) -> None:
    dest.write_bytes(CONTENT)
    hub.fault("status", status=503, match="*", times=1)
    answer = succeed(hub, dest, sha256="", size_b=0)
    assert answer["outcome"] == "adopted"
    assert hub.content_log() == []


def test_a_hub_that_names_no_digest_is_not_enough(hub: Hub, dest: Path) -> None:
    (hub.root / SAMPLE_REPO / SAMPLE_COMMIT / "notes.txt").write_text("x")
    assert "the hub names no SHA-256 for this file" in fail(
        hub, dest, path="notes.txt", sha256="", size_b=0, allow_pickle=True
    )
    # An entity tag is not the hub's word on a digest, however long it is.
    message = fail(hub, dest, path="notes.txt", sha256=OTHER_SHA256, size_b=1, allow_pickle=True)
    assert "the 1 bytes that came have the SHA-256" in message


# The way to the hub.


def test_the_token_is_in_no_command_line_environment_or_file(
    hub: Hub, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_whoever_runs_this")
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    succeed(hub, dest, token=TOKEN)
    seen = (hub.client / "seen").read_text()
    assert f"-I {hub.client}/answer.py" in seen
    assert TOKEN not in seen
    assert "hf_of_whoever" not in seen
    for path in hub.client.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


def test_an_address_that_ran_out_is_asked_for_again(hub: Hub, dest: Path) -> None:
    # The same machine under another name is another host.
    process, url = start_hub(hub.root, "--cdn", hub.url.replace("127.0.0.1", "localhost"))
    front = Hub(url, hub.root, hub.client)
    try:
        hub.fault("status", status=403, times=2, method="GET")
        answer = succeed(front, dest)
        assert dest.read_bytes() == CONTENT
        assert answer["bytes_fetched"] == SIZE_B
        assert len(front.log()) == 3
        dest.unlink()
        hub.fault("status", status=403, method="GET")
        message = fail(front, dest, attempts=2)
        assert "HTTP 403 from where the hub keeps its files. Gave up after 2 attempts" in message
        assert "comfyui_proxy" in message
    finally:
        process.terminate()
        process.wait(10)


def test_a_mirror_with_a_password(hub: Hub, dest: Path) -> None:
    answer = succeed(hub, dest, endpoint=hub.url.replace("http://", "http://user:hunter22@"))
    assert dest.read_bytes() == CONTENT
    assert {line["authorization"] for line in hub.log()} == {True}
    assert "hunter22" not in json.dumps(answer)
    for path in dest.parent.iterdir():
        assert b"hunter22" not in path.read_bytes()


def test_everything_goes_through_the_proxy(hub: Hub, dest: Path) -> None:
    # The stand-in takes the address of a request whole as well, which makes it a proxy to itself.
    succeed(hub, dest, endpoint="http://hub.example.com", proxy=hub.url)
    assert dest.read_bytes() == CONTENT
    assert {line["host"] for line in hub.log()} == {"hub.example.com"}


def test_a_hub_that_is_not_there_says_which_variables_lead_around(hub: Hub, dest: Path) -> None:
    message = fail(hub, dest, endpoint=NOBODY, attempts=2)
    assert "Connection refused" in message
    assert "set comfyui_model_endpoint or comfyui_proxy" in message


@pytest.fixture
def secure(hub: Hub, tmp_path: Path) -> Iterator[tuple[Hub, Path]]:
    """The stand-in behind TLS, and the certificate that it signed itself."""
    both, certificate = tmp_path / "both.pem", tmp_path / "ca.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=stand-in", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_text((tmp_path / "key.pem").read_text() + certificate.read_text())
    process, url = start_hub(hub.root, "--certificate", str(both))
    yield Hub(url, hub.root, hub.client), certificate
    process.terminate()
    process.wait(10)


def test_a_certificate_of_the_sites_own_is_trusted_when_it_is_named(secure: tuple[Hub, Path], dest: Path) -> None:
    hub, certificate = secure
    message = fail(hub, dest)
    assert "comfyui_extra_ca_bundle" in message
    assert "Gave up" not in message
    assert "cannot be used" in fail(hub, dest, ca_bundle="/nonexistent.pem")
    binary = certificate.with_suffix(".der")
    subprocess.run(
        ["openssl", "x509", "-in", certificate, "-outform", "der", "-out", binary], check=True, capture_output=True
    )
    assert "PEM" in fail(hub, dest, ca_bundle=str(binary))
    succeed(hub, dest, ca_bundle=str(certificate))
    assert dest.read_bytes() == CONTENT


def test_arguments_of_the_sources_are_refused(hub: Hub, dest: Path) -> None:
    assert "without a sha256" in fail(hub, dest, sources=["/x"], sha256="", size_b=0)
    assert arguments(hub, dest)["endpoint"] == hub.url
