"""huggingface_hub in a virtual environment of the role's own, and what it says of a file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ansible.module_utils import model_files as rules
from ansible.module_utils.model_wanted import Report, StoreError, TemporaryError, Wanted

SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
INSTALL_LIMIT_S = 1800
# In an environment of ours and in no other: empty from before it is made, with Python and lock once it is whole.
MADE = "made"
# Beyond the limits that the hub's client keeps itself: time to load it on a busy host.
ANSWER_MARGIN_S = 60


class NoVenvError(StoreError):
    """The host's Python makes no virtual environment: the package for it is missing, which the next run brings."""


@dataclass(frozen=True)
class Place:
    """Where the hub has a file, and what it says of it; empty where it says nothing."""

    url: str
    is_hub: bool
    sha256: str
    size_b: int | None


def locate(wanted: Wanted, report: Report) -> Place:
    """Ask the hub for a file. Its word on digest and size must not contradict the catalogue's.

    Raises TemporaryError where asking again may help, StoreError where the hub has another file or none, or cannot be
    asked.
    """
    python = provide(wanted, report)
    report("asking the hub for it")
    said = ask(wanted, python)
    shown = rules.without_credentials(wanted.url)
    if "problem" in said:
        if said["is_certificate"]:
            raise StoreError(untrusted(shown, said["problem"]))
        raise TemporaryError(f"{shown}: {said['problem']}", is_network=True)
    if "refused" in said:
        raise StoreError(f"{shown}: huggingface_hub refuses to ask for it: {said['refused']}")
    if "status" in said:
        raise refusal(wanted, said)
    digest = rules.linked_digest(said["digest"])
    if wanted.sha256 and digest and digest != wanted.sha256:
        raise StoreError(
            f"{shown}: the hub says that this file has the SHA-256 {digest}, the catalogue says {wanted.sha256}. "
            "Nothing was fetched. Check commit, path and sha256 in the catalogue."
        )
    if wanted.size_b and said["size_b"] not in (None, wanted.size_b):
        raise StoreError(another_size(wanted, said["size_b"]))
    if not wanted.sha256 and not (digest and said["size_b"]):
        raise StoreError(
            f"{shown}: the hub names no SHA-256 for this file, and the catalogue has none. Read it from a source that "
            "you trust, and add size_b and sha256 to the entry."
        )
    try:
        url, is_hub = rules.next_hop(wanted.url, said["location"])
    except ValueError as error:
        raise StoreError(f"{shown}: {error}.") from error
    return Place(url, is_hub, digest, said["size_b"])


def another_size(wanted: Wanted, found_b: int) -> str:
    return (
        f"{rules.without_credentials(wanted.url)}: what answers there has {found_b} bytes, the catalogue says "
        f"{wanted.size_b}. Check commit, path and size_b in the catalogue, and that no login page answers."
    )


def untrusted(shown: str, problem: str) -> str:
    return (
        f"{shown}: {problem}. If a firewall or mirror of this site signs with its own certificate, set "
        "comfyui_extra_ca_bundle (the role's model_store_ca_bundle) to a PEM file with its CA on the host."
    )


def refusal(wanted: Wanted, said: dict[str, Any]) -> Exception:
    """What an HTTP status of the hub means."""
    status = said["status"]
    message = rules.explain_status(status, said["code"], wanted.url, has_token=bool(wanted.token))
    if rules.status_is_temporary(status):
        return TemporaryError(message, rules.retry_after_s(said["retry_after"]))
    return StoreError(message)


def ask(wanted: Wanted, python: str) -> dict[str, Any]:
    """Put the question to huggingface_hub. Neither token nor addresses are on the command line."""
    question = {key: getattr(wanted, key) for key in ("repo", "commit", "path", "token", "proxy", "ca_bundle")}
    question["endpoint"], question["user"] = rules.user_of(wanted.endpoint)
    # Settings of whoever runs Ansible must not decide; the home of the client is not root's.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {
        "HF_HOME": os.path.join(wanted.hub_dir, "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    limit_s = wanted.stall_timeout_s * rules.REDIRECT_LIMIT + ANSWER_MARGIN_S
    try:
        done = subprocess.run(
            [python, "-I", os.path.join(wanted.hub_dir, "answer.py")],
            input=json.dumps({**question, "timeout_s": wanted.stall_timeout_s}),
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise TemporaryError(
            f"{rules.without_credentials(wanted.endpoint)}: no answer within {limit_s:g} s", is_network=True
        ) from None
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise StoreError(
            f"huggingface_hub in {wanted.hub_dir} failed: {last_line(done.stderr)}. Remove that folder and run again: "
            "it is then made anew."
        ) from None
    return said


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip().removesuffix(".") if lines else "no words"


def provide(wanted: Wanted, report: Report) -> str:
    """The Python of the virtual environment, which is made where it is missing or of another lock or Python.

    Only a run that must ask the hub comes here: a host whose files are all proved, or come from a folder, needs none.
    """
    python = os.path.join(wanted.hub_dir, "bin", "python")
    # An update of the system's Python leaves an environment that finds none of its packages.
    content = f"# Python {sys.version_info[0]}.{sys.version_info[1]}\n{wanted.hub_requirements}"
    report("waiting for the hub's client")
    with locked(f"{wanted.hub_dir}.lock"):
        if is_text(os.path.join(wanted.hub_dir, MADE), content) and os.path.exists(python):
            write_program(wanted)
            return python
        report("installing huggingface_hub")
        install(wanted, python)
        write_program(wanted)
        with open(os.path.join(wanted.hub_dir, MADE), "w", encoding="utf-8") as file:
            file.write(content)
    return python


def write_program(wanted: Wanted) -> None:
    path = os.path.join(wanted.hub_dir, "answer.py")
    if not is_text(path, wanted.hub_program):
        with open(path, "w", encoding="utf-8") as file:
            file.write(wanted.hub_program)


def is_text(path: str, content: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read() == content
    except (OSError, UnicodeDecodeError):
        return False


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """One at a time: several models of one run may need the environment at once."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def install(wanted: Wanted, python: str) -> None:
    """Make the environment with exactly what the lock names, by hash, in place of one that was made before."""
    found = os.listdir(wanted.hub_dir) if os.path.isdir(wanted.hub_dir) else []
    if found and MADE not in found:
        raise StoreError(
            f"{wanted.hub_dir} holds {', '.join(sorted(found)[:3])}, expected a folder for huggingface_hub alone. "
            "Nothing in it was touched. Set model_store_hub_dir to a folder of its own, or leave it out; or remove "
            "that folder if nobody needs it."
        )
    os.makedirs(wanted.hub_dir, mode=0o755, exist_ok=True)
    with open(os.path.join(wanted.hub_dir, MADE), "w", encoding="utf-8"):
        pass  # empty: begun. It says whose the folder is, so it is never gone while anything else is there
    for entry in list(os.scandir(wanted.hub_dir)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)  # what stays is overwritten, or refused by what comes next
        elif entry.name != MADE:
            os.unlink(entry.path)
    made = run([sys.executable, "-m", "venv", wanted.hub_dir])
    if made.returncode != 0:
        raise NoVenvError(
            f"A virtual environment for huggingface_hub could not be made in {wanted.hub_dir}: "
            f"{last_line(made.stdout + made.stderr)}. Type on the host: apt-get install python3-venv"
        )
    environment = dict(os.environ)
    if wanted.package_index.startswith("/"):
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wanted.package_index}
    elif wanted.package_index:
        environment["PIP_INDEX_URL"] = wanted.package_index
    if wanted.proxy:
        environment |= dict.fromkeys(("http_proxy", "https_proxy"), wanted.proxy)
    with tempfile.TemporaryDirectory() as folder:
        requirements = os.path.join(folder, "requirements.txt")
        with open(requirements, "w", encoding="utf-8") as file:
            file.write(wanted.hub_requirements)
        if wanted.ca_bundle:
            bundle = os.path.join(folder, "ca.pem")
            write_bundle(bundle, wanted.ca_bundle)
            environment["PIP_CERT"] = bundle
        options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--no-deps"]
        proof = ["--require-hashes", "--only-binary=:all:", "--requirement", requirements]
        done = run([python, "-m", "pip", "install", *options, *proof], environment)
    if done.returncode != 0:
        raise StoreError(
            f"huggingface_hub could not be installed into {wanted.hub_dir}: {pip_problem(done.stdout + done.stderr)}. "
            "Expected a package index that has what roles/model_store/files/huggingface_hub.txt names. Check "
            "comfyui_package_index, comfyui_proxy and comfyui_extra_ca_bundle, or set comfyui_model_endpoint to a "
            "folder of the host with the models: then no hub is asked."
        )


def run(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_LIMIT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no end within {INSTALL_LIMIT_S} s")


def pip_problem(output: str) -> str:
    """What pip says went wrong; its last line is often only a hint."""
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    return errors[0].strip().removesuffix(".") if errors else last_line(output)


def write_bundle(path: str, extra: str) -> None:
    """The host's own certificates and the site's: pip takes one file instead of what it trusts by itself."""
    try:
        with open(extra, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise StoreError(f"The CA bundle {extra} cannot be used: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise StoreError(
            f"The CA bundle {extra} is no text, expected certificates in PEM. If it is one in DER: "
            f"openssl x509 -inform der -in {extra} -out FILE.pem, and name that file."
        ) from error
    with contextlib.suppress(OSError), open(SYSTEM_BUNDLE, encoding="utf-8") as file:
        text = f"{file.read()}\n{text}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
