#!/usr/bin/python
"""Say before any change which outside sources a host does not reach."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sources_reached
short_description: Refuse a host that is cut off from what it would have to fetch
description:
  - Opens a connection to each source and closes it again, to all at the same time. Nothing is asked, nothing changes.
  - A source counts as not reached where its name has no address, where no route leads to it, where nothing answers
    within O(timeout_s), and where it is a folder of the host that is not there. One that refuses the connection is
    reached, and what is wrong with it is for those who ask it.
  - Nothing is judged that goes another way - through a proxy of the environment, of git or of the engine.
options:
  sources:
    description:
      - The addresses that each variable names - URLs, folders, or C(docker://) and an image, which is not asked for
        where the engine has it. An empty one is left out. A login in one belongs to those who fetch, not here.
    type: dict
    required: true
  unless_image:
    description: Nothing is fetched where the engine has this image. Empty - this does not count.
    type: str
    default: ""
  unless_files:
    description: Nothing is fetched where all of these are there. Empty - this does not count.
    type: list
    elements: path
    default: []
  proxy:
    description: Proxy through which all but images come; then it is what must be reached. Empty - none.
    type: str
    default: ""
  timeout_s:
    description: How long to wait for an answer.
    type: float
    default: 5
attributes:
  check_mode:
    description: Does the same.
    support: full
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Refuse a host that is cut off
  sources_reached:
    unless_files: [/srv/comfyui/models/checkpoints/sd_xl_base_1.0.safetensors]
    sources:
      comfyui_model_endpoint: [https://huggingface.co]
"""

RETURN = r"""
asked:
  description: The sources that were asked, as host:port or folder.
  returned: success
  type: list
  elements: str
  sample: ["huggingface.co:443"]
"""

import os
import re
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

# A Docker that hangs must not silence the run.
COMMAND_LIMIT_S = 60
PORTS = {"docker": 443, "git": 9418, "http": 80, "https": 443}


class Place(NamedTuple):
    """Where a source is: a server, or with port 0 a folder of the host."""

    variable: str
    name: str
    port: int

    def __str__(self) -> str:
        return f"{self.name}:{self.port}" if self.port else self.name


def place(variable: str, address: str) -> Place | None:
    """The place of an address; None where none can be told from it.

    Of ssh only its own configuration knows where a name leads, and of an image without a registry only the engine.
    """
    if address.startswith("/"):
        return Place(variable, address, 0)
    registry, slash, _ = address.removeprefix("docker://").partition("/")
    if address.startswith("docker://") and not (slash and re.search(r"[.:]|^localhost$", registry)):
        return None
    try:
        parts = urllib.parse.urlsplit(address)
        port = parts.port
    except ValueError:  # whoever asks there says what is wrong with it
        return None
    if parts.scheme == "file":
        return Place(variable, parts.path, 0)
    if parts.scheme not in PORTS or not parts.hostname:
        return None
    return Place(variable, parts.hostname, port or PORTS[parts.scheme])


def silence(where: Place, timeout_s: float) -> str:
    """Why a place is not reached; empty where it is."""
    if not where.port:
        return "" if os.path.isdir(where.name) else "there is no such folder on this host"
    try:
        socket.create_connection((where.name, where.port), timeout=timeout_s).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return ""
    except TimeoutError:
        return f"no answer within {timeout_s:.0f} s"
    except OSError as error:
        return error.strerror or str(error)
    except UnicodeError:
        return "that cannot be a host's name"
    return ""


def said(*argv: str) -> str:
    """What a reading command prints; nothing where it fails or is not there."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def places(sources: Mapping[str, Sequence[str]], proxy: str) -> list[Place]:
    """What must be reached, each once; what goes a way of its own is left out."""
    found: dict[tuple[str, int], Place] = {}
    for variable, address in [(name, one) for name, addresses in sources.items() for one in addresses]:
        where = place(variable, address)
        if where is None:
            continue
        if address.startswith("docker://"):
            image = address.removeprefix("docker://")
            if said("docker", "image", "inspect", "--format", "{{.Id}}", image):
                continue
            if said("docker", "info", "--format", "{{.HTTPProxy}}{{.HTTPSProxy}}"):
                continue
        elif where.port and proxy:
            where = place("comfyui_proxy", proxy)
            if where is None:  # a proxy of another kind: what it reaches cannot be known from here
                continue
        elif where.port and (
            set(urllib.request.getproxies()) & {"all", "http", "https"}
            or said("git", "config", "--get-regexp", r"^(http\..*proxy|http\.proxy|url\.)")
        ):
            continue
        found.setdefault((where.name, where.port), where)
    return list(found.values())


def refusal(silent: dict[Place, str]) -> str:
    """The sentence about what is not reached."""
    listed = ", ".join(f"{where} ({where.variable}: {reason})" for where, reason in silent.items())
    names = " and ".join(dict.fromkeys(where.variable for where in silent))
    return (
        f"This host does not reach {listed}. Expected that it does, since what comes from there is not here yet. Mend "
        f"the way there, or set {names} to a mirror or to a folder of this host: docs/air-gapped.md says how."
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "sources": {"type": "dict", "required": True},
            "unless_image": {"type": "str", "default": ""},
            "unless_files": {"type": "list", "elements": "path", "default": []},
            "proxy": {"type": "str", "default": ""},
            "timeout_s": {"type": "float", "default": 5},
        },
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    files = params["unless_files"]
    if (files and all(os.path.exists(path) for path in files)) or (
        params["unless_image"] and said("docker", "image", "inspect", "--format", "{{.Id}}", params["unless_image"])
    ):
        module.exit_json(changed=False, asked=[])
    asked = places(params["sources"], params["proxy"])
    with ThreadPoolExecutor(max_workers=8) as pool:
        reasons = list(pool.map(lambda where: silence(where, params["timeout_s"]), asked))
    silent = {where: reason for where, reason in zip(asked, reasons, strict=True) if reason}
    if silent:
        module.fail_json(msg=refusal(silent))
    module.exit_json(changed=False, asked=[str(where) for where in asked])


if __name__ == "__main__":
    main()
