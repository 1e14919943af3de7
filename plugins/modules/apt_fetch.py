#!/usr/bin/python
"""Packages that can be installed, fetched before anything that needs them is changed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_fetch
short_description: Fetch packages and all that they need, and install nothing
description:
  - An installation that fails in the middle of a run leaves half of it behind. So apt resolves and fetches everything
    first, into its own cache, and a lock, a dead repository, a conflict or a full disk is met before the first change.
  - Waits until no other program holds the locks of apt and dpkg, and fails with the name of the one that does.
  - Refreshes the package lists. A source of somebody else may be dead; what counts is whether the packages come.
options:
  packages:
    description: What to fetch, as apt-get takes it (NAME or NAME=VERSION), without what is only recommended.
    type: list
    elements: str
    required: true
  hint:
    description: What to type where it cannot be had; part of the message.
    type: str
    required: true
  wait_s:
    description: How long to wait for the locks.
    type: int
    default: 600
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Fetch the engine before its configuration is written
  apt_fetch:
    packages: [docker.io, docker-buildx]
    hint: "See apt-cache policy docker.io."
"""

RETURN = r"""
fetched:
  description: The packages that apt would install, as its simulation has them.
  returned: success
  type: list
  sample: ["docker.io"]
"""

import re

from ansible.module_utils.apt_lock import wait_until_free
from ansible.module_utils.apt_source import complaint
from ansible.module_utils.basic import AnsibleModule

TRIES = 2


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "required": True},
            "hint": {"type": "str", "required": True},
            "wait_s": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    packages, wait_s = module.params["packages"], module.params["wait_s"]
    if busy := wait_until_free(wait_s):
        module.fail_json(msg=busy)
    install = ["apt-get", "--yes", "--no-install-recommends", "-o", f"DPkg::Lock::Timeout={wait_s}", "install"]
    if module.check_mode:
        # The lists of a real run would be newer, so what these do not have proves nothing.
        _, simulated, _ = module.run_command([*install, "--simulate", *packages])
        module.exit_json(changed=False, fetched=re.findall(r"(?m)^Inst (\S+)", simulated))
    for _ in range(TRIES):
        if module.run_command(["apt-get", "update"])[0] == 0:
            break
    for options in (["--simulate"], ["--download-only"]):
        code, output, errors = module.run_command([*install, *options, *packages])
        if code != 0:
            module.fail_json(
                msg=f"{' '.join(packages)} cannot be had: {complaint(errors or output)} Expected that apt can install "
                f"them. Nothing was installed or configured. {module.params['hint']}"
            )
        if options == ["--simulate"]:
            simulated = output
    module.exit_json(changed=False, fetched=re.findall(r"(?m)^Inst (\S+)", simulated))


if __name__ == "__main__":
    main()
