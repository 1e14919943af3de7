#!/usr/bin/python
"""The wait until nobody else uses apt."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_wait
short_description: Wait until no other program holds the locks of apt and dpkg
description:
  - For what fails at once under a lock, as a hold does. Fails with the name of the program that holds it for longer.
  - Changes nothing, and does not wait in check mode.
options:
  wait_s:
    description: How long to wait for the locks.
    type: int
    default: 600
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Wait until nobody else uses apt
  apt_wait:
    wait_s: 600
"""

RETURN = r"""
{}
"""

from ansible.module_utils.apt_lock import wait_until_free
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(argument_spec={"wait_s": {"type": "int", "default": 600}}, supports_check_mode=True)
    if not module.check_mode and (busy := wait_until_free(module.params["wait_s"])):
        module.fail_json(msg=busy)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
