"""What role comfyui_workflows computes on the control node: the files to deploy, their faults, and what differs."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

# The control node loads filters by file, so the judge that the hosts' modules use is not on its path.
sys.path.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

from comfyui_form import form_differences, set_form_inputs, setting_inputs, setting_problems
from comfyui_graph import Classes, Graph, check_text, detect_format, inputs_of, parse_json, set_inputs

MODE = "0644"
SOURCES = {"api": "*.json", "ui": "ui/*.json", "input": "input/*.png"}
FORM_MESSAGE = "this is no form of the browser (nodes and links), which would open it as an empty canvas without a word"

Settings = dict[str, dict[str, Any]]


def to_text(document: Any) -> str:
    """JSON as the files of the repository have it."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def read_api(path: Path) -> Graph | None:
    """The graph in a file, or None where there is none that settings could be put into."""
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    sound = detect_format(document) == "api" and None not in map(inputs_of, document.values())
    return document if sound else None


def with_settings(path: Path, kind: str, settings: Settings) -> bytes:
    """The content to deploy: the file's own, or with the settings for the graph of this name in it."""
    if kind == "input" or not settings.get(path.stem):
        return path.read_bytes()
    graph = read_api(path if kind == "api" else path.parent.parent / path.name)
    if graph is None:
        return path.read_bytes()
    inputs = setting_inputs(graph, settings[path.stem])
    if kind == "api":
        changed: Any = set_inputs(graph, inputs)
    else:
        changed = set_form_inputs(parse_json(path.read_text(encoding="utf-8")), inputs)
    return to_text(changed).encode()


def workflow_files(
    source_dir: str, places: dict[str, dict[str, Any]], settings: Settings | None = None
) -> list[dict[str, Any]]:
    """Every file to deploy: kind, source or content, destination, digest, owner and mode.

    `places` says for each kind (V(api), V(ui), V(input)) the folder on the host and the owner's numbers. C(content) is
    there where settings make a file differ from its source.
    """
    files = []
    for kind, pattern in SOURCES.items():
        for path in sorted(Path(source_dir).glob(pattern)):
            content = with_settings(path, kind, settings or {})
            file = {
                "kind": kind,
                "src": str(path),
                "dest": f"{str(places[kind]['dir']).rstrip('/')}/{path.name}",
                "sha256": hashlib.sha256(content).hexdigest(),
                "uid": int(places[kind]["uid"]),
                "gid": int(places[kind]["gid"]),
                "mode": MODE,
            }
            files.append(file if content == path.read_bytes() else {**file, "content": content.decode()})
    return files


def load_classes(recording: str) -> Classes | None:
    """Node classes from a recorded `/object_info`, bare or under V(classes); None where there is no recording."""
    path = Path(recording)
    if not path.is_file():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    classes: Classes = document.get("classes", document)
    return classes


def form_findings(path: Path) -> list[str]:
    """What is wrong with a form, and where it shows something else than the API graph of the same name."""
    name = f"ui/{path.name}"
    try:
        form = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"{name}: not valid JSON: {error}"]
    if detect_format(form) != "ui":
        return [f"{name}: {FORM_MESSAGE}"]
    graph = read_api(path.parent.parent / path.name)
    return [
        f"{name}: {', '.join(part for part in (f'node {node}' if node else '', field) if part)}: {message}"
        for node, field, message in (form_differences(graph, form) if graph else [])
    ]


def settings_findings(source_dir: str, settings: Settings) -> list[str]:
    """What is wrong with the settings, before anything is made of them."""
    graphs = {path.stem: read_api(path) for path in sorted(Path(source_dir).glob(SOURCES["api"]))}
    problems = [
        f"settings for {name}: there is no such graph; there are {', '.join(graphs)}."
        for name in settings
        if name not in graphs
    ]
    for name, graph in graphs.items():
        problems += (
            setting_problems(graph, settings[name], f"settings for {name}") if graph and name in settings else []
        )
    return problems


def workflow_findings(
    source_dir: str, recording: str, models: list[str], settings: Settings | None = None
) -> list[str]:
    """What is wrong with the settings, the API graphs with the settings in them, and the forms; one line each."""
    classes = load_classes(recording)
    folder = Path(source_dir)
    paths = sorted(folder.glob(SOURCES["api"]))
    if not paths:
        return [f"{source_dir}: no workflow file (*.json) is there"]
    findings = [line for path in sorted(folder.glob(SOURCES["ui"])) for line in form_findings(path)]
    findings += settings_findings(source_dir, settings or {})
    if findings:
        return findings
    inputs = [path.name for path in folder.glob(SOURCES["input"])]
    for path in paths:
        try:
            text = with_settings(path, "api", settings or {}).decode()
        except UnicodeDecodeError as error:
            findings.append(f"{path.name}: not valid JSON, which is UTF-8: {error}")
            continue
        found = check_text(text, classes, file=path.name, models=models, input_files=inputs)
        findings += [one.describe() for one in found]
    return findings


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
