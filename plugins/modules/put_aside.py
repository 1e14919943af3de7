#!/usr/bin/python
"""Moves out of the way what is of another kind than it should be, as a folder in the place of a file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: put_aside
short_description: Move out of the way what is of another kind than it should be
description:
  - Where a folder, a device or a dead link stands in the place of a file, nothing can be written; the other way
    round, no folder can be made. What is there may be somebody's, so it is renamed and not removed.
  - A link counts as what it leads to. What is absent or right stays.
  - A link in the place of a folder that leads to nothing fails the task, since its disk may not be mounted yet.
options:
  paths:
    description: Where to look.
    type: list
    elements: path
    required: true
  kind:
    description: What is to be there.
    type: str
    choices: [file, folder]
    required: true
attributes:
  check_mode:
    support: full
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Put aside what is no file
  put_aside:
    paths: [/etc/systemd/system/comfyui.service]
    kind: file
"""

RETURN = r"""
aside:
  description: New names by the old ones.
  returned: always
  type: dict
  sample: {"/etc/systemd/system/comfyui.service": "/etc/systemd/system/comfyui.service.aside"}
drift:
  description: A row for each, for the table of P(drift#callback).
  returned: always
  type: list
  elements: dict
"""

import os
import stat

from ansible.module_utils.basic import AnsibleModule

IS_RIGHT = {"file": stat.S_ISREG, "folder": stat.S_ISDIR}
KINDS = {"a folder": stat.S_ISDIR, "a file": stat.S_ISREG, "a device": stat.S_ISCHR}


def in_the_way(path: str, kind: str) -> str:
    """What stands at `path` in the place of what should; empty where nothing or the right thing does."""
    link = f"a link to {os.readlink(path)}" if os.path.islink(path) else ""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return link
    if IS_RIGHT[kind](mode):
        return ""
    return link or next((words for words, fits in KINDS.items() if fits(mode)), "something else")


def free_name(path: str) -> str:
    """A name beside `path` that nothing has."""
    names = (f"{path}.aside{f'-{number}' if number else ''}" for number in range(10**6))
    return next(name for name in names if not os.path.lexists(name))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "required": True},
            "kind": {"type": "str", "choices": ["file", "folder"], "required": True},
        },
        supports_check_mode=True,
    )
    kind = module.params["kind"]
    found = {path: words for path in module.params["paths"] if (words := in_the_way(path, kind))}
    if dead := [path for path in found if kind == "folder" and os.path.islink(path) and not os.path.exists(path)]:
        module.fail_json(
            msg=f"{dead[0]} is {found[dead[0]]}, and that is not there, expected a folder. Nothing was put aside: see "
            "whether its disk is mounted (findmnt; mount -a), or remove the link, then run this again."
        )
    aside = {path: free_name(path) for path in found}
    try:
        for path, name in () if module.check_mode else aside.items():
            os.rename(path, name)
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename} is no {kind} and cannot be renamed: {error.strerror}. Expected that it can be put "
            "aside; move it out of the way, then run this again."
        )
    rows = [{"resource": path, "expected": kind, "found": words} for path, words in found.items()]
    module.exit_json(changed=bool(found), aside=aside, drift=rows)


if __name__ == "__main__":
    main()
