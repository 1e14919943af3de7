"""Documentation of the action plugin of this name."""

DOCUMENTATION = r"""
module: drifted
short_description: Name a resource that is not as it should be, before commands repair it
description:
  - A row for the table of the callback plugin P(drift#callback), for resources whose repair no module speaks
    for. The row says C(not repaired) if a later task of the same role fails.
  - Changes nothing. In check mode it counts as a change, in place of the repair.
options:
  resource:
    description: What it is, in the words of the table.
    type: str
    required: true
  expected:
    description: How it should be.
    type: str
    required: true
  found:
    description: How it is.
    type: str
    required: true
attributes:
  check_mode:
    support: full
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Name the image that is to be built
  drifted:
    resource: image dgx-comfyui:0.28.1-1eebe44219d7
    expected: there
    found: absent
  when: not there
"""

RETURN = r"""
drift:
  description: The row.
  type: list
  elements: dict
  returned: always
"""
