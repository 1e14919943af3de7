"""Documentation of the action plugin of this name."""

DOCUMENTATION = r"""
module: await_host
short_description: Wait until a host answers, as after a reboot
description:
  - Runs the module ping until the connection stands. A host that does not answer in time counts as unreachable, with a
    sentence that says so; what is wrong beyond the connection is for the tasks that follow to say.
  - Then waits for the end of the boot, within what is left of the time. A host that does not come to it goes on.
  - Changes nothing. In check mode it waits where the task says C(check_mode) false.
options:
  timeout_s:
    description: How long to wait, in seconds. With V(0) the host is asked once.
    type: float
    required: true
attributes:
  check_mode:
    support: full
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Wait for the host
  await_host:
    timeout_s: 300
"""

RETURN = r"""
msg:
  description: For how long it did not answer, and what the connection said.
  type: str
  returned: when it did not
"""
