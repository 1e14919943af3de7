"""Filters of the role comfyui_service: is what root runs what it should be, who may reach it, with which flags."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MODES = {"dir": "0755", "file": "0644"}


def differs(found: Mapping[str, Any], kind: str, text: str | None = None) -> bool:
    """Whether an entry of host_probe is another kind, not root's alone, or of another content than `text`."""
    wanted = (kind, MODES[kind], 0, 0)
    if (found["kind"], found["mode"], found["uid"], found["gid"]) != wanted:
        return True
    return text is not None and found["content"] != text


# What the release gives itself: folders that are mounted, the port that is published, a database that can be written.
RESERVED_FLAGS = {
    "--listen": "comfyui_bind_address",
    "--port": "comfyui_port",
    "--base-directory": "comfyui_data_dir",
    "--temp-directory": "comfyui_service_tmp_size",
    "--database-url": "",
    "--cpu": "comfyui_device: cpu",
    "--tls-keyfile": "comfyui_service_guard: proxy, and let the proxy speak TLS (docs/security.md)",
    "--tls-certfile": "comfyui_service_guard: proxy, and let the proxy speak TLS (docs/security.md)",
}
# Taken by argparse, and then one of the two has no effect. Source: comfy/cli_args.py and comfy/model_management.py.
FAILING_PAIRS = (
    ("--gpu-only", "--enable-dynamic-vram", "--gpu-only switches dynamic VRAM off"),
    ("--highvram", "--enable-dynamic-vram", "--highvram switches dynamic VRAM off"),
    ("--novram", "--enable-dynamic-vram", "--novram switches dynamic VRAM off"),
)


# What templates/Dockerfile.j2 sets, or ComfyUI's Python and loader would not find their own with.
RESERVED_VARIABLES = {
    *("CUDA_CACHE_PATH", "HOME", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE", "PYTHONUNBUFFERED"),
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "PYTHONPATH"),
}


def address_problem(address: Any, port: Any, guard: str, host: str) -> str:
    """Why ComfyUI may not listen there; empty where it may. It has no login: somebody must guard what is reachable."""
    tunnel = f"and reach it through a tunnel: ssh -L {port}:127.0.0.1:{port} {host}"
    try:
        found = ipaddress.ip_address(str(address))
    except ValueError:
        return (
            f"comfyui_service_bind_address is {address}, expected an IP address of this host, by default 127.0.0.1. "
            f"Set comfyui_bind_address: 127.0.0.1, {tunnel}"
        )
    if found.is_loopback or guard:
        return ""
    return (
        f"comfyui_service_bind_address is {address}, expected 127.0.0.1: ComfyUI has no login, and everybody who "
        f"reaches another address would run workflows on this GPU. Set comfyui_bind_address: 127.0.0.1, {tunnel}; or "
        "say who guards it, comfyui_service_guard: network or proxy (docs/security.md)."
    )


def flags_of_machine(table: Mapping[str, Mapping[str, Any]], kind: str, version: str) -> list[str]:
    """The flags that a kind of machine gets with a version of ComfyUI."""

    def numbers(text: Any) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", str(text))]

    return [flag for flag, first in table.get(kind, {}).items() if numbers(version) >= numbers(first)]


def flag_problems(flags: Sequence[Any], device: str) -> list[str]:
    """Why these flags cannot be added to those of the service."""
    given = [str(word).partition("=")[0] for word in flags]
    problems = [
        f"comfyui_extra_flags has {flag}, expected none that the service gives itself. Take it out"
        + (f"; set {RESERVED_FLAGS[flag]}." if RESERVED_FLAGS[flag] else ".")
        for flag in dict.fromkeys(given)
        if flag in RESERVED_FLAGS
    ]
    problems += [
        f"comfyui_extra_flags has {one} and {other}, expected one of them: {why}. Take one out."
        for one, other, why in FAILING_PAIRS
        if one in given and other in given
    ]
    if device == "cpu":
        problems += [
            f"comfyui_extra_flags has {flag}, expected none for a GPU: comfyui_device is cpu. Take it out."
            for flag in ("--gpu-only", "--highvram", "--lowvram", "--novram", "--cuda-device", "--cuda-malloc")
            if flag in given
        ]
    return problems


def environment_problems(environment: Mapping[Any, Any]) -> list[str]:
    """Why these environment variables cannot be given to ComfyUI."""
    problems = []
    for name, value in environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            problems.append(
                f"comfyui_environment has {name!r}, expected a variable's name: letters, digits and _. Correct it."
            )
        elif name in RESERVED_VARIABLES or str(name).startswith("NVIDIA_"):
            problems.append(
                f"comfyui_environment has {name}, expected none that the image or the NVIDIA runtime sets. Take it out."
            )
        elif not isinstance(value, str):
            problems.append(f"comfyui_environment has {name}: {value}, expected a text. Put the value in quotes.")
        elif not value.isprintable():
            problems.append(f"The value of {name} in comfyui_environment has a line break or the like. Take it out.")
    return problems


class FilterModule:
    """The filters, by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "comfyui_service_address_problem": address_problem,
            "comfyui_service_differs": differs,
            "comfyui_service_environment_problems": environment_problems,
            "comfyui_service_flag_problems": flag_problems,
            "flags_of_machine": flags_of_machine,
        }
