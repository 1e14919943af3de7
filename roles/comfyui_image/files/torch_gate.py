"""Proof that the base image's PyTorch is what runs: its versions, its place, and a digest over its files.

`record FILE` writes down what the base has, before anything is installed; `verify FILE` compares after
the last install, and again in the running container. Standard library only, and it runs in the image,
so it knows nothing of Ansible.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

GUARDED = ("torch", "torchvision", "triton")
CHUNK_B = 1 << 20


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces: libtorch has gigabytes."""
    total = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_B):
            total.update(chunk)
    return total.hexdigest()


def tree_digest(folder: Path) -> str:
    """One digest over the names and contents below a folder; what Python compiles beside its sources does not count."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    with ThreadPoolExecutor() as pool:
        digests = pool.map(file_digest, files)
    lines = [f"{digest} {path.relative_to(folder)}\n" for path, digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def package_state(name: str) -> dict[str, Any] | None:
    """Version, place and digest of an importable package; None where the base does not have it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    return {"version": metadata.version(name), "folder": str(folder), "sha256": tree_digest(folder)}


def pip_findings() -> list[str]:
    """What `pip check` complains of; a base may have findings of its own, so they are compared, not counted."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    return sorted(done.stdout.splitlines()) if done.returncode else []


def current_state() -> dict[str, Any]:
    """Everything that must not move."""
    import torch  # noqa: PLC0415 - takes seconds, and only this state needs it

    state: dict[str, Any] = {name: package_state(name) for name in GUARDED}
    state["cuda"] = torch.version.cuda
    state["torch.__file__"] = torch.__file__
    return state


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One sentence for each part that moved."""
    return [
        f"{key}: the base has {json.dumps(wanted.get(key))}, found {json.dumps(found.get(key))}"
        for key in sorted(wanted.keys() | found.keys())
        if wanted.get(key) != found.get(key)
    ]


def main(arguments: list[str]) -> int:
    """Entry point; exit status 1 where something moved."""
    if len(arguments) != 2 or arguments[0] not in {"record", "verify"}:
        sys.stderr.write("usage: torch_gate.py record|verify FILE\n")
        return 2
    path = Path(arguments[1])
    if arguments[0] == "record":
        path.write_text(json.dumps({"packages": current_state(), "pip_check": pip_findings()}, indent=2) + "\n")
        return 0
    recorded = json.loads(path.read_text())
    problems = differences(recorded["packages"], current_state())
    problems += [f"pip check: {line}" for line in pip_findings() if line not in recorded["pip_check"]]
    for problem in problems:
        sys.stderr.write(f"torch gate: {problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
