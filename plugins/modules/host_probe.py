#!/usr/bin/python
"""Read-only view of a host, the first task of every role."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_probe
short_description: Read everything that a role needs to know, in one task
description:
  - Reads files, packages, systemd units and the output of commands that only read.
  - Changes nothing, runs in check mode as well, and answers for things that are not there,
    so that a role can compare wanted with found on a virgin host.
options:
  files:
    description: Paths to describe. A link is followed for everything but its own C(link) entry.
    type: list
    elements: str
    default: []
  contents:
    description: Text files to read, at most 1 MiB each. Each is described as in O(files) as well.
    type: list
    elements: str
    default: []
  packages:
    description: Debian package names.
    type: list
    elements: str
    default: []
  units:
    description: systemd unit names, with their suffix.
    type: list
    elements: str
    default: []
  commands:
    description: Name and argument list of commands that change nothing. Run with the C locale and a time limit of 60 s.
    type: dict
    default: {}
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Probe the Docker engine
  host_probe:
    contents: [/etc/docker/daemon.json]
    packages: [docker-ce, docker.io]
    units: [docker.service]
    commands:
      version: [docker, version, --format, json]
  register: __docker_engine_probe
"""

RETURN = r"""
files:
  description:
    - For each path in O(files) and O(contents), what is there.
    - V(kind) is V(absent), V(file), V(dir) or V(other).
  returned: always
  type: dict
  sample:
    /etc/docker/daemon.json:
      {"kind": "file", "mode": "0644", "uid": 0, "gid": 0, "size_b": 3, "mtime_ns": 1767225600000000000, "inode": 4711,
       "link": null, "content": "{}\n"}
packages:
  description: Installed version and hold of each package; both empty where it is not installed.
  returned: always
  type: dict
  sample: {"docker.io": {"version": "26.1.5+dfsg1-9", "held": false}}
units:
  description: Load state, active state, unit file state and the path of each unit.
  returned: always
  type: dict
  sample:
    docker.service:
      {"load": "loaded", "active": "active", "file_state": "enabled", "path": "/lib/systemd/system/docker.service"}
commands:
  description: Exit status, output and error output. V(127) where the program is missing, V(124) after the time limit.
  returned: always
  type: dict
  sample: {"version": {"rc": 0, "stdout": "{}", "stderr": ""}}
"""

import contextlib
import os
import stat
import subprocess
from typing import Any

from ansible.module_utils.basic import AnsibleModule

CONTENT_LIMIT_B = 1 << 20
COMMAND_LIMIT_S = 60


def describe_file(path: str, *, with_content: bool) -> dict[str, Any]:
    """What lies at `path`; `content` is text, or None where it is absent, unreadable as UTF-8, or over the limit."""
    found: dict[str, Any] = {
        "kind": "absent",
        "mode": "",
        "uid": None,
        "gid": None,
        "size_b": None,
        "mtime_ns": None,
        "inode": None,
        "link": os.readlink(path) if os.path.islink(path) else None,
        "content": None,
    }
    try:
        status = os.stat(path)
    except OSError:
        return found
    found.update(
        kind="file" if stat.S_ISREG(status.st_mode) else "dir" if stat.S_ISDIR(status.st_mode) else "other",
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
        uid=status.st_uid,
        gid=status.st_gid,
        size_b=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
    )
    if with_content and found["kind"] == "file" and status.st_size <= CONTENT_LIMIT_B:
        with contextlib.suppress(OSError, UnicodeDecodeError), open(path, "rb") as handle:
            found["content"] = handle.read().decode()
    return found


def run_command(argv: list[str]) -> dict[str, Any]:
    """Run a reading command; a missing program or a time-out is an answer, not an error."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except OSError as error:  # not there, not to be run, or no program at all
        return {"rc": 127, "stdout": "", "stderr": str(error)}
    except subprocess.TimeoutExpired:
        return {"rc": 124, "stdout": "", "stderr": f"no answer within {COMMAND_LIMIT_S} s"}
    return {"rc": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def parse_packages(dpkg_output: str, names: list[str]) -> dict[str, dict[str, Any]]:
    r"""Read `dpkg-query -W -f='${Package}\t${Version}\t${db:Status-Want}\t${db:Status-Status}\n'`."""
    found: dict[str, dict[str, Any]] = {name: {"version": "", "held": False} for name in names}
    for line in dpkg_output.splitlines():
        name, version, want, status = line.split("\t")
        if name in found and status == "installed":
            found[name] = {"version": version, "held": want == "hold"}
    return found


def parse_unit(show_output: str, file_state: str) -> dict[str, str]:
    """Read `systemctl show`; a host without systemd gives an empty output and the state V(not-found)."""
    pairs = dict(line.split("=", 1) for line in show_output.splitlines() if "=" in line)
    return {
        "load": pairs.get("LoadState", "not-found"),
        "active": pairs.get("ActiveState", "inactive"),
        "file_state": file_state,
        "path": pairs.get("FragmentPath", ""),
    }


def read_units(names: list[str]) -> dict[str, dict[str, str]]:
    """Units as systemd runs them, and as the files have them.

    For a unit that runs, `systemctl show` gives the file state of systemd's last reload.
    """
    if not names:
        return {}
    listed = run_command(["systemctl", "list-unit-files", "--no-legend", "--plain", "--full", *names])["stdout"]
    states = {words[0]: words[1] for line in listed.splitlines() if len(words := line.split()) > 1}
    show = ["systemctl", "show", "--property", "LoadState,ActiveState,FragmentPath"]
    return {name: parse_unit(run_command([*show, name])["stdout"], states.get(name, "")) for name in names}


def probe(params: dict[str, Any]) -> dict[str, Any]:
    """Everything that was asked for, in the shape of RETURN."""
    files = {path: describe_file(path, with_content=False) for path in params["files"]}
    files.update({path: describe_file(path, with_content=True) for path in params["contents"]})
    packages: dict[str, dict[str, Any]] = {}
    if params["packages"]:
        fields = "${Package}\t${Version}\t${db:Status-Want}\t${db:Status-Status}\n"
        answer = run_command(["dpkg-query", "-W", f"-f={fields}", *params["packages"]])
        packages = parse_packages(answer["stdout"], params["packages"])
    commands = {name: run_command([str(word) for word in argv]) for name, argv in params["commands"].items()}
    return {"files": files, "packages": packages, "units": read_units(params["units"]), "commands": commands}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "str", "default": []},
            "contents": {"type": "list", "elements": "str", "default": []},
            "packages": {"type": "list", "elements": "str", "default": []},
            "units": {"type": "list", "elements": "str", "default": []},
            "commands": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **probe(module.params))


if __name__ == "__main__":
    main()
