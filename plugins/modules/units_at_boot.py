#!/usr/bin/python
"""Units that start at boot, without a reload of systemd that takes GPUs from containers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: units_at_boot
short_description: Have units start at boot, and reload systemd only where that takes no GPU away
description:
  - A reload of systemd takes the GPUs from every container that got them by the legacy hook, until it is made anew.
    C(systemctl enable) reloads, so units are enabled in the files only; a boot reads them in any case.
  - Where systemd holds an older text of a unit than the file has, it is reloaded, if no such container runs. If one
    does, it is named in a warning, and systemd reads the unit at the next reload or boot.
options:
  names:
    description: The units. One that has no start of its own at boot (static) is looked at for the reload only.
    type: list
    elements: str
    default: []
  reload_ahead:
    description:
      - What else is about to reload systemd, as the subject of a sentence. The module fails where that takes GPUs away,
        and says from whom. Empty where nothing is.
    type: str
    default: ""
  accept:
    description: What to type for having that reload all the same; part of the message.
    type: str
    default: ""
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Refresh the CDI specification at boot
  units_at_boot:
    names: [nvidia-cdi-refresh.path, nvidia-cdi-refresh.service]

- name: Refuse to install a package with units under somebody's container
  units_at_boot:
    reload_ahead: The installation of example
    accept: "-e example_reload_may_take_gpus=true"
"""

RETURN = r"""
enabled:
  description: The units that were enabled, or would be.
  returned: always
  type: list
  sample: ["nvidia-cdi-refresh.path"]
reloaded:
  description: Whether systemd was reloaded, or would be.
  returned: always
  type: bool
drift:
  description: A row for each unit that was enabled, for the table of P(drift#callback).
  returned: always
  type: list
  elements: dict
losing:
  description: Containers whose GPUs a reload of systemd would take. Where a reload was due, it was left out for them.
  returned: always
  type: list
  sample: ["somebodys-training"]
"""

import contextlib
import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hook_gpus import by_hook


def environ(pid: int) -> bytes:
    """The environment of a process; empty where it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as stream:
        return stream.read()
    return b""


def losing(module: AnsibleModule) -> list[str]:
    """Names of the containers whose GPUs a reload of systemd takes; none where no engine answers."""
    docker = module.get_bin_path("docker")
    if not docker:
        return []
    code, driver, _ = module.run_command([docker, "info", "--format", "{{.CgroupDriver}}"])
    if code != 0 or driver.strip() != "systemd":
        return []
    _, running, _ = module.run_command([docker, "container", "ls", "--quiet"])
    if not running.split():
        return []
    # One of them may end meanwhile; the others are described all the same.
    _, described, _ = module.run_command([docker, "container", "inspect", *running.split()])
    names: list[str] = by_hook(json.loads(described or "[]"), environ)
    return names


def shown(module: AnsibleModule, unit: str, name: str) -> str:
    """A property of a unit."""
    _, text, _ = module.run_command(["systemctl", "show", f"--property={name}", "--value", unit])
    return str(text).strip()


def is_stale(module: AnsibleModule, unit: str, *, there: bool) -> bool:
    """Whether systemd holds another text of a unit than its file has, or read it when the file was gone."""
    if shown(module, unit, "NeedDaemonReload") == "yes":
        return True
    return there and shown(module, unit, "LoadState") in ("not-found", "error", "bad-setting")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "reload_ahead": {"type": "str", "default": ""},
            "accept": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LC_ALL": "C.UTF-8"}
    names = module.params["names"]
    ahead = module.params["reload_ahead"]
    # Of a unit that runs, `show` tells the state of systemd's last reload; this reads the files.
    states = {name: module.run_command(["systemctl", "is-enabled", name])[1].strip() for name in names}
    # In a dry run, the unit's file may be what the run would write.
    right = ("enabled", "static", *(("masked", "not-found", "") if module.check_mode else ()))
    off = [name for name in names if states[name] not in right]
    stale = [name for name in names if is_stale(module, name, there=states[name] not in ("not-found", ""))]
    # Debian enables a unit that has an old start script beside it by a program that reloads, whatever it is told.
    reloads = stale + [name for name in off if os.path.exists(f"/etc/init.d/{name.removesuffix('.service')}")]
    hit = losing(module) if reloads or ahead else []
    if hit and ahead:
        module.fail_json(
            msg=f"{ahead} reloads systemd, which takes the GPUs from running containers that have them by the legacy "
            f"hook: {', '.join(hit)}. Expected none of that kind. Start each anew with --device nvidia.com/gpu=all in "
            f"place of --gpus all, or stop it, then run this again; or accept it: {module.params['accept']}",
            losing=hit,
        )
    if hit:
        module.warn(
            f"{' '.join(reloads)}: systemd was not reloaded (systemctl daemon-reload), since that takes the GPUs from "
            f"{', '.join(hit)}, which got them by the legacy hook; it reads the unit at the next boot. Start these "
            "containers anew with --device nvidia.com/gpu=all in place of --gpus all, and no reload reaches them."
        )
        off = [name for name in off if name not in reloads]
    reload = bool(stale) and not hit
    if not module.check_mode:
        # Told to enable without a reload, systemd calls every unit of the host stale from then on.
        commands = [["systemctl", "--root=/", "enable", *off]] if off else []
        commands += [["systemctl", "daemon-reload"]] if reload else []
        for command in commands:
            code, _, errors = module.run_command(command)
            if code != 0:
                module.fail_json(
                    msg=f"{' '.join(command)} failed: {errors.strip()}. See: systemctl cat {' '.join(names)}"
                )
    rows = [{"resource": f"unit {name}", "expected": "enabled", "found": states[name] or "absent"} for name in off]
    module.exit_json(changed=bool(off) or reload, enabled=off, reloaded=reload, losing=hit, drift=rows)


if __name__ == "__main__":
    main()
