"""A package source on trial: what apt is told, and what it says. Pure functions; the module apt_source_try asks."""

from __future__ import annotations

import re

# Programs of the host that apt runs around an update: some write outside of the folder, or ask for minutes. A list is
# emptied by a file only, and by one that apt reads after the host's own.
NO_HOOKS = "".join(f"#clear APT::Update::{name};\n" for name in ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success"))


def isolated(folder: str) -> list[str]:
    """Options with which apt sees the one source in `folder` and nothing of the host's, and writes only there."""
    return [
        "-c",
        f"{folder}/no-hooks.conf",
        "-o",
        f"Dir::Etc::sourcelist={folder}/try.sources",
        "-o",
        "Dir::Etc::sourceparts=/dev/null",
        "-o",
        f"Dir::State::lists={folder}/lists",
        "-o",
        f"Dir::Cache={folder}/cache",
        # Its own user may not enter this folder.
        "-o",
        "APT::Sandbox::User=root",
        "-o",
        "APT::Update::Error-Mode=any",
        "-o",
        "Acquire::Retries=1",
    ]


def signed_by(sources: str, key: str) -> str:
    """A source in the deb822 form, with another file for its key."""
    return re.sub(r"(?m)^Signed-By:.*$", f"Signed-By: {key}", sources)


def offered_versions(madison: str) -> list[str]:
    """The versions in the output of `apt-cache madison`, newest first, each once."""
    rows = [line.split("|") for line in madison.splitlines()]
    return list(dict.fromkeys(row[1].strip() for row in rows if len(row) == 3))


def complaint(output: str) -> str:
    """What apt complains of: its errors, or its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:")) or "NO_PUBKEY" in line]
    return " ".join(errors or lines[-1:]) or "no message"
