#!/usr/bin/env python3
"""Draw the browser's form of each graph: `python3 workflows/make_forms.py` writes ui/NAME.json for every NAME.json.

Type it after a change of a graph; a form that shows something else than its graph is refused before a deployment. One
that was arranged by hand in the browser may lie in ui/ instead, if it shows the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECORDING = HERE.parent / "roles/comfyui_workflows/files/object_info-0.28.1.json"
sys.path.append(str(HERE.parent / "plugins/module_utils"))

from comfyui_form import build_form  # noqa: E402
from comfyui_graph import check_text, parse_json  # noqa: E402


def draw(path: Path, classes: dict[str, Any]) -> str:
    """The text of the form of the graph in a file; SystemExit where the graph has faults."""
    text = path.read_text(encoding="utf-8")
    findings = [found.describe() for found in check_text(text, file=path.name)]
    if findings:
        raise SystemExit("\n".join(findings))
    try:
        form = build_form(parse_json(text), classes)
    except (KeyError, ValueError) as error:
        raise SystemExit(f"{path.name}: {RECORDING.name} has no {error}") from error
    return json.dumps(form, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Draw all of them."""
    classes = json.loads(RECORDING.read_text(encoding="utf-8"))["classes"]
    for path in sorted(HERE.glob("*.json")):
        target = HERE / "ui" / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_text(draw(path, classes), encoding="utf-8")
        print(target.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
