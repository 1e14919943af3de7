"""Keeps on the control node what a host can say about a failure. The module of this name is its documentation."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.release import __version__ as ansible_version

SUMMARY = "failure.txt"
MASK = "********"
# Shorter values occur everywhere by chance, and masking them would make the evidence unreadable.
SECRET_MINIMUM = 4
OUTPUT_LINES = 40
TROUBLE_LIMIT = 300

# A tokenizer is a library.
SENSITIVE = r"(?:token(?!iz)|passw|passphrase|secret|credential|api_?key|access_?key|private_?key)"
SECRET_NAME = re.compile(rf"(?i){SENSITIVE}")
# What follows the name of a secret, in the spellings of JSON, of an environment and of logs.
_NAME = rf"[\w.-]*{SENSITIVE}[\w.-]*"
_STRING_REST = r'(?:[^"\\]|\\.)*'
PATTERNS = [
    (re.compile(rf'(?i)("{_NAME}=){_STRING_REST}'), rf"\g<1>{MASK}"),
    (re.compile(rf'(?i)("{_NAME}"\s*:\s*"){_STRING_REST}'), rf"\g<1>{MASK}"),
    (re.compile(rf"(?i)(\b{_NAME}=)[^\s\"&,]+"), rf"\g<1>{MASK}"),
    (re.compile(r"(?i)(\b(?:authorization|x-auth-token)\"?\s*[:=]\s*\"?(?:bearer |basic )?)[^\s\"]+"), rf"\g<1>{MASK}"),
    (re.compile(r"(?i)(\bbearer )[^\s\"]+"), rf"\g<1>{MASK}"),
    (
        re.compile(r"(?i)([?&](?:x-amz-)?(?:signature|policy|key-pair-id|security-token|sig)=)[^\s\"&]+"),
        rf"\g<1>{MASK}",
    ),
    (re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/@\"']+@"), rf"\g<1>{MASK}@"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), MASK),
]
LOGIN = re.compile(r"://([^\s/@\"']+)@")


def secrets_of(variables: Mapping[str, Any]) -> set[str]:
    """Values that must not be kept: of variables called like a secret, and the passwords of logins in URLs."""
    found = {value for name, value in variables.items() if SECRET_NAME.search(name)}
    for value in variables.values():
        for login in LOGIN.findall(value):
            found |= set(login.split(":", 1)[1:])
    return {secret for secret in found if len(secret) >= SECRET_MINIMUM}


def spellings(secret: str) -> set[str]:
    """A secret as it is, within JSON, and within a URL."""
    return {secret, json.dumps(secret)[1:-1], quote(secret), quote(secret, safe="")}


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without these secrets, and without what looks like one."""
    spelled = {spelling for secret in secrets for spelling in spellings(secret)}
    for spelling in sorted(spelled, key=len, reverse=True):  # one may be part of another
        text = text.replace(spelling, MASK)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def tail(text: str) -> str:
    """The end of a long output."""
    lines = text.strip().splitlines()
    return "\n".join(["...", *lines[-OUTPUT_LINES:]] if len(lines) > OUTPUT_LINES else lines)


def as_text(message: Any) -> str:
    """A message as modules and `fail` may give it."""
    return message.strip() if isinstance(message, str) else "" if message is None else json.dumps(message, default=str)


def words(failure: Mapping[str, Any]) -> str:
    """What failed: the message, what the program wrote, and in a loop the same for each item that failed."""
    items = [item for item in failure.get("results") or [] if isinstance(item, Mapping) and item.get("failed")]
    if items:
        parts = [f"{as_text(item.get(item.get('ansible_loop_var') or 'item'))}: {words(item)}" for item in items]
        return "\n".join(parts)
    message = as_text(failure.get("msg") or failure.get("censored"))
    output = next(
        (text for key in ("stderr", "module_stderr", "stdout") if (text := tail(as_text(failure.get(key))))), ""
    )
    parts = [message] if output in message else [message, output]
    return "\n".join(part for part in parts if part) or "The task failed without a word."


def command_text(argv: list[Any], answer: Mapping[str, Any]) -> str:
    """What a command printed, below what was typed."""
    status = "" if answer["rc"] == 0 else f"exit status {answer['rc']}\n"
    parts = [f"$ {' '.join(str(word) for word in argv)}\n", answer["stdout"], answer["stderr"], status]
    return "".join(part if part.endswith("\n") else f"{part}\n" for part in parts if part)


def evidence(probe: Mapping[str, Any], commands: Mapping[str, list[Any]]) -> Iterator[tuple[str, str]]:
    """Relative path and text of each file to keep."""
    for name, answer in probe.get("commands", {}).items():
        yield f"{name}.txt", command_text(commands[name], answer)
    for path, found in probe.get("files", {}).items():
        if found["content"] is not None:
            yield f"files/{path.strip('/')}", found["content"]


def absent(probe: Mapping[str, Any]) -> list[str]:
    """Files that the host does not have."""
    return [path for path, found in probe.get("files", {}).items() if found["kind"] == "absent"]


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Replace a folder by one with these files that only its owner reads: logs tell more than was meant."""
    made = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)  # left by a run that was killed
    made.mkdir(parents=True, mode=0o700)
    for name, text in files.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if folder.exists():
        if not (folder / SUMMARY).exists():
            raise OSError(f"{folder} is there and was not made by an earlier failure: move it away")
        shutil.rmtree(folder)
    made.rename(folder)


class ActionModule(ActionBase):  # type: ignore[misc] # ansible-core has no types
    """Probes by one module on the host, masks and writes on the control node."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Entry point of the task."""
        variables = task_vars or {}
        result: dict[str, Any] = super().run(tmp, variables)
        _, given = self.validate_argument_spec(
            argument_spec={
                "dest": {"type": "path", "required": True},
                "contents": {"type": "list", "elements": "str", "default": []},
                "commands": {"type": "dict", "default": {}},
                "failure": {"type": "dict", "default": {}},
                "failed_task": {"type": "str", "default": ""},
            }
        )
        secrets = secrets_of(dict(self.texts(variables)))
        message = mask(words(given["failure"]), secrets) if given["failure"] else ""
        probe, trouble = self.probe(given, variables)
        folder = Path(os.path.abspath(given["dest"]))
        summary = {
            "host": variables.get("inventory_hostname", ""),
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "task": given["failed_task"],
            "control node": f"ansible-core {ansible_version}, Python {sys.version.split()[0]}",
            "not on the host": ", ".join(absent(probe)),
            "not kept": trouble,
        }
        heading = "".join(f"{name}: {text}\n" for name, text in summary.items() if text)
        files = {name: mask(text, secrets) for name, text in evidence(probe, given["commands"])}
        try:
            write(folder, {SUMMARY: mask(f"{heading}\n{message}\n", secrets), **files})
            where = f"Evidence: {os.path.relpath(folder)}/"
        except OSError as error:
            where = f"No evidence could be written: {error}"
        if trouble:
            where += f" (without the host's: {' '.join(trouble.split())[:TROUBLE_LIMIT]})"
        result.update(changed=False, failed=bool(message), msg="\n".join(part for part in (message, where) if part))
        return result

    def probe(self, given: Mapping[str, Any], variables: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """What the host answers; where it does not, nothing and the reason."""
        arguments = {"contents": given["contents"], "commands": given["commands"]}
        try:
            answer: dict[str, Any] = self._execute_module(
                module_name="host_probe", module_args=arguments, task_vars=variables
            )
        except AnsibleError as error:  # the connection broke
            return {}, str(error)
        if answer.get("failed"):
            return {}, words(answer)
        return answer, ""

    def texts(self, variables: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The variables that are text and may hold a secret, with what their templates come to."""
        for name, value in variables.items():
            if not isinstance(value, str) or not (SECRET_NAME.search(name) or "://" in value):
                continue
            try:
                text = self._templar.template(value)
            except AnsibleError:  # it reads something that this host does not have, so nothing has used it
                continue
            if isinstance(text, str):
                yield name, text
