"""A package source on trial: what apt is told, and what it answers."""

from __future__ import annotations

import pytest

from apt_source import complaint, isolated, offered_versions, signed_by


def test_the_key_is_the_one_on_trial() -> None:
    sources = "# managed\nTypes: deb\nURIs: http://example.com\nSigned-By: /etc/apt/keyrings/a.asc\n"
    assert signed_by(sources, "/tmp/k").endswith("\nSigned-By: /tmp/k\n")  # noqa: S108 - a name only


def test_everything_that_apt_writes_is_in_the_folder() -> None:
    words = isolated("/x")
    assert words[:2] == ["-c", "/x/no-hooks.conf"]
    options = dict(word.split("=", 1) for word in words[3::2])
    places = {name: value for name, value in options.items() if name.startswith("Dir::")}
    assert places.pop("Dir::Etc::sourceparts") == "/dev/null"
    assert all(value.startswith("/x/") for value in places.values())


def test_versions_are_read_once_each() -> None:
    row = " docker-ce | {} | http://example.com/debian trixie/stable amd64 Packages\n"
    listing = row.format("5:29.8.2-1") + row.format("5:29.8.1-1") + row.format("5:29.8.1-1") + "N: a note\n"
    assert offered_versions(listing) == ["5:29.8.2-1", "5:29.8.1-1"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            "Err:1 http://x\n  Could not connect\nE: Failed to fetch http://x\n",
            "Err:1 http://x E: Failed to fetch http://x",
        ),
        ("W: something\n", "W: something"),
        ("", "no message"),
    ],
)
def test_what_apt_complains_of_is_said(output: str, words: str) -> None:
    assert complaint(output) == words
