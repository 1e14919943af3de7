#!/usr/bin/python
"""Claim a host for one run, so that no two provision it at once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_claim
short_description: Claim a host for one run, so that no two provision it at once
description:
  - The first run writes down on the host who it is. Another one is refused until it has let go, and so is one that
    looked at the host before that, since what it saw may be no more.
  - A claim whose run is dead is taken over with a warning. On the control node that began it that shows at once; from
    elsewhere, when nothing has been heard of it for half an hour. A long task is heard of all the time
    (M(show_progress)), and a claim does not survive a boot of the host.
  - A run that was taken over does not let go of what is another's by now.
  - In check mode nothing is claimed. A claim is never a change.
options:
  state:
    description: Claim the host, or let go of it.
    type: str
    choices: [held, released]
    default: held
  seen_s:
    description: When this run read the host first, in seconds of the host's own clock.
    type: float
    default: 0
  run:
    description: What identifies the run. The action plugin knows it.
    type: str
    default: ""
  who:
    description: Who runs it, for people. The action plugin knows it.
    type: str
    default: ""
  dead:
    description: A run that is known to be dead. The action plugin finds out.
    type: str
    default: ""
  path:
    description: The file on the host.
    type: path
    default: /run/dgx-comfyui/claim.json
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Claim the host for this run
  host_claim:

- name: Let go of the host
  host_claim:
    state: released
"""

RETURN = r"""
holder:
  description: The run that has the host, with C(run), C(who), C(since_s) and C(silent_s). Only where it is another one.
  returned: when another run has the host
  type: dict
taken_over:
  description: The same of the run whose claim was taken over.
  returned: when one was
  type: dict
missed:
  description: The same of a run that has ended since this one read the host.
  returned: when one has
  type: dict
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# The longest that a living run may be silent: what it runs without progress are installations of packages, which wait
# 10 minutes for apt's lock.
SILENCE_LIMIT_S = 1800


def judge(found: dict[str, Any], wanted: dict[str, Any], now_s: float, heard_s: float) -> dict[str, Any]:
    """What a claim meets: `holder`, `taken_over`, `missed`, or nothing.

    `found` is the claim that lies on the host, `wanted` what the module was asked for; `heard_s` is when the run of the
    found one was last heard of. Times are those of the host.
    """
    if not found or found["run"] == wanted["run"]:
        return {}
    other = {**found, "silent_s": round(now_s - heard_s)}
    if found["ended_s"] is not None:
        return {"missed": other} if wanted["seen_s"] and found["ended_s"] >= wanted["seen_s"] else {}
    if found["run"] == wanted["dead"] or now_s - heard_s > SILENCE_LIMIT_S:
        return {"taken_over": other}
    return {"holder": other}


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """The file, made where it is not there, and nobody else's until it is closed."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def read(handle: int) -> dict[str, Any]:
    """The claim in the file; empty where there is none, or one that was cut short by a full disk."""
    try:
        found = json.loads(os.pread(handle, 1 << 16, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"run", "who", "since_s", "ended_s"} <= set(found) else {}


def write(handle: int, claim: dict[str, Any]) -> None:
    """Put a claim into the file."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(claim).encode() + b"\n", 0)


def settle(params: dict[str, Any]) -> dict[str, Any]:
    """Claim or let go; what was met is returned."""
    with opened(params["path"]) as handle:
        found = read(handle)
        now_s = time.time()
        own = bool(found) and found["run"] == params["run"]
        if params["state"] == "released":
            if own:
                write(handle, {**found, "ended_s": now_s})
            return {}
        met = judge(found, params, now_s, os.fstat(handle).st_mtime)
        if "holder" not in met and "missed" not in met:
            write(handle, {"run": params["run"], "who": params["who"], "since_s": now_s, "ended_s": None})
        return met


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["held", "released"], "default": "held"},
            "seen_s": {"type": "float", "default": 0},
            "run": {"type": "str", "default": ""},
            "who": {"type": "str", "default": ""},
            "dead": {"type": "str", "default": ""},
            "path": {"type": "path", "default": "/run/dgx-comfyui/claim.json"},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False)
    try:
        met = settle(module.params)
    except OSError as error:
        module.fail_json(
            msg=f"{module.params['path']} cannot be written ({error.strerror}), expected that root runs this. Log in "
            "as root, or set ansible_become: true."
        )
    module.exit_json(changed=False, **met)


if __name__ == "__main__":
    main()
