"""CDI specifications: read one, and compare it with the host that it describes. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

KIND = "nvidia.com/gpu"
# Without these nvidia-smi still works in a container, and CUDA does not.
REQUIRED_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm")
# nvidia-ctk puts these in where the host has them: Vulkan and profilers need them.
# Source: NVIDIA/nvidia-container-toolkit pkg/nvcdi/common-nvml.go.
SHARED_NODES = ("/dev/nvidia-modeset", "/dev/nvidia-uvm-tools")

_KEY = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s"'\[{#&*!|>%@`-][^:#]*?|-[^\s:#][^:#]*?):(?:\s+(.*))?""")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "[]": [], "{}": {}}


class SpecError(ValueError):
    """The text is no specification; the message says where."""


def _scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text)
    if text.startswith('"'):
        return json.loads(text)
    if text.startswith("'"):
        if len(text) < 2 or not text.endswith("'"):
            raise ValueError("unfinished quotation")
        return text[1:-1].replace("''", "'")
    if text[0] in "|>[{&*!%@`":
        raise ValueError(f"{text[0]!r} is beyond the YAML that nvidia-ctk writes")
    return text


def _is_item(content: str) -> bool:
    return content == "-" or content.startswith("- ")


class _Reader:
    """Block YAML: mappings, sequences and one-line scalars."""

    def __init__(self, text: str) -> None:
        self.lines: list[tuple[int, int, str]] = []
        for number, line in enumerate(text.splitlines(), start=1):
            content = line.strip()
            if content and content != "---" and not content.startswith("#"):
                self.lines.append((number, len(line) - len(line.lstrip(" ")), content))
        self.at = 0

    def block(self, indent: int) -> Any:
        if self.at >= len(self.lines) or self.lines[self.at][1] != indent:
            raise ValueError("indentation")
        return self.sequence(indent) if _is_item(self.lines[self.at][2]) else self.mapping(indent)

    def sequence(self, indent: int) -> list[Any]:
        items = []
        while self.at < len(self.lines) and self.lines[self.at][1] == indent and _is_item(self.lines[self.at][2]):
            number, _, content = self.lines[self.at]
            rest = content[1:].lstrip()
            if not rest:
                self.at += 1
                items.append(self.nested(indent + 1))
            elif _is_item(rest) or _KEY.fullmatch(rest):
                inner = indent + len(content) - len(rest)
                self.lines[self.at] = (number, inner, rest)
                items.append(self.block(inner))
            else:
                self.at += 1
                items.append(_scalar(rest))
        return items

    def mapping(self, indent: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.at < len(self.lines) and self.lines[self.at][1] == indent and not _is_item(self.lines[self.at][2]):
            pair = _KEY.fullmatch(self.lines[self.at][2])
            if not pair:
                raise ValueError("neither `key: value` nor `- item`")
            key = str(_scalar(pair[1]))
            if key in found:
                raise ValueError(f"the key {key!r} is given twice")
            self.at += 1
            if pair[2]:
                found[key] = _scalar(pair[2])
            elif self.at < len(self.lines) and self.lines[self.at][1] == indent and _is_item(self.lines[self.at][2]):
                found[key] = self.sequence(indent)
            else:
                found[key] = self.nested(indent + 1)
        return found

    def nested(self, least: int) -> Any:
        """The deeper block that follows, or None."""
        if self.at < len(self.lines) and self.lines[self.at][1] >= least:
            return self.block(self.lines[self.at][1])
        return None

    def whole(self) -> Any:
        if not self.lines:
            raise ValueError("it is empty")
        value = self.block(self.lines[0][1])
        if self.at < len(self.lines):
            raise ValueError("indentation")
        return value


def parse(text: str) -> dict[str, Any]:
    """A specification from its JSON or its YAML.

    Of YAML it knows what nvidia-ctk writes: targets need not have PyYAML. Raises SpecError for anything else.
    """
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise SpecError(f"not JSON: {error}") from error
    else:
        reader = _Reader(text)
        try:
            found = reader.whole()
        except (ValueError, RecursionError) as error:
            number = reader.lines[min(reader.at, len(reader.lines) - 1)][0] if reader.lines else 1
            raise SpecError(f"line {number}: {error}") from error
    if not isinstance(found, dict) or "cdiVersion" not in found:
        raise SpecError("no cdiVersion in it")
    return found


def _devices(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [device for device in spec.get("devices") or [] if isinstance(device, dict)]


def _edits(spec: Mapping[str, Any], names: Collection[str] | None = None) -> list[Mapping[str, Any]]:
    parts = [spec, *(device for device in _devices(spec) if names is None or str(device.get("name")) in names)]
    return [part["containerEdits"] for part in parts if isinstance(part.get("containerEdits"), dict)]


def device_nodes(spec: Mapping[str, Any], names: Collection[str] | None = None) -> dict[str, tuple[int, int] | None]:
    """Path on the host to major and minor number of every device node; None where they are left open.

    With `names`, only what a container gets that asks for these devices.
    """
    nodes: dict[str, tuple[int, int] | None] = {}
    for edits in _edits(spec, names):
        for node in edits.get("deviceNodes") or []:
            path = node.get("hostPath") or node["path"]
            nodes[path] = (node["major"], node.get("minor", 0)) if "major" in node else nodes.get(path)
    return nodes


def host_files(spec: Mapping[str, Any]) -> list[str]:
    """Files and folders of the host that the specification mounts."""
    return sorted({mount["hostPath"] for edits in _edits(spec) for mount in edits.get("mounts") or []})


def compare(
    spec: Mapping[str, Any],
    live: Mapping[str, tuple[int, int]],
    missing_files: Collection[str],
    *,
    devices: Collection[Collection[str]] = (),
    every_gpu: bool = True,
    without_device: int = 0,
) -> list[str]:
    """What is wrong with the specification on a host that has the device nodes `live`; empty where it is right.

    `missing_files` are those of `host_files` that the host lacks. `devices` are the GPUs and MIG devices that the host
    has, each by all its names. `every_gpu` expects all of them, the nodes of all GPUs and those that they share, and
    the device `all`; of the GPUs' nodes as many may be missing as there are GPUs `without_device`: in MIG mode, and
    without an instance.
    """
    problems = []
    if spec.get("kind") != KIND:
        problems.append(f"its kind is {spec.get('kind')!r}, expected {KIND!r}")
    names = [str(device.get("name")) for device in _devices(spec)]
    if not names:
        problems.append("it describes no device")
    elif every_gpu and "all" not in names:
        problems.append(f"it has no device 'all', only {', '.join(names)}")
    if names and every_gpu:
        problems += [f"it has no device {min(spelled)!r}" for spelled in devices if not set(spelled) & set(names)]
    if devices:
        known = {"all", *(name for spelled in devices for name in spelled)}
        problems += [f"it has the device {name!r}, which this host has not" for name in names if name not in known]
    nodes = device_nodes(spec)
    lacking = [path for path in live if re.fullmatch(r"/dev/nvidia\d+", path) and path not in nodes]
    absent = [path for path in REQUIRED_NODES if path not in nodes]
    if every_gpu:
        absent += [path for path in SHARED_NODES if path in live and path not in nodes]
        absent += lacking if len(lacking) > without_device else []
    problems += [f"{path} is not in it" for path in absent]
    for path, numbers in sorted(nodes.items()):
        if path not in live:
            problems.append(f"it names {path}, which this host does not have")
        elif numbers is not None and numbers != live[path]:
            described, found = (":".join(map(str, pair)) for pair in (numbers, live[path]))
            problems.append(f"it gives {path} as {described}, the host has {found}")
    problems += [f"it mounts {path}, which is not there" for path in sorted(missing_files)]
    return problems
