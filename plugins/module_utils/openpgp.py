"""Public keys in the OpenPGP format: which primary keys a file holds, by fingerprint. Pure functions.

Written anew from what was understood, so that a program that reads the result sees no other key in it.
Source: RFC 4880 sections 4.2, 5.5.4, 6 and 12.2.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

BLOCK = re.compile(
    rb"\s*-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[\w-]+: .*\r?\n)*\r?\n"
    rb"([A-Za-z0-9+/=\r\n]+?)(?:\n=[A-Za-z0-9+/]{4})?"
    rb"\r?\n-----END PGP PUBLIC KEY BLOCK-----\s*"
)
PUBLIC_KEY = 6
# Signatures, subkeys, user names and attributes, marker and trust: what a file of public keys may hold beside them.
BESIDE = {2, 10, 12, 13, 14, 17}


class KeyFileError(ValueError):
    """The file is no file of public keys that can be taken; the message says why."""


def dearmor(data: bytes) -> bytes:
    """The packets in a key file, armoured or not."""
    if b"-----BEGIN" not in data:
        return data
    block = BLOCK.fullmatch(data)
    if not block:
        raise KeyFileError("it is not one armoured block of public keys")
    try:
        return base64.b64decode(b"".join(block[1].split()), validate=True)
    except binascii.Error as error:
        raise KeyFileError(f"its armour cannot be read: {error}") from error


def armor(packets: bytes) -> str:
    """Packets as one armoured block."""
    text = base64.b64encode(packets).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    head, tail = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"
    return "\n".join([head, "", *lines, tail, ""])


def _length(packets: bytes, at: int, *, new_format: bool, kind: int) -> tuple[int, int]:
    """Length of the body that follows, and where it begins. Lengths that are left open are refused."""
    if not new_format:
        if kind == 3:
            raise KeyFileError("a packet in it has no length")
        size = 1 << kind
        return int.from_bytes(packets[at : at + size], "big"), at + size
    first = packets[at]
    if first < 192:
        return first, at + 1
    if first < 224:
        return ((first - 192) << 8) + packets[at + 1] + 192, at + 2
    if first == 255:
        return int.from_bytes(packets[at + 1 : at + 5], "big"), at + 5
    raise KeyFileError("a packet in it comes in parts")


def primary_fingerprints(packets: bytes) -> list[str]:
    """Fingerprints of all primary keys, 40 capital hex digits each. Raises KeyFileError where anything is unclear."""
    found = []
    at = 0
    while at < len(packets):
        tag = packets[at]
        if not tag & 0x80:
            raise KeyFileError("it is no file of public keys")
        new_format = bool(tag & 0x40)
        kind = tag & 0x3F if new_format else (tag & 0x3F) >> 2
        try:
            length, at = _length(packets, at + 1, new_format=new_format, kind=tag & 3)
        except IndexError as error:
            raise KeyFileError("it ends too early") from error
        body = packets[at : at + length]
        if len(body) != length:
            raise KeyFileError("it ends too early")
        at += length
        if kind == PUBLIC_KEY:
            if body[:1] != b"\x04":
                raise KeyFileError("a key in it is not of version 4")
            digest = hashlib.sha1(b"\x99" + length.to_bytes(2, "big") + body, usedforsecurity=False)
            found.append(digest.hexdigest().upper())
        elif kind not in BESIDE:
            raise KeyFileError(f"it holds a packet of kind {kind}, which belongs to no public key")
    return found


def read_key(data: bytes, fingerprint: str) -> str:
    """The armoured key file, if the key of this fingerprint is the only primary key in `data`; raises KeyFileError."""
    packets = dearmor(data)
    found = primary_fingerprints(packets)
    if found != [fingerprint]:
        raise KeyFileError(f"it has the fingerprint {', '.join(found) or 'of no key at all'}")
    return armor(packets)


def holds_key(text: str | None, fingerprint: str) -> bool:
    """Whether a key file on a host holds the key of this fingerprint and no other."""
    try:
        return bool(read_key((text or "").encode(), fingerprint))
    except KeyFileError:
        return False
