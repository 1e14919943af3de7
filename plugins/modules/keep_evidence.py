#!/usr/bin/python
"""The documentation of the action plugin of this name, which runs on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: keep_evidence
short_description: Keep on the control node what a host can say about a failure, and fail with that failure's words
description:
  - Reads files and the output of commands from the host in one task, by M(host_probe), so that what is not there is an
    answer and not an error. Masks secrets and writes each answer to a file on the control node.
  - With O(failure) the task then fails, and its message is that of the failure with one more line, which names the
    folder. Without it the task succeeds.
  - Evidence that cannot be had or written never hides the failure; the last line then says why there is none.
  - Masked are the values of variables, environment variables and JSON keys that are called token, password, secret
    or the like, logins in URLs, signatures in their queries, and HTTP logins, wherever they stand.
options:
  dest:
    description: Folder on the control node. What an earlier failure left there is replaced.
    type: path
    required: true
  contents:
    description: Text files to read; each is kept below C(files/).
    type: list
    elements: str
    default: []
  commands:
    description: Name and argument list of commands that change nothing; the output of each is kept as C(NAME.txt).
    type: dict
    default: {}
  failure:
    description: The result of the task that failed, C(ansible_failed_result) in a rescue.
    type: dict
    default: {}
  failed_task:
    description: The name of the task that failed.
    type: str
    default: ""
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Keep the evidence, and fail with what went wrong
  keep_evidence:
    dest: artifacts/{{ inventory_hostname }}/failure
    failure: "{{ ansible_failed_result }}"
    failed_task: "{{ ansible_failed_task.name }}"
    contents: [/etc/docker/daemon.json]
    commands:
      df: [df, --human-readable]
"""

RETURN = r"""
msg:
  description: The words of the failure, and where the evidence lies.
  returned: always
  type: str
"""
