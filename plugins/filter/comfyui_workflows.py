"""What role comfyui_workflows computes on the control node: the files to deploy, their faults, and what differs."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

# The control node loads filters by file, so the judge that the hosts' modules use is not on its path.
sys.path.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

from comfyui_graph import Classes, check_text

MODE = "0644"
SOURCES = {"api": "*.json", "ui": "ui/*.json", "input": "input/*.png"}


def workflow_files(source_dir: str, places: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every file to deploy: kind, source, destination, digest, owner and mode.

    `places` says for each kind (V(api), V(ui), V(input)) the folder on the host and the owner's numbers.
    """
    return [
        {
            "kind": kind,
            "src": str(path),
            "dest": f"{str(places[kind]['dir']).rstrip('/')}/{path.name}",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "uid": int(places[kind]["uid"]),
            "gid": int(places[kind]["gid"]),
            "mode": MODE,
        }
        for kind, pattern in SOURCES.items()
        for path in sorted(Path(source_dir).glob(pattern))
    ]


def load_classes(recording: str) -> Classes | None:
    """Node classes from a recorded `/object_info`, bare or under V(classes); None where there is no recording."""
    path = Path(recording)
    if not path.is_file():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    classes: Classes = document.get("classes", document)
    return classes


def workflow_findings(source_dir: str, recording: str, models: list[str]) -> list[str]:
    """What is wrong with the API graphs in `source_dir`, one line each."""
    classes = load_classes(recording)
    folder = Path(source_dir)
    inputs = [path.name for path in folder.glob(SOURCES["input"])]
    findings = [
        found.describe()
        for path in sorted(folder.glob(SOURCES["api"]))
        for found in check_text(
            path.read_text(encoding="utf-8"), classes, file=path.name, models=models, input_files=inputs
        )
    ]
    return findings if list(folder.glob(SOURCES["api"])) else [f"{source_dir}: no workflow file (*.json) is there"]


def parse_digests(output: str) -> dict[str, str]:
    """Read what `sha256sum` prints: path to digest."""
    pairs = (line.split(maxsplit=1) for line in output.splitlines() if line)
    return {path: digest for digest, path in pairs}


def workflow_plan(wanted: list[dict[str, Any]], probe: dict[str, Any]) -> list[dict[str, Any]]:
    """The files that differ on the host, each with the C(reason); `probe` is the answer of host_probe."""
    digests = parse_digests(probe["commands"]["digests"]["stdout"])
    plan = []
    for file in wanted:
        found = probe["files"][file["dest"]]
        reason = ""
        if found["kind"] == "absent":
            reason = "absent"
        elif found["link"] is not None or found["kind"] != "file":
            reason = "not a plain file"
        elif digests.get(file["dest"]) != file["sha256"]:
            reason = "other content"
        elif (found["uid"], found["gid"]) != (file["uid"], file["gid"]):
            reason = f"owner {found['uid']}:{found['gid']}"
        elif found["mode"] != file["mode"]:
            reason = f"mode {found['mode']}"
        if reason:
            plan.append({**file, "reason": reason})
    return plan


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {
            "comfyui_workflow_files": workflow_files,
            "comfyui_workflow_findings": workflow_findings,
            "comfyui_workflow_plan": workflow_plan,
        }
