#!/usr/bin/python
"""The one owner of Docker's daemon.json."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon_json
short_description: Merge keys into Docker's daemon.json, and let the engine take them up
description:
  - Merges the given keys into the file that others write to as well, and keeps everything else in it, in its order.
  - Keys that the service unit passes as flags are left out, since dockerd does not start with a key given in both
    places, even with the same value. What an earlier change wrote and has to be left out by now is taken out again.
  - A log driver that the host already has is respected, and the log options of another one are left out with it.
  - The new file is checked by dockerd itself, with the unit's own flags, before it replaces the old one in one step.
    Mode and owner are kept; a link stays a link.
  - The file as it was before the first change is kept beside it as C(daemon.json.before-dgx-comfyui), empty where there
    was none. It is written once, so that it stays the file that this host had before, not an intermediate state.
  - The member of a swarm, running or stopped, gets no C(live-restore), with which its dockerd would not start.
  - A change that waits for a restart is remembered until the engine was started again, over failed runs too.
  - Where others wrote to the file and the engine has not taken that up yet, a warning says so before it will, and
    RV(others_restart_keys) until the engine was started again, over failed runs too.
  - A file that is not JSON is refused with line and column, and is not touched. An empty file counts as C({}).
options:
  path:
    description: The file. Made, with its directory, where it is absent and there are keys to write.
    type: path
    default: /etc/docker/daemon.json
  keys:
    description:
      - What to merge. Objects are merged key by key; lists keep what they hold and get what is missing; anything else
        is replaced.
    type: dict
    default: {}
  remove:
    description:
      - Dotted names of keys to take out. An object that becomes empty by it stays, so that a reload sees it. What stood
        there before the first change comes back.
    type: list
    elements: str
    default: []
  keep:
    description: Dotted names, of O(keys), where what the file had before the first change counts instead.
    type: list
    elements: str
    default: []
  flags_from_unit:
    description: Read the flags of the unit docker.service, and leave out the keys that they set.
    type: bool
    default: true
  state:
    description:
      - V(present) merges O(keys) and takes out O(remove).
      - V(reloaded) reloads the unit, or starts it where it does not run, and waits until C(docker info) shows every
        reloadable key of the file. If that does not come, the file is put back as it was before the run, the unit is
        reloaded once more, and the module fails with the engine's last messages.
      - V(restarted) does the same with a restart, for all keys that C(docker info) shows.
    type: str
    choices: [present, reloaded, restarted]
    default: present
  wait_s:
    description: How long V(reloaded) and V(restarted) wait.
    type: int
    default: 30
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Add the NVIDIA runtime to the Docker daemon file
  docker_daemon_json:
    keys:
      runtimes:
        nvidia:
          path: nvidia-container-runtime
          args: []
  register: __role_daemon
  # An earlier run may have died between the file and its handler.
  changed_when: __role_daemon.changed or __role_daemon.apply | default('none') != 'none'
  notify: Reload Docker
"""

RETURN = r"""
changed_keys:
  description: Dotted names of the keys that were written, or would be.
  returned: always
  type: list
  sample: ["live-restore", "log-opts.max-size"]
drift:
  description: The rows that this is in the table of P(drift#callback). Without logins and secrets.
  returned: always
  type: list
  elements: dict
left_out:
  description: Dotted names of the keys that the unit passes as flags, or that a swarm or another log driver forbids.
  returned: always
  type: list
  sample: ["default-shm-size"]
kept:
  description: Dotted names of the keys that this host had with another value, which counts.
  returned: always
  type: list
  sample: ["log-opts.max-size"]
apply:
  description:
    - What it takes until the running engine has O(keys), V(none), V(reload) or V(restart). Also answers for a file that
      is right while the engine still runs without it. V(none) where no engine answers, as it will read the file when it
      starts.
  returned: always
  type: str
  sample: reload
restart_keys:
  description: Dotted names of the keys that a reload leaves as they were.
  returned: always
  type: list
  sample: ["log-opts.max-size"]
others_restart_keys:
  description: Dotted names of what others wrote and the next start of the engine takes up. A restart for O(keys) would.
  returned: always
  type: list
  sample: ["data-root"]
backup:
  description: Path of the backup that this run made; empty where none was needed.
  returned: always
  type: str
  sample: /etc/docker/daemon.json.before-dgx-comfyui
validation:
  description: What dockerd said about the new file, or why it was not asked.
  returned: always
  type: str
  sample: configuration OK
"""

import json
import os
import tempfile
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.daemon_json import (
    DaemonJsonError,
    Plan,
    changed_paths,
    drift,
    environment_files,
    flag_value,
    is_below,
    is_of,
    mask_credentials,
    needs_restart,
    not_in_force,
    parse_config,
    plan,
    same,
    swarm_state_file,
    unit_argv,
    validation_argv,
    value_at,
    version_tuple,
    waiting_of_others,
)

BACKUP_SUFFIX = ".before-dgx-comfyui"
# What the file was before this run, until the engine has taken the new one up; after that, what the engine runs with.
# Gone after a boot, as it should be.
UNDO_PATH = "/run/dgx-comfyui-daemon.json"
FIRST_WITH_VALIDATE = (23,)
UNIT = "docker.service"


def read_text(module: AnsibleModule, path: str) -> str:
    """The file's text, empty where there is none."""
    try:
        with open(path, encoding="utf-8-sig") as handle:
            return handle.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        module.fail_json(msg=f"{path} cannot be read as UTF-8 text: {error}. It was not changed.")
        raise


def read_unit_argv(module: AnsibleModule) -> list[str]:
    """The command of docker.service as it would start now; empty without the unit or without systemd."""
    if not module.get_bin_path("systemctl"):
        return []
    code, unit_text, _ = module.run_command(["systemctl", "cat", UNIT])
    if code != 0:
        return []
    file_texts = {path: read_text(module, path) for path in environment_files(unit_text)}
    try:
        argv: list[str] = unit_argv(unit_text, file_texts)
    except ValueError as error:
        module.fail_json(msg=f"The flags of {UNIT} cannot be read ({error}). Mend its quotes: systemctl cat {UNIT}")
        raise
    return argv


def read_info(module: AnsibleModule) -> dict[str, Any]:
    """What the running engine says about itself; empty where none answers."""
    docker = module.get_bin_path("docker")
    if not docker:
        return {}
    code, output, _ = module.run_command([docker, "info", "--format", "{{json .}}"])
    if code != 0:
        return {}
    found = json.loads(output)
    return found if isinstance(found, dict) and found.get("ServerVersion") else {}


def started_s(module: AnsibleModule) -> float:
    """When dockerd was started, on the clock that time.monotonic has; infinite where nobody says."""
    if not module.get_bin_path("systemctl"):
        return float("inf")
    _, text, _ = module.run_command(
        ["systemctl", "show", "--property=ExecMainStartTimestampMonotonic", "--value", UNIT]
    )
    return int(text) / 1e6 if text.strip().isdigit() else float("inf")


def read_original(path: str) -> dict[str, Any] | None:
    """The settings before the first change; None where there was no change yet."""
    try:
        with open(path + BACKUP_SUFFIX, encoding="utf-8-sig") as stream:
            found: dict[str, Any] = parse_config(stream.read())
    except (OSError, UnicodeDecodeError):
        return None
    except DaemonJsonError:
        return {}
    return found


def validate(module: AnsibleModule, argv: list[str], candidate: str, path: str) -> str:
    """Ask dockerd about the candidate; the answer, or the reason why it was not asked."""
    command = validation_argv(argv, candidate)
    program = module.get_bin_path(command[0])
    if not program:
        return "not asked: there is no dockerd on this host yet"
    _, version_text, _ = module.run_command([program, "--version"])
    if version_tuple(version_text) < FIRST_WITH_VALIDATE:
        return f"not asked: --validate came with Docker 23, found {version_text.strip()!r}"
    code, output, errors = module.run_command([program, *command[1:]])
    said = (errors.strip() or output.strip()).replace(candidate, path)
    if code != 0:
        module.fail_json(
            msg=f"dockerd would not start with the merged {path}, so the file was left as it was. It said: {said}. "
            f"Its flags come from the unit: systemctl cat {UNIT}"
        )
    return said.splitlines()[-1] if said else "configuration OK"


def write(module: AnsibleModule, argv: list[str], path: str, text: str, others: list[str]) -> tuple[str, str]:
    """Validate and put the text in place, `others` of which wait for a start; path of a new backup, what was said."""
    exists = os.path.exists(path)
    before = read_text(module, path) if exists else None
    handle, candidate = tempfile.mkstemp(prefix="daemon-json-", dir=module.tmpdir)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    module.add_cleanup_file(candidate)
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    if not os.access(folder, os.W_OK):
        module.fail_json(
            msg=f"{folder} cannot be written to, expected that root can; {path} was not changed. If it is mounted "
            f"read-only, dmesg says why; then: mount -o remount,rw $(findmnt --noheadings --output TARGET -T {folder})"
        )
    said = validate(module, argv, candidate, path)
    backup = ""
    if module.check_mode:
        return backup, said
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        if not os.path.exists(path + BACKUP_SUFFIX):
            backup = path + BACKUP_SUFFIX
            if exists:
                module.preserved_copy(path, backup)
            else:
                os.close(os.open(backup, os.O_WRONLY | os.O_CREAT, 0o644))
        if not exists:
            os.chmod(candidate, 0o644)
    except OSError as error:
        module.fail_json(msg=f"{error.filename} cannot be written: {error.strerror}. {path} was not changed.")
    change = {"after": text, "before": before, "backup": backup, "others": others, "at_s": time.monotonic()}
    remember(change, started_s(module))  # first: a run that dies in between leaves a restart due, not a lost one
    module.atomic_move(candidate, path, keep_dest_attrs=exists)
    return backup, said


def remember(change: dict[str, Any], engine_started_s: float) -> None:
    """Keep what the file was (None: none) and is; of several changes since the engine's start, before the first."""
    undo = recall()
    if undo and undo["after"] == change["before"] and undo["at_s"] > engine_started_s:
        change |= {"before": undo["before"], "backup": undo["backup"] or change["backup"]}
    store(change)


def note(text: str, others: list[str]) -> None:
    """Keep that the engine runs with this text, but for what `others` wrote, and that there is no way back from it."""
    store({"after": text, "before": text, "backup": "", "others": others, "at_s": time.monotonic()})


def store(change: dict[str, Any]) -> None:
    """Write the change down for later runs."""
    with open(os.open(UNDO_PATH, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        json.dump(change, stream)


def recall() -> dict[str, Any]:
    """What was kept; empty where nothing was."""
    try:
        with open(UNDO_PATH, encoding="utf-8") as stream:
            found: dict[str, Any] = json.load(stream)
    except (FileNotFoundError, ValueError):
        return {}
    return found if "others" in found else {}


def changed_keys(undo: dict[str, Any]) -> list[str]:
    """Dotted names of what was changed since the engine last took the file up."""
    paths: list[str] = changed_paths(parse_config(undo["before"] or ""), parse_config(undo["after"]))
    return paths


def due_for_restart(undo: dict[str, Any], engine_started_s: float) -> list[str]:
    """Dotted names of what an earlier change left to a restart that has not been since."""
    if not undo or engine_started_s > undo["at_s"]:
        return []
    return [path for path in changed_keys(undo) if needs_restart(path)]


def put_back(module: AnsibleModule, path: str) -> bool:
    """Make the file what it was before the run; False where nothing is known, or somebody wrote to it since."""
    undo = recall()
    if not undo or undo["after"] != read_text(module, path) or undo["after"] == undo["before"]:
        return False
    if undo["before"] is None:
        os.unlink(path)
    else:
        handle, candidate = tempfile.mkstemp(prefix="daemon-json-", dir=module.tmpdir)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(undo["before"])
        module.atomic_move(candidate, path, keep_dest_attrs=True)
    if undo["backup"]:  # this host has its own file again, and what comes into it is its own
        os.unlink(undo["backup"])
    note(undo["before"] or "", undo["others"])
    return True


def wanted_state(info: dict[str, Any], planned: Plan, due: list[str]) -> tuple[str, list[str]]:
    """What the running engine still needs for the planned keys: V(none), V(reload) or V(restart), and the keys."""
    if not info:
        return "none", []
    ours = [path for path in not_in_force(planned.config, info) if is_of(path, planned.wanted)]
    # What a flag passes is in force from the next start on, whoever makes it; systemd may not have read that flag yet.
    waiting = sorted(path for path in {*planned.changed_keys, *ours, *due} if not is_below(path, planned.left_out))
    restart_keys = [path for path in waiting if needs_restart(path)]
    if restart_keys:
        return "restart", restart_keys
    return ("reload" if waiting else "none"), []


def of_others(
    config: dict[str, Any], planned: Plan, info: dict[str, Any], engine_started_s: float, *, written_since_start: bool
) -> list[str]:
    """Dotted names of what others have in the file and the running engine may not have taken up yet."""
    if not info:
        return []
    known = recall()
    if not known or known["at_s"] <= engine_started_s:
        found: list[str] = waiting_of_others(config, planned.wanted, info, written_since_start=written_since_start)
        return found
    # An earlier task of this run, an earlier run, or one that died: what differs from then on is somebody else's.
    before_us, after_us = parse_config(known["before"] or ""), parse_config(known["after"])
    certain = waiting_of_others(config, planned.wanted, info, written_since_start=False)
    waiting = {*known["others"], *changed_paths(after_us, config), *(set(after_us) - set(config)), *certain}

    def is_ours(path: str) -> bool:
        value = value_at(after_us, path)
        written = same(value, value_at(config, path)) and not same(value, value_at(before_us, path))
        return written or is_of(path, planned.wanted)

    return sorted(path for path in waiting if not is_ours(path))


def present(module: AnsibleModule, argv: list[str], path: str) -> dict[str, Any]:
    """Merge the keys; the module's answer."""
    text = read_text(module, path)
    info, since_s = read_info(module), started_s(module)
    try:
        before = parse_config(text)
        planned = plan(
            text,
            module.params["keys"],
            argv if module.params["flags_from_unit"] else [],
            module.params["remove"],
            keep=module.params["keep"],
            original=read_original(path),
            swarm=(info.get("Swarm") or {}).get("LocalNodeState", "inactive") not in ("", "inactive")
            or os.path.exists(swarm_state_file(before, argv)),
        )
    except DaemonJsonError as error:
        module.fail_json(
            msg=f"{path} is not valid, so it was not touched: {error}. "
            f"Mend it by hand (python3 -m json.tool {path}), then run this again."
        )
        raise
    undo = recall()
    # Of what waits for a restart, what another task brought is that one's to tell. A name may be an object around one.
    mentioned = [f"{name}." for name in [*module.params["remove"], *changed_paths({}, module.params["keys"])]]
    due = [path for path in due_for_restart(undo, since_s) if any(name.startswith(f"{path}.") for name in mentioned)]
    apply, restart_keys = wanted_state(info, planned, due)
    since_start = os.path.exists(path) and os.stat(path).st_mtime > time.time() - time.monotonic() + since_s
    others = of_others(before, planned, info, since_s, written_since_start=since_start)
    if set(others) - set(undo.get("others", [])) and apply != "none":
        module.warn(
            f"Somebody changed {path}, and the engine may run without that so far: {', '.join(others)}. What this run "
            f"changed needs a {apply}, which takes that up as well. Which came first: "
            f"systemctl show --property=ExecMainStartTimestamp {UNIT}; stat {path}"
        )
    others_restart_keys = [name for name in others if needs_restart(name)]
    backup, said = "", "not asked: nothing to write"
    if planned.text is not None:
        backup, said = write(module, argv, path, planned.text, others_restart_keys)
    return {
        "changed": planned.text is not None,
        "changed_keys": planned.changed_keys,
        "drift": drift(path, before, planned),
        "left_out": planned.left_out,
        "kept": planned.kept,
        "apply": apply,
        "restart_keys": restart_keys,
        "others_restart_keys": others_restart_keys,
        "backup": backup,
        "validation": said,
        "diff": {
            "before_header": path,
            "after_header": path,
            "before": mask_credentials(text),
            "after": mask_credentials(text if planned.text is None else planned.text),
        },
    }


def act(module: AnsibleModule, *, restart: bool) -> str:
    """Reload or restart the unit; what systemd said where it failed."""
    active = module.run_command(["systemctl", "is-active", "--quiet", UNIT])[0] == 0
    if restart or not active:
        # Several starts within a minute reach the unit's limit, and systemd then stops Docker and does not start it.
        module.run_command(["systemctl", "reset-failed", UNIT])
    code, _, errors = module.run_command(["systemctl", "restart" if restart or not active else "reload", UNIT])
    return str(errors).strip() if code != 0 else ""


def wait_in_force(module: AnsibleModule, config: dict[str, Any], *, restarted: bool) -> tuple[str, list[str]]:
    """Wait until `docker info` shows the settings: what is wrong when the time is up, and what waits for a restart."""
    deadline = time.monotonic() + module.params["wait_s"]
    while True:
        info = read_info(module)
        differing = not_in_force(config, info)
        waiting = [name for name in differing if restarted or not needs_restart(name)]
        if info and not waiting:
            return "", differing
        if time.monotonic() > deadline:
            return f"still runs without {', '.join(waiting)}" if info else "does not answer `docker info`", differing
        time.sleep(0.5)


def take_up(module: AnsibleModule, path: str, *, restart: bool) -> dict[str, Any]:
    """Let the engine take the file up, or put the file back; the module's answer."""
    try:
        config = parse_config(read_text(module, path))
    except DaemonJsonError as error:
        module.fail_json(msg=f"{path} is not valid: {error}")
        raise
    differing = not_in_force(config, read_info(module))
    if not module.check_mode:
        refused = act(module, restart=restart)
        problem, differing = wait_in_force(module, config, restarted=restart)
        if problem:
            _, journal, _ = module.run_command(["journalctl", "-u", UNIT, "-t", "dockerd", "-n", "5", "-o", "cat"])
            as_it_was = put_back(module, path)
            if as_it_was:
                act(module, restart=restart)
            module.fail_json(
                msg=f"The Docker engine {problem} of {path}, {module.params['wait_s']} s after a "
                f"{'restart' if restart else 'reload'}. "
                f"{'The file was put back as it was before this run' if as_it_was else 'The file was left as it is'}, "
                f"expected that the engine takes it up. See: journalctl -u {UNIT} -t dockerd. "
                f"Its last messages: {refused} {journal.strip()}"
            )
        undo = recall()
        if restart:
            note(read_text(module, path), [])
        # A restart may follow the reload, and has to be able to go back as well.
        elif undo and not any(map(needs_restart, changed_keys(undo))):
            note(undo["after"], undo["others"])
    return {
        "changed": restart,
        "changed_keys": [],
        "drift": [],
        "left_out": [],
        "kept": [],
        "apply": "restart" if differing else "none",
        "restart_keys": differing,
        "others_restart_keys": [],
        "backup": "",
        "validation": "not asked: nothing to write",
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "keys": {"type": "dict", "default": {}, "no_log": False},
            "remove": {"type": "list", "elements": "str", "default": []},
            "keep": {"type": "list", "elements": "str", "default": []},
            "flags_from_unit": {"type": "bool", "default": True},
            "state": {"type": "str", "choices": ["present", "reloaded", "restarted"], "default": "present"},
            "wait_s": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LC_ALL": "C.UTF-8"}
    argv = read_unit_argv(module)
    elsewhere = flag_value(argv, "config-file")
    path = os.path.realpath(module.params["path"])
    if elsewhere and os.path.realpath(elsewhere) != path:
        module.fail_json(
            msg=f"{UNIT} starts dockerd with --config-file={elsewhere}, so {path} would not be read. "
            f"Give this module path: {elsewhere}"
        )
    if module.params["state"] == "present":
        module.exit_json(**present(module, argv, path))
    module.exit_json(**take_up(module, path, restart=module.params["state"] == "restarted"))


if __name__ == "__main__":
    main()
