"""Documentation of the action show_progress, which lies in plugins/action: Ansible looks for it here."""

from __future__ import annotations

DOCUMENTATION = r"""
module: show_progress
short_description: Run a long module and show how far it is
description:
  - Runs a module on the host in the background and prints a line now and then while it runs. The line has the host, the
    title, and what is known, which is percent, bytes, rate and time left of a transfer, the step of a build, or just
    how long it has taken.
  - Without a terminal the first line comes after 9.5 seconds and then one every 9.5 seconds, so a short task prints
    none and a long one is never silent for more than ten. On a terminal the first comes after two seconds. Lines go to
    the error output, which is not held back when it goes into a file.
  - Tasks of this project that run on the host at the same time, such as a download that was begun before, are told of
    as long as they move.
  - The result, changes, differences and failures are those of the module, as if it were called directly. In check mode
    it is called directly.
  - Any module can be run. One of this project says how far it is through module_utils/progress.py; the file for that
    lies in /run/dgx-comfyui, which only root can read, and ends with the task.
  - The job belongs to the host. When a run is interrupted it goes on, and the modules of this project make a run that
    follows wait for it and take over what it made.
options:
  title:
    description: What the lines call the task. Required with O(run).
    type: str
  run:
    description: The module and its arguments, written as a task is. Defaults from C(module_defaults) do not apply.
    type: dict
  wait:
    description: Wait for the end. If not, the result is for O(jobs) of a later task.
    type: bool
    default: true
  timeout_s:
    description: The longest time that the module may run. Then the host ends it.
    type: int
    default: 86400
  jobs:
    description:
      - Results of tasks with O(wait=false). All of them are waited for, also when one has failed.
      - The task has changed something if one of them has, and fails if one of them does, with their messages.
    type: list
    elements: dict
attributes:
  check_mode:
    description: As the module that is run.
    support: full
  async:
    description: It is what this does. Use O(wait) instead of C(async) and C(poll).
    support: none
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Install a large package
  show_progress:
    title: installing CUDA
    run:
      ansible.builtin.apt:
        name: cuda-toolkit

- name: Begin a download
  show_progress:
    title: SDXL base
    wait: false
    run:
      model_store_file: "{{ entry }}"
  register: begun

- name: Wait for the download
  show_progress:
    jobs: ["{{ begun }}"]
"""

RETURN = r"""
ansible_job_id:
  description: The job's name. Everything else in a result is the module's.
  returned: with O(wait=false)
  type: str
progress_file:
  description: The file on the host in which the module says how far it is.
  returned: with O(wait=false)
  type: str
jobs:
  description: The results of the modules, in the order of O(jobs).
  returned: with O(jobs)
  type: list
title:
  description: The title.
  returned: with O(wait=false)
  type: str
timeout_s:
  description: The limit.
  returned: with O(wait=false)
  type: int
"""
