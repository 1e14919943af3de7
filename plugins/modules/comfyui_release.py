#!/usr/bin/python
"""Change the release of ComfyUI that a host runs, by the guard that lies there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: comfyui_release
short_description: Run a release of ComfyUI and prove it, or go back to the one before
description:
  - Waits until nothing is rendered, switches, restarts C(comfyui.service), and proves the release. The API answers, an
    image without a model comes back, and on a GPU a matrix product is right.
  - A release that does not prove itself is marked bad, the one before is started again, and the module fails with the
    last words of the container.
  - A release that runs already is proved again and not restarted.
  - One change at a time. A second one waits for the first, and whatever was interrupted can be run again.
options:
  release:
    description: Its id, the name of a file in C(/etc/comfyui/releases). Empty with O(back=true) is the one before.
    type: str
    default: ""
  back:
    description: Go back. The release that is left is marked bad.
    type: bool
    default: false
  drain_timeout_s:
    description: How long to wait for an empty queue, then the module fails. V(0) loses what is in it, and counts it.
    type: float
    default: 300
  retry_bad:
    description: Run a release that is marked bad.
    type: bool
    default: false
  kept:
    description: How many releases that proved themselves to keep beside this one.
    type: int
    default: 2
  guard:
    description: The guard on the host.
    type: path
    default: /usr/local/lib/comfyui/comfyui_guard.py
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Run a release
  comfyui_release:
    release: 0123456789ab

- name: Go back to the release before
  comfyui_release:
    back: true
"""

RETURN = r"""
release:
  description: The release that runs now.
  returned: success
  type: str
before:
  description: The release to go back to; empty where there is none.
  returned: success
  type: str
away_s:
  description: Seconds from the switch to the first answer of the API. V(0) where nothing was switched.
  returned: success
  type: float
jobs_lost:
  description: Jobs that the stop lost; none where the queue did not answer.
  returned: success
  type: int
"""

import json
import subprocess
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.progress import Reporter


def arguments(params: dict[str, Any]) -> list[str]:
    """The guard's command line."""
    words = ["python3", params["guard"], "rollback" if params["back"] else "activate"]
    words += [params["release"]] if params["release"] else []
    words += ["--drain-s", str(params["drain_timeout_s"])]
    if not params["back"]:
        words += ["--kept", str(params["kept"]), *(["--again"] if params["retry_bad"] else [])]
    return words


def run(words: list[str], report: Reporter) -> tuple[int, str, str]:
    """Status, output and error output of a command; each line of the latter is told on while it runs."""
    lines = []
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(words, stdout=output, stderr=subprocess.PIPE, text=True, errors="replace") as process,
    ):
        for line in process.stderr or ():
            lines.append(line)
            report(line.strip())
        process.wait()
        output.seek(0)
        return process.returncode, output.read(), "".join(lines)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "default": ""},
            "back": {"type": "bool", "default": False},
            "drain_timeout_s": {"type": "float", "default": 300},
            "retry_bad": {"type": "bool", "default": False},
            "kept": {"type": "int", "default": 2},
            "guard": {"type": "path", "default": "/usr/local/lib/comfyui/comfyui_guard.py"},
        },
    )
    if not module.params["back"] and not module.params["release"]:
        module.fail_json(msg="release is empty, expected the id of one in /etc/comfyui/releases, or back: true.")
    with Reporter.from_environment() as report:
        status, output, words = run(arguments(module.params), report)
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        module.fail_json(msg=f"The guard ended with {status}: {words.strip() or output.strip()}")
    if "error" in result:
        module.fail_json(msg=result["error"])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
