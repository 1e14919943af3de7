"""Filters of the role preflight: what machine a host is, what its driver needs, which GPUs can be asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

# The control node imports no module_utils by itself; hosts and control node are to judge by the same functions.
sys.path.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

from dpkg_state import problem
from gpu_request import gpu_request, missing_devices, parse_gpus, requested
from machine import detect, dgx_os_version, driver_faults, parse_release, parse_versions

# Shells with which nobody logs in.
NO_LOGINS = {"nologin", "false", "true", "sync"}


def describe_machine(
    commands: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, Mapping[str, Any]], kind: str, gpu_names: list[str]
) -> dict[str, Any]:
    """What the commands of the role's probe say of the machine; `kind` is a name from `kinds`, or auto."""
    said = {name: answer["stdout"] if answer["rc"] == 0 else "" for name, answer in commands.items()}
    release = parse_release(said["dgx_release"])
    architecture = said["architecture"].strip()
    found = detect(kinds, gpu_names, release, architecture) if kind == "auto" else kind
    facts = kinds.get(found, {})
    dgx_os = dgx_os_version(release)
    return {
        "kind": found,
        "title": facts.get("title", "unknown machine"),
        "architecture": architecture,
        "dgx_os": dgx_os,
        "gpus": gpu_names,
        "unified_memory": bool(facts.get("unified_memory")),
        "faults": driver_faults(
            said["driver_loaded"],
            said["driver_on_disk"],
            # It ends with 1 where one of several patterns has no package.
            parse_versions(commands["driver_packages"]["stdout"]),
            said["kernels"],
            held=said["held"].split(),
            dgx_os=dgx_os,
            branches=facts.get("driver_branches", ()),
        ),
    }


def request_text(value: Any) -> str:
    """A GPU request as one text: all, none, auto, or devices with commas between; as it came where it is none."""
    try:
        return ",".join(requested(value))
    except ValueError:
        return str(value)


def request_problem(value: Any) -> str:
    """Why a GPU request cannot be meant; empty where it can."""
    try:
        requested(value)
    except ValueError as error:
        return str(error)
    return ""


def request_arguments(value: Any, engine: str, toolkit: str) -> dict[str, Any]:
    """What `docker run` is told for a request on an engine and a toolkit of these versions, by which way, and why."""
    return asdict(gpu_request(value, engine=engine, toolkit=toolkit))


def request_missing(value: Any, gpu_list: str, mig_modes: str = "") -> list[str]:
    """The devices of a request that a host with these GPUs cannot hand over, a sentence for each."""
    return missing_devices(requested(value), parse_gpus(gpu_list, mig_modes))


def capabilities(value: Any, lines: list[str], gpu_list: str) -> list[str]:
    """The compute capabilities, such as 12.1, of the GPUs of a request; those of the others are nobody's concern.

    `lines` are name, driver version and capability of each GPU, `gpu_list` is what `nvidia-smi -L` printed of the same.
    """
    names = requested(value)
    if names == ["none"]:
        return []
    gpus = parse_gpus(gpu_list)
    if names not in (["all"], ["auto"]) and len(gpus) == len(lines):
        lines = [
            line
            for line, gpu in zip(lines, gpus, strict=True)
            if {gpu.index, gpu.uuid, *gpu.mig, *gpu.mig.values()} & set(names)
        ]
    found = [line.rpartition(", ")[2].strip() for line in lines]
    return list(dict.fromkeys(one for one in found if one[:1].isdigit()))


def packages_problem(commands: Mapping[str, Mapping[str, Any]]) -> str:
    """Why no package may be installed here; empty where one may, or where somebody is about to, as far as one sees."""
    if commands["locks"]["rc"] != 0 or commands["locks"]["stdout"]:
        return ""  # what is half done now may be whole in a minute, and who needs apt waits
    found, command = problem(commands["unfinished"]["stdout"], commands["interrupted"]["stdout"])
    return found and (
        f"Packages on this host are not done: {found}; expected all installed and configured, as an update leaves "
        f"them. Nothing was changed. Type on the host: {command}; then run this again."
    )


def account_problem(account: str, remains: Iterable[Mapping[str, Any]]) -> str:
    """Why an account, a line of passwd, cannot become the service's; empty where it can, or is it already.

    `remains` are the entries of a host_probe for folders that only this product makes.
    """
    shell = account.strip().rpartition(":")[2]
    if not account.strip() or shell.rpartition("/")[2] in NO_LOGINS or any(one["kind"] != "absent" for one in remains):
        return ""
    return (
        f"The account comfyui on this host is somebody's login, with the shell {shell or '/bin/sh'}; expected none of "
        "that name, or one that nobody logs in to, since ComfyUI runs as it. Give that login another name (usermod "
        "--login NAME comfyui; groupmod --new-name NAME comfyui), or let nobody log in to it: usermod --shell "
        "/usr/sbin/nologin comfyui"
    )


def group_problem(group: str, number: Any, remains: Iterable[Mapping[str, Any]]) -> str:
    """Why a group, a line of group, cannot get the service's number; empty where it can, or has it already.

    `remains` as above.
    """
    has = f"{group.strip()}:::".split(":")[2]
    if not has or has == str(number) or any(one["kind"] != "absent" for one in remains):
        return ""
    return (
        f"The group comfyui has the number {has} on this host, expected {number}, and files on disk carry it. Set "
        f"comfyui_user_id: {has}, or give that group another name: groupmod --new-name NAME comfyui"
    )


def disks(needs: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each filesystem that has something to hold, with what all that comes to it needs, in bytes.

    Each of `needs` has dir, df (the output of `df --output=source,avail`, in bytes), needed_b, use and advice.
    """
    found: dict[str, dict[str, Any]] = {}
    for need in needs:
        needed_b = int(need["needed_b"])
        if needed_b == 0:
            continue
        source, free_b = need["df"].splitlines()[-1].rsplit(maxsplit=1)
        disk = found.setdefault(
            source.strip(), {"free_b": int(free_b), "needed_b": 0, "dirs": [], "uses": [], "advice": []}
        )
        disk["needed_b"] += needed_b
        for key, value in (("dirs", need["dir"]), ("uses", need["use"]), ("advice", need["advice"])):
            disk[key].append(value)
    return list(found.values())


class FilterModule:
    """The filters, by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "account_problem": account_problem,
            "preflight_capabilities": capabilities,
            "preflight_disks": disks,
            "preflight_machine": describe_machine,
            "preflight_packages_problem": packages_problem,
            "preflight_group_problem": group_problem,
            "preflight_gpu_request": request_text,
            "preflight_gpu_request_problem": request_problem,
            "preflight_gpu_request_arguments": request_arguments,
            "preflight_gpu_request_missing": request_missing,
        }
