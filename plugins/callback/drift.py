"""One table of what a run found other than it should be, resource by resource, and what became of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any

from ansible import constants, context
from ansible.plugins.callback import CallbackBase

sys.path.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

from daemon_json import mask_credentials

DOCUMENTATION = r"""
name: drift
type: aggregate
short_description: Say in one table what had drifted, and what became of it
description:
  - Writes, for each host, every resource that the run changed, or in check mode would change, as JSON, and prints the
    same as a table at the end.
  - A resource is what a role keeps as it should be, such as a file, a package and its hold, a unit, a key of the Docker
    daemon file, an account, an image, a release or a model. What only follows from another, as a restart, is none.
  - Found is what the role's probe (M(host_probe)) saw before the change.
  - Addresses stand there without their logins.
  - Of a host on which the run failed there may be more, and without a row there is no file.
options:
  folder:
    description: Below which folder to write HOST/drift.json, from the first task of a host on.
    type: path
    default: artifacts
    env:
      - name: DRIFT_FOLDER
    ini:
      - section: callback_drift
        key: folder
  playbooks:
    description: The playbooks that this is for. Nothing is written or printed for another.
    type: list
    elements: str
    default: [site.yml, reprovision.yml]
    ini:
      - section: callback_drift
        key: playbooks
requirements:
  - enable in configuration
author:
  - dgx-comfyui (@dgx-comfyui)
"""

# What becomes of a resource that is not as it should be.
REPAIRED = "repaired"
WOULD = "to be repaired"
FAILED = "not repaired"
# Of a value in the printed table, in characters; the file has it on one line.
VALUE_WIDTH = 48
WAITS = "waits for a restart of Docker"
ENGINE = "Docker engine"
ABSENT = "absent"
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One resource that was not as it should be."""

    resource: str
    expected: str
    found: str
    outcome: str


class Seen:
    """What the probes of one host have told."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, dict[str, Any]] = {}
        self.units: dict[str, dict[str, Any]] = {}
        # By the words that asked for them: passwd or group, and a name.
        self.accounts: dict[tuple[str, ...], str] = {}
        # Whether keys of the Docker daemon file were rows.
        self.daemon_keys = False

    def add(self, result: Mapping[str, Any], commands: Mapping[str, list[str]] | None = None) -> None:
        """Take in the result of a host_probe with `commands`; what was seen first stands: it was before any change."""
        for kind in ("files", "packages", "units"):
            known = getattr(self, kind)
            known |= {name: entry for name, entry in result.get(kind, {}).items() if name not in known}
        for name, (program, *words) in (commands or {}).items():
            if program == "getent":
                self.accounts.setdefault(tuple(words), result["commands"][name]["stdout"])

    def file(self, path: str, arguments: Arguments) -> str:
        """How a file or folder differs from what it should be."""
        entry = self.files.get(path.rstrip("/"))
        if entry is None:
            return "other"
        if entry["kind"] == "absent":
            return f"a link to {entry['link']}, which is not there" if entry["link"] else ABSENT
        kind = "dir" if arguments.get("state") == "directory" else "file"
        words = [f"a {entry['kind']}"] if entry["kind"] != kind else []
        mode = arguments.get("mode")
        words += [f"mode {entry['mode']}"] if mode and int(str(mode), 8) != int(entry["mode"], 8) else []
        # A name of an account is not known here; by number it can be compared.
        for key, title in (("owner", "owner"), ("group", "group")):
            there = entry["uid" if key == "owner" else "gid"]
            wanted = {"root": "0"}.get(str(arguments.get(key)), str(arguments.get(key, "")))
            words += [f"{title} {there}"] if wanted.isdecimal() and int(wanted) != there else []
        if not words and kind == "file":
            words = ["empty" if entry["size_b"] == 0 else "other content"]
        return ", ".join(words) or "other"


def of_file(arguments: Arguments, _: Any, seen: Seen) -> list[tuple[str, str, str]]:
    """A file, a folder, or that there is none."""
    path = str(arguments.get("path") or arguments.get("dest"))
    if arguments.get("state") == "absent":
        return [(path, ABSENT, seen.files.get(path, {}).get("kind", "there"))]
    rights = [str(arguments[key]) for key in ("mode", "owner", "group") if arguments.get(key) is not None]
    kind = "folder" if arguments.get("state") == "directory" else "file"
    return [(path, ", ".join([kind, *rights]), seen.file(path, arguments))]


def of_apt(arguments: Arguments, _: Any, seen: Seen) -> list[tuple[str, str, str]]:
    """Packages by name; the refreshing of lists is none."""
    names = arguments.get("name") or arguments.get("package") or []
    wanted = [str(name).partition("=") for name in ([names] if isinstance(names, str) else names)]
    rows = []
    for name, _sign, version in wanted:
        there = seen.packages.get(name, {}).get("version") or ABSENT
        state = ABSENT if arguments.get("state") == "absent" else version or "installed"
        if there != state and not (state == "installed" and there != ABSENT):
            rows.append((f"package {name}", state, there))
    return rows


def of_selection(arguments: Arguments, _: Any, seen: Seen) -> list[tuple[str, str, str]]:
    """A package's hold; one that only the installation of another version took off follows from that row."""
    entry = seen.packages.get(arguments["name"])
    if entry and (entry["held"] or not entry["version"]):
        return []
    return [(f"hold of {arguments['name']}", str(arguments["selection"]), "none")]


def of_unit(arguments: Arguments, _: Any, seen: Seen) -> list[tuple[str, str, str]]:
    """A unit that runs and is enabled; a restart only follows from another row."""
    if not arguments.get("name") or arguments.get("state") in {"restarted", "reloaded"}:
        return []
    enabled = {True: "enabled", False: "disabled"}.get(arguments.get("enabled"))  # type: ignore[arg-type]
    expected = ", ".join(word for word in (arguments.get("state"), enabled) if word)
    entry = seen.units.get(arguments["name"], {})
    found = ", ".join(word for word in (entry.get("active"), entry.get("file_state")) if word)
    return [(f"unit {arguments['name']}", expected, found or ABSENT)]


def of_account(kind: str) -> Callable[[Arguments, Any, Seen], list[tuple[str, str, str]]]:
    """A user or a group."""

    def row(arguments: Arguments, _: Any, seen: Seen) -> list[tuple[str, str, str]]:
        number = arguments.get("uid") or arguments.get("gid")
        state = ABSENT if arguments.get("state") == "absent" else f"number {number}" if number else "there"
        entry = seen.accounts.get(({"user": "passwd"}.get(kind, kind), arguments["name"]))
        found = "other" if entry is None else f"number {entry.split(':')[2]}" if entry else ABSENT
        return [(f"{kind} {arguments['name']}", state, found if found != state else "other")]

    return row


def of_told(arguments: Arguments, result: Mapping[str, Any], _: Seen) -> list[tuple[str, str, str]]:
    """What a task says itself."""
    return [(row["resource"], row["expected"], row["found"]) for row in result.get("drift", arguments.get("drift", []))]


def of_daemon_json(arguments: Arguments, result: Mapping[str, Any], seen: Seen) -> list[tuple[str, str, str]]:
    """Keys of the Docker daemon file, or the engine, where it runs without what stands there already."""
    rows = of_told(arguments, result, seen)
    seen.daemon_keys |= bool(rows)
    apply = result.get("apply", "none") if arguments.get("state", "present") == "present" else "none"
    if apply != "none" and not seen.daemon_keys:
        rows = [(ENGINE, f"{arguments.get('path')} in force", f"without it before a {apply}")]
    return rows


Teller = Callable[[Arguments, Any, Seen], list[tuple[str, str, str]]]
KINDS: dict[str, Teller] = {
    "apt": of_apt,
    "copy": of_file,
    "docker_daemon_json": of_daemon_json,
    "dpkg_selections": of_selection,
    "file": of_file,
    "group": of_account("group"),
    "systemd_service": of_unit,
    "template": of_file,
    "user": of_account("user"),
}


def short(action: str) -> str:
    """A module's name without its collection."""
    return action.rpartition(".")[2]


def waits(resource: str, result: Mapping[str, Any]) -> bool:
    """Whether this comes into force by a restart of Docker only, which may be left to the operator."""
    keys = {ENGINE, *result.get("restart_keys", [])}
    return result.get("apply") == "restart" and resource.rpartition(": ")[2] in keys


def rows_of(action: str, arguments: Arguments, result: Mapping[str, Any], seen: Seen, outcome: str) -> list[Row]:
    """What one result says of resources; empty where it only follows from others."""
    if short(action) == "show_progress":
        ((action, arguments),) = (arguments.get("run") or {"show_progress": {}}).items()
    tell: Teller = KINDS.get(short(action), of_told)
    rows = []
    for told in tell(arguments, result, seen):
        resource, expected, found = map(mask_credentials, told)
        rows.append(
            Row(resource, expected, found, WAITS if outcome == REPAIRED and waits(resource, result) else outcome)
        )
    return rows


def table(rows: list[Row]) -> list[str]:
    """The rows as lines; a long value goes on below itself, and a resource stays in one piece to be copied."""
    cells = [("resource", "expected", "found", ""), *((r.resource, r.expected, r.found, r.outcome) for r in rows)]
    broken = [[[name], *([*wrap(cell, VALUE_WIDTH)] for cell in values)] for name, *values in cells]
    widths = [max(len(line) for row in broken for line in row[column] or [""]) for column in range(4)]
    lines = [line for row in broken for line in zip_longest(*row, fillvalue="")]
    return ["  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in lines]


class CallbackModule(CallbackBase):  # type: ignore[misc] # ansible-core has no types
    """Listens to results; see DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "drift"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.seen: dict[str, Seen] = {}
        # By resource: a second change of the same one, as after a repair that did not hold, adds no row.
        self.rows: dict[str, dict[str, Row]] = {}
        # What was named before its repair, with the role that repairs it.
        self.named: dict[str, dict[str, str]] = {}

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Leave other playbooks alone, and the part of reprovision.yml that compares nothing."""
        ours = Path(str(playbook._file_name)).name in self.get_option("playbooks")
        self.disabled = not ours or "before_reboot" in context.CLIARGS["tags"]

    def v2_runner_on_start(self, host: Any, task: Any) -> None:  # noqa: ARG002
        """Forget what an earlier run wrote of this host."""
        if host.name not in self.rows:
            self.rows[host.name] = {}
            self.write(host.name)

    def v2_runner_on_ok(self, result: Any) -> None:
        """A task ended well."""
        if result.task.loop is None:
            self.note(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """An item of a loop ended well."""
        self.note(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task failed: what it was to keep is not repaired."""
        if not ignore_errors and result.task.loop is None:
            self.note(result, FAILED)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        """An item of a loop failed."""
        self.note(result, FAILED)

    def note(self, result: Any, outcome: str = "") -> None:
        """Write down what one result says."""
        host, fields = result.host.name, result.task_fields
        if fields.get("delegate_to") in constants.LOCALHOST:
            return
        seen = self.seen.setdefault(host, Seen())
        action = str(result.task.resolved_action or result.task.action)
        if short(action) == "host_probe":
            seen.add(result.result, fields["args"].get("commands"))
        elif outcome or result.is_changed() or short(action) == "drifted":
            role = str(result.task._role)
            named = self.named.setdefault(host, {})
            if outcome == FAILED:
                self.mark(host, FAILED, lambda row: named.get(row.resource) == role)
            outcome = outcome or (WOULD if result.task.check_mode else REPAIRED)
            if short(action) == "docker_daemon_json" and fields["args"].get("state") == "restarted":
                self.mark(host, outcome, lambda row: row.outcome == WAITS)
            if short(action) == "docker_daemon_json" and outcome == FAILED:  # which has put the file back
                keys = f"{fields['args'].get('path')}: "
                self.mark(host, FAILED, lambda row: row.resource == ENGINE or row.resource.startswith(keys))
            for row in rows_of(action, fields["args"], result.result, seen, outcome):
                self.rows[host].setdefault(row.resource, row)
                if short(action) == "drifted":
                    named[row.resource] = role
            self.write(host)

    def mark(self, host: str, outcome: str, which: Callable[[Row], bool]) -> None:
        """Change what became of the rows that a later result speaks of."""
        rows = self.rows[host]
        rows |= {name: replace(row, outcome=outcome) for name, row in rows.items() if which(row)}

    def write(self, host: str) -> None:
        """Write what is known of one host: a task of the same run may read it."""
        path = self.path(host)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(row) for row in self.rows[host].values()], indent=2) + "\n")

    def path(self, host: str) -> Path:
        """The file of one host."""
        return Path(self.get_option("folder")) / host / "drift.json"

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the table at the end of the run; of a host that was not compared to its end, no rows say nothing."""
        for host, rows in self.rows.items():
            whole = host not in stats.failures and host not in stats.dark
            lines = table(list(rows.values())) if rows else ["Nothing had drifted."] if whole else []
            if not whole:
                if rows:
                    lines.append("The run failed on this host, so there may be more.")
                else:
                    lines.append("Nothing was found before the run failed on this host; there may be more.")
                    self.path(host).unlink()
            self._display.banner(f"DRIFT [{host}]")
            for line in lines:
                self._display.display(line)
