#!/usr/bin/python
"""Build an image, and say meanwhile which step it is at."""

from __future__ import annotations

DOCUMENTATION = r"""
module: comfyui_image_build
short_description: Build an image with BuildKit, showing its steps
description:
  - Builds O(name):O(tag) from O(path) with C(docker buildx build), unless an image of that name is there.
    The tag is to be a digest of what goes in, then an image that is there is current.
  - Tells show_progress the step, and how much of the base image has come.
  - A build that fails says at which step, and its last 20 lines.
  - An image gets a record, a JSON file with what C(/opt/comfyui/contents.json) in it says, its size, what it has over
    its base, and its lock beside it. An image that is there without one gets it.
  - Two builds from one folder on one host wait for each other. So a run that follows an interrupted one takes over
    the image that the first is still building.
options:
  name:
    description: Name of the image, without a tag.
    type: str
    required: true
  tag:
    description: Tag of the image.
    type: str
    required: true
  path:
    description: Folder on the host with the Dockerfile and what it copies.
    type: path
    required: true
  record:
    description: File on the host for the record; its folder is made. The lock goes beside it, with the suffix C(.txt).
    type: path
    required: true
  build_args:
    description: Build arguments. Their values are passed in the environment, so no list of processes shows them.
    type: dict
    default: {}
  contexts:
    description: Folders on the host that stand in for stages of the Dockerfile, by the stage's name.
    type: dict
    default: {}
  secrets:
    description: Secrets that the Dockerfile mounts; they leave no trace in the image.
    type: list
    elements: dict
    default: []
    suboptions:
      id:
        description: Name by which the Dockerfile asks for it.
        type: str
        required: true
      src:
        description: File on the host that holds it.
        type: path
      value:
        description: The secret itself. It is passed in the environment, so no list of processes shows it.
        type: str
requirements:
  - Docker's command line with its buildx plugin, 0.8 or newer.
attributes:
  check_mode:
    description: Predicts a build where there is no image of the name.
    support: full
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Build the image
  show_progress:
    title: building the image
    run:
      comfyui_image_build:
        name: dgx-comfyui
        tag: 0.28.1-0123456789ab
        path: /var/lib/comfyui/image
        record: /etc/comfyui/images/0.28.1-0123456789ab.json
        secrets:
          - id: package_index
            value: "{{ comfyui_package_index }}"
"""

RETURN = r"""
reference:
  description: Name and tag of the image.
  returned: always
  type: str
  sample: dgx-comfyui:0.28.1-0123456789ab
image_id:
  description: The image's id; empty where there is none, as in check mode.
  returned: success
  type: str
size_b:
  description: Size of the image, as the engine counts it.
  returned: success, outside check mode
  type: int
overhead_b:
  description: What the image's own steps have added to its base; all of it where the first step is not to be found.
  returned: success, outside check mode
  type: int
seconds:
  description: How long the build took.
  returned: when there was one
  type: float
step:
  description: The step that failed; empty where none did.
  returned: failure
  type: str
  sample: 3/9 RUN python3 /opt/comfyui/torch_gate.py record /opt/comfyui/torch.json
interrupted:
  description: Whether the builder ended without saying what failed.
  returned: when it did
  type: bool
log:
  description: The last lines of the step that failed, or of the whole build where no step did.
  returned: failure
  type: list
  elements: str
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.model_files import credentials
from ansible.module_utils.progress import FOLDER, Reporter

LAST_LINES = 20
NAME_CHARS = 40
READER = "dgx-comfyui-record"
LOCK_POLL_S = 1.0
# A part of the Dockerfile's first instruction.
FIRST_STEP = "org.opencontainers.image.base.digest"
SIZES_B = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_OUTPUT = re.compile(r"#(\d+) \d+\.\d+(?: (.*))?")
_STEP = re.compile(r"#(\d+) \[(?:[^\]]* )?(\d+)/(\d+)\] (.*)")
_LAYER = re.compile(r"#(\d+) (sha256:[0-9a-f]{64}) (\d+(?:\.\d+)?)([kMGT]?B) / (\d+(?:\.\d+)?)([kMGT]?B) .*")
_EXTRACTING = re.compile(r"#(\d+) extracting .*")
_ERROR = re.compile(r"#(\d+) ERROR: (.*)")
_EXPORT = re.compile(r"#(\d+) exporting to .*")


def short_name(instruction: str) -> str:
    """An instruction without what makes it unreadable: the digest of a base, the mounts of a command."""
    without_digest = re.sub(r"@sha256:[0-9a-f]{64}", "", instruction)
    return " ".join(re.sub(r" --(?:mount|network|security|chown|chmod|from|link)(?:=\S+)?", "", without_digest).split())


def size_b(number: str, unit: str) -> int:
    """Bytes of a size as BuildKit writes it."""
    return round(float(number) * SIZES_B[unit])


class BuildLog:
    """Follows the output of C(--progress plain).

    That form is older than the JSON one and the same in all releases; buildx 0.13.1, Debian 13's, takes C(rawjson) but
    spreads each object over many lines.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.steps: int | None = None
        self.name = ""
        self.said = ""
        self.fetched_b: int | None = None
        self.failed = ""
        self.reason = ""
        self.error = False
        self._vertex = ""
        self._names: dict[str, str] = {}
        self._layers_b: dict[str, tuple[int, int]] = {}
        self._last: dict[str, deque[str]] = {}
        self._all: deque[str] = deque(maxlen=LAST_LINES)

    def add(self, text: str) -> None:
        """Take one line."""
        if text.strip():
            self._all.append(text)
        self.error = self.error or text.startswith("ERROR: ")
        if match := _OUTPUT.fullmatch(text):
            self._last.setdefault(match[1], deque(maxlen=LAST_LINES)).append(match[2] or "")
            if match[1] == self._vertex and match[2]:
                self.said = match[2]
        elif match := _STEP.fullmatch(text):
            self._enter(match[1], int(match[2]), int(match[3]), short_name(match[4]))
        elif match := _LAYER.fullmatch(text):
            self._layers_b[match[2]] = (size_b(match[3], match[4]), size_b(match[5], match[6]))
            if match[1] == self._vertex:
                self.fetched_b = sum(done_b for done_b, _ in self._layers_b.values())
        elif (match := _EXTRACTING.fullmatch(text)) and match[1] == self._vertex:
            self.said = "unpacking"
            if all(done_b == total_b for done_b, total_b in self._layers_b.values()):
                self.fetched_b = None
        elif match := _EXPORT.fullmatch(text):
            self._enter(match[1], self.steps, self.steps, "writing the image")
        elif (match := _ERROR.fullmatch(text)) and not self.failed:
            # The steps beside it are reported as cancelled, not as failed.
            self.failed, self.reason = match.groups()

    def _enter(self, vertex: str, step: int | None, steps: int | None, name: str) -> None:
        if vertex == self._vertex:
            return
        self._vertex, self.step, self.steps, self.name = vertex, step, steps, name
        self.said, self.fetched_b = "", None
        self._names[vertex] = name if step is None or name == "writing the image" else f"{step}/{steps} {name}"

    @property
    def text(self) -> str:
        """The instruction, and what its command said last: a long command alone says little."""
        if not self.said:
            return self.name
        name = self.name if len(self.name) <= NAME_CHARS else f"{self.name[: NAME_CHARS - 3]}..."
        return f"{name}: {self.said}"

    @property
    def interrupted(self) -> bool:
        """Whether a build that did not end well says nothing of why: somebody stopped it, or the engine went away."""
        return not self.failed and not self.error

    @property
    def failed_step(self) -> str:
        """Number and instruction of the step that failed; empty where none did, or it was none of the Dockerfile's."""
        return self._names.get(self.failed, "")

    @property
    def last_lines(self) -> list[str]:
        """What the failed step said last, and what failed where that was not its command; else what all said last."""
        if self.failed not in self._last:
            return list(self._all)
        own = [] if "did not complete successfully" in self.reason else [self.reason]
        return [*self._last[self.failed], *own][-LAST_LINES:]


def build_command(params: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The command, and what its environment needs beside the module's own."""
    argv = ["docker", "buildx", "build", "--progress", "plain", "--tag", f"{params['name']}:{params['tag']}"]
    environment: dict[str, str] = {}
    for name, value in sorted(params["build_args"].items()):
        argv += ["--build-arg", name]
        environment[name] = str(value)
    for name, folder in sorted(params["contexts"].items()):
        argv += ["--build-context", f"{name}={folder}"]
    for number, secret in enumerate(params["secrets"]):
        if secret["value"] is None:
            argv += ["--secret", f"id={secret['id']},type=file,src={secret['src']}"]
        else:
            variable = f"COMFYUI_IMAGE_BUILD_SECRET_{number}"
            argv += ["--secret", f"id={secret['id']},type=env,env={variable}"]
            environment[variable] = secret["value"]
    return [*argv, "--", params["path"]], environment


def image_id(reference: str) -> str:
    """The id of an image, empty where there is none. OSError where there is no Docker."""
    argv = ["docker", "image", "inspect", "--format", "{{.Id}}", reference]
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def docker(*arguments: str) -> str:
    """What a command of Docker's prints. OSError where it fails, with its words."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise OSError(0, done.stderr.strip() or done.stdout.strip(), f"docker {arguments[0]}")
    return done.stdout


def overhead_b(history: str) -> int:
    """Bytes of an image's own steps: those down to the one that names the base, which is its first.

    `history` has a line for each step, the newest first: its size in bytes, a blank, and the instruction.
    """
    total_b = 0
    for line in history.splitlines():
        size, _, instruction = line.partition(" ")
        total_b += int(size)
        if FIRST_STEP in instruction:
            break
    return total_b


def describe(reference: str) -> dict[str, Any]:
    """The record of an image: what it is, how large, and what is in it. OSError where the engine will not say."""
    (found,) = json.loads(docker("image", "inspect", reference))
    history = docker(
        "image", "history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", reference
    )
    return {
        "reference": reference,
        "image_id": found["Id"],
        "architecture": found["Architecture"],
        "labels": found["Config"]["Labels"],
        "size_b": found["Size"],
        "overhead_b": overhead_b(history),
    }


def write_record(reference: str, path: str) -> dict[str, Any]:
    """Write an image's record and its lock beside it, the record last; returns the record."""
    record = describe(reference)
    # By name: one that an interrupted run left would keep its image from being removed.
    if docker("container", "ls", "--all", "--quiet", "--filter", f"name=^{READER}$").strip():
        docker("container", "rm", READER)
    docker("container", "create", "--name", READER, "--network", "none", reference)
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        lock = f"{os.path.splitext(path)[0]}.txt"
        docker("container", "cp", f"{READER}:/opt/comfyui/contents.json", f"{path}.new")
        docker("container", "cp", f"{READER}:/opt/comfyui/requirements.txt", f"{lock}.new")
        with open(f"{path}.new", encoding="utf-8") as file:
            record["contents"] = json.load(file)
    finally:
        docker("container", "rm", READER)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2, ensure_ascii=False)
        file.write("\n")
    for one in (lock, path):
        os.chmod(f"{one}.new", 0o644)
        os.chown(f"{one}.new", 0, 0)
        os.replace(f"{one}.new", one)
    return record


@contextlib.contextmanager
def alone(path: str, report: Reporter, folder: str = FOLDER) -> Iterator[None]:
    """Wait until no other run builds from this folder."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    name = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:12]
    handle = os.open(os.path.join(folder, f"build-{name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report("waiting for the build of another run to end")
                time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(handle)


def build(params: dict[str, Any], report: Reporter, hidden: set[str]) -> tuple[int, BuildLog]:
    """Run the build to its end; exit status and what it said."""
    argv, environment = build_command(params)
    log = BuildLog()
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
    ) as process:
        for line in process.stdout or ():
            log.add(line.rstrip("\n"))
            report(remove_values(log.text, hidden), done_b=log.fetched_b, step=log.step, steps=log.steps)
    return process.returncode, log


def finish(module: AnsibleModule, changed: bool, **more: Any) -> None:
    """Answer for an image that is there, once its record is."""
    params = module.params
    reference = f"{params['name']}:{params['tag']}"
    if module.check_mode:
        module.exit_json(changed=changed, reference=reference, image_id=image_id(reference))
    if "seconds" in more or not os.path.exists(params["record"]):  # one that is there is of another build
        changed, record = True, write_record(reference, params["record"])
    else:
        record = describe(reference)
    sizes = {key: record[key] for key in ("image_id", "size_b", "overhead_b")}
    module.exit_json(changed=changed, reference=reference, **sizes, **more)


def run(module: AnsibleModule, report: Reporter) -> None:
    """Build where there is no image, answer."""
    params = module.params
    reference = f"{params['name']}:{params['tag']}"
    if image_id(reference):
        finish(module, changed=not os.path.exists(params["record"]))
    if module.check_mode:
        module.exit_json(changed=True, reference=reference, image_id="")
    if not os.path.isdir(params["path"]):
        module.fail_json(
            msg=f"{params['path']} is not a folder. Expected: the folder with the Dockerfile.",
            reference=reference,
            step="",
            log=[],
        )
    with alone(params["path"], report):
        if image_id(reference):  # the run that this one waited for has built it
            finish(module, changed=False)
        began_s = time.monotonic()
        rc, log = build(params, report, module.no_log_values)
        seconds = round(time.monotonic() - began_s, 1)
    if rc != 0 and log.interrupted:
        module.fail_json(
            msg=f"Building {reference} ended in the middle, after {seconds:g} s: {log.text}",
            reference=reference,
            step="",
            log=log.last_lines,
            interrupted=True,
            rc=rc,
        )
    if rc != 0:
        where = f" at step {log.failed_step}" if log.failed_step else ""
        words = "\n".join(log.last_lines)
        module.fail_json(
            msg=f"Building {reference} failed{where}, after {seconds:g} s. Its last lines:\n{words}",
            reference=reference,
            step=log.failed_step,
            log=log.last_lines,
            rc=rc,
        )
    if not image_id(reference):
        module.fail_json(
            msg=(
                f"The build of {reference} ended well, but the engine has no such image: the builder that is in use "
                "keeps its images to itself. Expected: the engine's own. Type on the host: docker buildx use default"
            ),
            reference=reference,
            step="",
            log=log.last_lines,
        )
    finish(module, changed=True, seconds=seconds)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "tag": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "record": {"type": "path", "required": True},
            "build_args": {"type": "dict", "default": {}},
            "contexts": {"type": "dict", "default": {}},
            "secrets": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "no_log": False,  # the ids are no secrets, the values are
                "options": {
                    "id": {"type": "str", "required": True},
                    "src": {"type": "path"},
                    "value": {"type": "str", "no_log": True},
                },
                "required_one_of": [("src", "value")],
                "mutually_exclusive": [("src", "value")],
            },
        },
        supports_check_mode=True,
    )
    for value in [*module.params["build_args"].values(), *(one["value"] or "" for one in module.params["secrets"])]:
        module.no_log_values.update(credentials(str(value)))
    try:
        with Reporter.from_environment() as report:
            run(module, report)
    except OSError as error:
        what = error.filename or "docker"
        module.fail_json(
            msg=f"Cannot build: {what}: {error.strerror or error}. Expected: a Docker engine with its command line.",
            reference=f"{module.params['name']}:{module.params['tag']}",
            step="",
            log=[],
        )


if __name__ == "__main__":
    main()
