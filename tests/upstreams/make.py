#!/usr/bin/python3
"""Make what the stand-in upstreams serve, and write down what a test needs to know of it.

Runs once, while their image is built. The commit is the same each time: authors and dates are fixed.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path("/srv/upstreams")
SOURCE = Path("/usr/local/src/comfyui")
TAG = "v0.28.1"
DATE = "2026-01-01T00:00:00Z"
IDENTITY = {
    "GIT_AUTHOR_NAME": "stand-in",
    "GIT_AUTHOR_EMAIL": "standin@example.com",
    "GIT_AUTHOR_DATE": DATE,
    "GIT_COMMITTER_NAME": "stand-in",
    "GIT_COMMITTER_EMAIL": "standin@example.com",
    "GIT_COMMITTER_DATE": DATE,
}


def git(*arguments: str, folder: Path = SOURCE) -> str:
    """Run git and return what it printed."""
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **IDENTITY},
    )
    return done.stdout.strip()


def make_repository() -> str:
    """The ComfyUI stand-in as a bare repository that also serves single commits, as GitHub does; returns the commit."""
    git("init", "--quiet", "--initial-branch=master")
    git("add", "--all")
    git("commit", "--quiet", "--message=Stand-in for ComfyUI 0.28.1")
    git("tag", TAG)
    bare = ROOT / "git" / "comfyui.git"
    bare.parent.mkdir(parents=True)
    git("clone", "--quiet", "--bare", str(SOURCE), str(bare))
    git("config", "uploadpack.allowAnySHA1InWant", "true", folder=bare)
    return git("rev-parse", TAG)


def make_model() -> dict[str, object]:
    """A small stand-in checkpoint on the hub; returns its catalogue entry's size and digest."""
    made = subprocess.run(
        ["python3", "/usr/local/lib/upstreams/hub.py", "--make-sample", "--root", str(ROOT / "hub")],
        check=True,
        capture_output=True,
        text=True,
    )
    entry: dict[str, object] = json.loads(made.stdout)
    return entry


def main() -> None:
    facts = {
        "comfyui_commit": make_repository(),
        "model": make_model(),
        "docker": json.loads((ROOT / "docker" / "docker.json").read_text()),
        "toolkit": json.loads((ROOT / "apt" / "toolkit.json").read_text()),
    }
    (ROOT / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
