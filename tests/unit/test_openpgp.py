"""Keys that apt is to trust: their fingerprints, and that nothing comes along with them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openpgp import KeyFileError, armor, dearmor, holds_key, primary_fingerprints, read_key

needs_gpg = pytest.mark.skipif(not shutil.which("gpg"), reason="needs gpg to make keys")


def packet(kind: int, body: bytes) -> bytes:
    """A packet of the old format with two octets of length."""
    return bytes([0x80 | kind << 2 | 1]) + len(body).to_bytes(2, "big") + body


KEY = packet(6, b"\x04one")
OTHER = packet(6, b"\x04two")


@pytest.fixture(scope="module", name="gpg_key")
def make_gpg_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A key with a subkey that gpg made, and the fingerprint that gpg gives it."""
    home = tmp_path_factory.mktemp("gpg")
    home.chmod(0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-generate-key", "a <a@example.com>", "rsa2048", "sign", "never"], check=True)
    shown = subprocess.run([*gpg, "--list-keys", "--with-colons"], check=True, capture_output=True, text=True).stdout
    fingerprint = re.findall(r"(?m)^fpr:+([0-9A-F]{40}):", shown)[0]
    subprocess.run([*gpg, "--quick-add-key", fingerprint, "rsa2048", "encrypt", "never"], check=True)
    for name, options in (("key.asc", ["--armor"]), ("key.gpg", [])):
        done = subprocess.run([*gpg, *options, "--export"], check=True, capture_output=True)
        (home / name).write_bytes(done.stdout)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
    return home, fingerprint


@needs_gpg
@pytest.mark.parametrize("name", ["key.asc", "key.gpg"])
def test_the_fingerprint_is_the_one_that_gpg_gives(gpg_key: tuple[Path, str], name: str) -> None:
    home, fingerprint = gpg_key
    text = read_key((home / name).read_bytes(), fingerprint)
    assert dearmor(text.encode()) == (home / "key.gpg").read_bytes()
    assert holds_key(text, fingerprint)
    shown = subprocess.run(
        ["gpg", "--homedir", str(home), "--no-autostart", "--show-keys", "--with-colons"],
        input=text.encode(),
        check=True,
        capture_output=True,
    )
    assert fingerprint.encode() in shown.stdout


def test_every_primary_key_is_seen() -> None:
    first, second = primary_fingerprints(KEY + packet(13, b"name") + packet(2, b"sig") + OTHER)
    assert [first] == primary_fingerprints(KEY)
    with pytest.raises(KeyFileError, match=f"it has the fingerprint {first}, {second}"):
        read_key(KEY + OTHER, first)
    assert not holds_key(armor(KEY + OTHER), first)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the fingerprint of no key at all"),
        (b"<html>login</html>", "no file of public keys"),
        (armor(KEY).encode() + armor(OTHER).encode(), "not one armoured block"),
        (b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nAA==\n-----END PGP PRIVATE KEY BLOCK-----\n", "not one armoured"),
        (KEY[:-1], "ends too early"),
        (b"\xc6", "ends too early"),
        (b"\x9b" + KEY[3:], "no length"),
        (b"\xc6\xe1" + b"x" * 3, "in parts"),
        (packet(6, b"\x05five"), "not of version 4"),
        (KEY + packet(5, b"secret"), "packet of kind 5"),
        (armor(KEY).replace("\n\n", "\n\n=A", 1).encode(), "cannot be read"),
    ],
)
def test_what_is_unclear_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(KeyFileError, match=words):
        read_key(data, "0" * 40)


@given(st.binary(max_size=80))
def test_anything_is_read_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        primary_fingerprints(dearmor(data))
    except KeyFileError:
        return


@given(st.binary(max_size=200))
def test_armour_comes_off_as_it_went_on(packets: bytes) -> None:
    if b"-----BEGIN" not in packets and packets:
        assert dearmor(armor(packets).encode()) == packets


@pytest.mark.parametrize("header", [b"\xc6\x04", b"\xc6\xff\x00\x00\x00\x04", b"\x98\x04", b"\x9a\x00\x00\x00\x04"])
def test_every_form_of_a_length_is_read(header: bytes) -> None:
    assert primary_fingerprints(header + KEY[3:]) == primary_fingerprints(KEY)
