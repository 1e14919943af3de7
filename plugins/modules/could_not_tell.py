#!/usr/bin/python
"""Count a host as out of reach. The work is done by the action of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: could_not_tell
short_description: Count a host as out of reach
description:
  - Ends the play for this host as an unreachable one, so that C(ansible-playbook) exits with 4. A failed host makes it
    exit with 2. So whoever calls a playbook of checks can tell a host that is broken from one that could not be judged.
  - Runs on the control node.
options:
  msg:
    description: What is in the way.
    type: str
    required: true
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Stop where the checks could not run
  could_not_tell:
    msg: the checks themselves broke
  when: checks.rc not in [0, 1]
"""

RETURN = r"""
unreachable:
  description: Always true.
  returned: always
  type: bool
"""
