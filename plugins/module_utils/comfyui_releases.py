"""Releases of the service as files: which one runs, which have proved themselves, which are bad, where to go back to.

`releases/ID.json` is a release, the link `current` names the one that runs, `state.json` says what became of each.
Every change is one rename: whatever is interrupted, the host has the old state or the new one. Standard library only:
this runs on the hosts.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = Path("/etc/comfyui")
FRESH_S = 3600
# How many ids the state remembers of each kind, and how much of a reason.
REMEMBERED = 20
REASON_CHARS = 500


class ReleaseError(Exception):
    """What is wrong, in one sentence that says what to type."""


def write_whole(path: Path, text: str) -> None:
    """Put a text in place in one step, on the disk before the name points at it."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.chmod(fresh, 0o644)
    os.replace(fresh, path)


def now() -> str:
    """The time, for people and for sorting."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Releases:
    """The releases below a folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def path(self, identity: str) -> Path:
        """The file of a release."""
        return self.folder / "releases" / f"{identity}.json"

    @property
    def current(self) -> str:
        """The release that is to run; empty where none was chosen yet."""
        try:
            return Path(os.readlink(self.folder / "current")).stem
        except FileNotFoundError:
            return ""

    def load(self, identity: str) -> dict[str, Any]:
        """A release, with its id."""
        path = self.path(identity)
        try:
            release: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError as error:
            there = ", ".join(sorted(found.stem for found in path.parent.glob("*.json"))) or "none"
            raise ReleaseError(
                f"There is no release {identity or 'to run'} on this host, expected one of: {there}. "
                "Run ansible-playbook site.yml for this host."
            ) from error
        except ValueError as error:
            raise ReleaseError(
                f"{path} is not valid JSON ({error}). Run ansible-playbook site.yml for this host."
            ) from error
        return {**release, "id": identity}

    def user_ids(self) -> set[int]:
        """The numbers that the users of the releases on this host have."""
        found = set()
        for path in (self.folder / "releases").glob("*.json"):
            with contextlib.suppress(ReleaseError, KeyError):
                found.add(int(self.load(path.stem)["user_id"]))
        return found

    def state(self) -> dict[str, Any]:
        """`proved`: ids, the latest last. `bad`: id to when and why."""
        try:
            found = json.loads((self.folder / "state.json").read_text())
        except (FileNotFoundError, ValueError):
            found = {}
        return {"proved": list(found.get("proved", [])), "bad": dict(found.get("bad", {}))}

    def _save(self, state: dict[str, Any]) -> None:
        write_whole(self.folder / "state.json", json.dumps(state, indent=2, sort_keys=True) + "\n")

    def point_at(self, identity: str) -> None:
        """Make a release the one that is to run."""
        fresh = self.folder / ".current.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(f"releases/{identity}.json")
        os.replace(fresh, self.folder / "current")

    def mark_proved(self, identity: str) -> None:
        """Note that a release has rendered; it is the one to go back to from the next."""
        state = self.state()
        if state["proved"][-1:] == [identity] and identity not in state["bad"]:
            return
        state["proved"] = [*(one for one in state["proved"] if one != identity), identity][-REMEMBERED:]
        state["bad"].pop(identity, None)
        self._save(state)

    def mark_bad(self, identity: str, why: str) -> None:
        """Note why a release is not to be run again."""
        state = self.state()
        state["bad"].pop(identity, None)
        newest = sorted(state["bad"].items(), key=lambda item: str(item[1]["when"]))[-REMEMBERED + 1 :]
        state["bad"] = {**dict(newest), identity: {"when": now(), "why": why[-REASON_CHARS:]}}
        state["proved"] = [one for one in state["proved"] if one != identity]
        self._save(state)

    def before(self, identity: str) -> str:
        """The release to go back to from this one: the last that proved itself and is still there; empty for none."""
        for one in reversed(self.state()["proved"]):
            if one != identity and self.path(one).exists():
                return str(one)
        return ""

    def forget(self, kept: int) -> list[str]:
        """Remove the files of all releases but the current one and the `kept` last ones before it. Names them.

        One that was written a moment ago and that nobody tried yet is of a run that waits for its turn.
        """
        state = self.state()
        proved = [one for one in state["proved"] if one != self.current]
        wanted = {self.current, *(proved[-kept:] if kept else [])}
        tried = {*state["proved"], *state["bad"]}
        old = time.time() - FRESH_S
        gone = [
            path
            for path in sorted((self.folder / "releases").glob("*.json"))
            if path.stem not in wanted and (path.stem in tried or path.stat().st_mtime < old)
        ]
        for path in gone:
            path.unlink()
        return [path.stem for path in gone]
