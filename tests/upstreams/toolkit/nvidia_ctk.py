#!/usr/bin/python3
"""Stand-in for nvidia-ctk: the commands that a provisioner uses, with the real program's effects.

`runtime configure` edits the engine's real file, `cdi generate` describes the device nodes that are really under
/dev. What GPUs there are is asked of nvidia-smi instead of NVML. build.py writes the version into what it packs.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

VERSION = "0.0.0"

Json = Any
CONFIG_PATH = "/etc/nvidia-container-runtime/config.toml"
SPEC_DIRS = ["/etc/cdi", "/var/run/cdi"]
KIND = "nvidia.com/gpu"
HOOK = "/usr/bin/nvidia-cdi-hook"
LIBRARY_HOME = "/usr/lib/nvidia-standin/lib"
CONTROL_NODES = ["/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"]
MOUNT_OPTIONS = ["ro", "nosuid", "nodev", "rbind", "rprivate"]

CONFIG_TEXT = """\
disable-require = false
supported-driver-capabilities = "compat32,compute,display,graphics,ngx,utility,video"

[nvidia-container-cli]
load-kmods = true

[nvidia-container-runtime]
log-level = "info"
mode = "auto"
runtimes = ["runc", "crun"]

[nvidia-container-runtime.modes.cdi]
default-kind = "nvidia.com/gpu"
spec-dirs = ["/etc/cdi", "/var/run/cdi"]

[nvidia-container-runtime.modes.legacy]
cuda-compat-mode = "ldconfig"
"""


class StandinError(Exception):
    """What the program ends with, as one line."""


def log(level: str, message: str) -> None:
    """A line of the program's log."""
    print(f"level={level} msg={json.dumps(message)}", file=sys.stderr)


# Engine


def go_json(value: Json) -> str:
    """JSON as the real program writes it: sorted keys, four spaces, HTML escapes, no newline at the end."""
    text = json.dumps(value, indent=4, sort_keys=True, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def with_runtime(text: str | None, *, as_default: bool) -> str:
    """The engine's configuration with the runtime `nvidia`; None is a file that is not there."""
    if text is not None and not text.strip():
        raise StandinError("unable to load config for runtime docker: EOF")
    try:
        config = json.loads(text) if text is not None else {}
    except ValueError as error:
        raise StandinError(f"unable to load config for runtime docker: {error}") from error
    config.setdefault("runtimes", {})["nvidia"] = {"args": [], "path": "nvidia-container-runtime"}
    if as_default:
        config["default-runtime"] = "nvidia"
    return go_json(config)


def configure_runtime(path: Path, *, dry_run: bool, as_default: bool) -> None:
    """Write the runtime into the engine's configuration, or show the result."""
    wanted = with_runtime(path.read_text() if path.exists() else None, as_default=as_default)
    if dry_run:
        print(wanted)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(wanted)
    log("info", f"Wrote updated config to {path}")
    log("info", "It is recommended that docker daemon be restarted.")


# Configuration of the toolkit


def set_option(text: str, assignment: str) -> str:
    """The TOML text with `table.key=value` set; a list keeps being a list, its items separated by colons."""
    name, _, value = assignment.partition("=")
    table, _, key = name.rpartition(".")
    lines = text.splitlines()
    current = ""
    for number, line in enumerate(lines):
        header = re.fullmatch(r"\[(.+)\]", line.strip())
        if header:
            current = header[1]
        found = re.match(rf"{re.escape(key)}\s*=\s*(.*)", line)
        if current == table and found:
            if found[1].startswith("["):
                written = json.dumps(value.split(":"))
            elif found[1].startswith('"'):
                written = json.dumps(value)
            else:
                written = value
            lines[number] = f"{key} = {written}"
            return "\n".join(lines) + "\n"
    raise StandinError(f"unknown option {name!r}")


def configure_toolkit(path: Path, assignments: list[str], *, in_place: bool) -> None:
    """Write or show the toolkit's own configuration; options that were set before stay."""
    text = path.read_text() if path.exists() else CONFIG_TEXT
    for assignment in assignments:
        text = set_option(text, assignment)
    if not in_place:
        sys.stdout.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# CDI


def describe_node(path: str, status: os.stat_result) -> Json:
    """A device node as a CDI specification has it: a figure that is 0 is left out, as in the real program."""
    figures = {
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "gid": status.st_gid,
    }
    return {"path": path, **{name: figure for name, figure in figures.items() if figure}, "permissions": "rwm"}


def find_nodes(paths: list[str]) -> list[Json]:
    """The nodes that are there. One that is missing is a warning only, as in the real program."""
    found = []
    for path in paths:
        if os.path.exists(path):
            found.append(describe_node(path, os.stat(path)))
        else:
            log("warning", f"Could not locate {path}: pattern {path} not found")
    return found


def hook(name: str, *arguments: str) -> Json:
    """A hook that runs before the container's own process."""
    return {"hookName": "createContainer", "path": HOOK, "args": ["nvidia-cdi-hook", name, *arguments]}


def node_paths(index: str) -> list[str]:
    """The nodes of a GPU (`0`) or a MIG device (`1:0`), which is its GPU's and one of its own."""
    gpu, _, part = index.partition(":")
    return [f"/dev/nvidia{gpu}", *([f"/dev/nvidia-caps/nvidia-cap{100 * int(gpu) + int(part)}"] if part else [])]


def make_spec(gpus: list[tuple[str, str]], driver_version: str, libraries: list[str], machine: str) -> Json:
    """The CDI specification of GPUs and MIG devices given as (index, UUID)."""
    folder = f"/usr/lib/{machine}-linux-gnu"
    devices = []
    all_nodes: list[Json] = []
    for index, uuid in gpus:
        nodes = find_nodes(node_paths(index))
        if not nodes:
            raise StandinError(f"failed to generate CDI spec: GPU {index}: invalid device, empty device edits")
        all_nodes += [node for node in nodes if node not in all_nodes]
        devices += [{"name": name, "containerEdits": {"deviceNodes": nodes}} for name in (index, uuid)]
    devices.sort(key=lambda device: str(device["name"]))
    devices.append({"name": "all", "containerEdits": {"deviceNodes": all_nodes}})
    return {
        "cdiVersion": "0.7.0" if version_tuple(VERSION) >= (1, 19, 1) else "0.5.0",
        "kind": KIND,
        "devices": devices,
        "containerEdits": {
            "env": [f"NVIDIA_CTK_LIBCUDA_DIR={folder}", "NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": find_nodes(CONTROL_NODES),
            "hooks": [
                hook("create-symlinks", "--link", f"libcuda.so.1::{folder}/libcuda.so"),
                hook("enable-cuda-compat", f"--host-driver-version={driver_version}"),
                hook("update-ldcache", "--folder", folder),
                hook("disable-device-node-modification"),
            ],
            "mounts": [
                {
                    "hostPath": library,
                    "containerPath": f"{folder}/{os.path.basename(library)}",
                    "options": MOUNT_OPTIONS,
                }
                for library in libraries
            ],
        },
    }


def version_tuple(text: str) -> tuple[int, ...]:
    """A version as figures that compare."""
    return tuple(int(part) for part in text.split("."))


def yaml_scalar(value: Json) -> str:
    """A scalar as YAML; a text that could be read as something else is quoted."""
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z/_-][\w./:,=@+-]*[\w/]|\d+\.\d+\.\d+", value):
        return json.dumps(value)
    return str(value)


def yaml_lines(value: Json, indent: int) -> list[str]:
    """The value as block YAML, four spaces a level, as the real program writes it."""
    pad = " " * indent
    lines = []
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list):
                lines += [f"{pad}{key}:", *yaml_lines(item, indent + 4)]
            else:
                lines.append(f"{pad}{key}: {yaml_scalar(item)}")
    else:
        for item in value:
            inner = yaml_lines(item, indent + 2) if isinstance(item, dict) else [f"{pad}  {yaml_scalar(item)}"]
            lines += [f"{pad}- {inner[0].lstrip()}", *inner[1:]]
    return lines


def ask_driver() -> tuple[list[tuple[str, str]], str]:
    """The GPUs as (index, UUID), the MIG devices in place of those that are split, and the driver's version."""
    answers = []
    csv = "--format=csv,noheader"
    for argv in (["-L"], ["--query-gpu=driver_version", csv], ["--query-gpu=index,mig.mode.current", csv]):
        try:
            done = subprocess.run(["nvidia-smi", *argv], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise StandinError(f"failed to generate CDI spec: failed to initialize NVML: {error}") from error
        answers.append(done.stdout.splitlines())
    in_mig_mode = {line.partition(",")[0] for line in answers[2] if line.endswith("Enabled")}
    return [gpu for gpu in listed_devices(answers[0]) if gpu[0] not in in_mig_mode], answers[1][0]


def listed_devices(lines: list[str]) -> list[tuple[str, str]]:
    """Index and UUID of what `nvidia-smi -L` lists; a GPU that is split has none of its own."""
    whole: dict[str, str] = {}
    parts: dict[str, str] = {}
    gpu = ""
    for line in lines:
        if found := re.match(r"GPU (\d+): .*\(UUID: (\S+)\)", line):
            gpu = found[1]
            whole[gpu] = found[2]
        elif found := re.match(r"\s+MIG .* Device\s+(\d+): \(UUID: (\S+)\)", line):
            parts[f"{gpu}:{found[1]}"] = found[2]
    split = {index.partition(":")[0] for index in parts}
    return [*((index, uuid) for index, uuid in whole.items() if index not in split), *parts.items()]


def generate(output: str, style: str) -> None:
    """Write or show the specification of this host."""
    gpus, driver_version = ask_driver()
    libraries = sorted(glob.glob(f"{LIBRARY_HOME}/*.so.{driver_version}"))
    spec = make_spec(gpus, driver_version, libraries, os.uname().machine)
    text = json.dumps(spec) + "\n" if style == "json" else "\n".join(["---", *yaml_lines(spec, 0)]) + "\n"
    if output:
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(text)
        fresh.chmod(0o644)
        fresh.rename(path)
    else:
        sys.stdout.write(text)
    log("info", f"Generated CDI spec with version {spec['cdiVersion']}")


def device_names(text: str) -> list[str]:
    """Full names of the devices of a specification that this program wrote as YAML."""
    kind = re.search(r"^kind: (\S+)$", text, re.MULTILINE)
    names = re.findall(r'^\s*- name: "?([^"\n]+)"?$', text, re.MULTILINE)
    return [f"{kind[1]}={name}" for name in names] if kind else []


def list_devices(folders: list[str]) -> None:
    """Show the devices that specifications describe; none is no error."""
    names = {
        name for folder in folders for path in Path(folder).glob("*.yaml") for name in device_names(path.read_text())
    }
    log("info", f"Found {len(names)} CDI devices")
    for name in sorted(names):
        print(name)


def create_device_nodes(*, control_devices: bool) -> None:
    """Make the control nodes by means of the stand-in driver."""
    if control_devices:
        subprocess.run(["python3", "/usr/lib/nvidia-standin/driver.py", "start"], check=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of one call."""
    parser = argparse.ArgumentParser(prog="nvidia-ctk", description="Stand-in for nvidia-ctk.", allow_abbrev=False)
    parser.add_argument(
        "--version",
        action="version",
        version=f"NVIDIA Container Toolkit CLI version {VERSION}\ncommit: standin",
    )
    parser.add_argument("--quiet", "-q", action="store_true")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)

    config = commands.add_parser("config")
    config.add_argument("--config-file", "--config", default=CONFIG_PATH)
    config.add_argument("--in-place", "-i", action="store_true")
    config.add_argument("--set", action="append", default=[])

    configure = commands.add_parser("runtime").add_subparsers(dest="action", required=True).add_parser("configure")
    configure.add_argument("--runtime", choices=["docker"], default="docker")
    configure.add_argument("--config", default="/etc/docker/daemon.json")
    configure.add_argument("--dry-run", action="store_true")
    configure.add_argument("--set-as-default", "--nvidia-set-as-default", action="store_true")

    cdi = commands.add_parser("cdi").add_subparsers(dest="action", required=True)
    making = cdi.add_parser("generate")
    making.add_argument("--output", default=os.environ.get("NVIDIA_CTK_CDI_OUTPUT_FILE_PATH", ""))
    making.add_argument("--format", choices=["json", "yaml"])
    cdi.add_parser("list").add_argument("--spec-dir", action="append")

    system = commands.add_parser("system").add_subparsers(dest="action", required=True)
    nodes = system.add_parser("create-device-nodes")
    nodes.add_argument("--control-devices", action="store_true")
    nodes.add_argument("--load-kernel-modules", action="store_true")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Do what one call asks for."""
    command = (arguments.command, getattr(arguments, "action", ""))
    if command == ("config", ""):
        configure_toolkit(Path(arguments.config_file), arguments.set, in_place=arguments.in_place)
    elif command == ("runtime", "configure"):
        configure_runtime(Path(arguments.config), dry_run=arguments.dry_run, as_default=arguments.set_as_default)
    elif command == ("cdi", "generate"):
        style = arguments.format or ("json" if arguments.output.endswith(".json") else "yaml")
        generate(arguments.output, style)
    elif command == ("cdi", "list"):
        list_devices(arguments.spec_dir or SPEC_DIRS)
    else:
        create_device_nodes(control_devices=arguments.control_devices)


def main() -> int:
    try:
        run(parse(sys.argv[1:]))
    except StandinError as error:
        log("error", str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
