"""What is in the image: `check` holds ComfyUI's own requirements against it, `list` names it all for the record.

Runs in the image, on the virtual environment's Python; pip's own reading of requirements serves, since pip is there.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

# What the base owns may be absent from it: ComfyUI lists torchaudio, and NGC images have none.
OWNED = {"torchaudio", "triton"}


def requirements(text: str) -> list[Requirement]:
    """The requirements of a file that hold on this Python."""
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return [one for one in found if one.marker is None or one.marker.evaluate()]


def unmet(wanted: list[Requirement], installed: dict[str, str]) -> list[str]:
    """One sentence for each requirement that what is installed does not meet."""
    problems = []
    for one in wanted:
        version = installed.get(canonicalize_name(one.name))
        if version is None and one.name not in OWNED:
            problems.append(f"ComfyUI asks for {one}, the lock has none")
        elif version is not None and not one.specifier.contains(version, prereleases=True):
            problems.append(f"ComfyUI asks for {one}, the lock has {version}")
    return problems


def licence(one: metadata.Distribution) -> str:
    """The licence as the distribution states it; empty where it does not."""
    fields = one.metadata
    stated = str(fields.get("License-Expression") or fields.get("License") or "")
    classifiers = [
        line.rpartition(" :: ")[2] for line in fields.get_all("Classifier") or [] if line.startswith("License")
    ]
    # Some put the whole text there: its first line is its name.
    return stated.strip().partition("\n")[0] or ", ".join(classifiers)


def listing() -> list[dict[str, Any]]:
    """Every Python distribution by name, with version, licence, and whether it is the base's."""
    rows = {
        canonicalize_name(one.name): {
            "name": one.name,
            "version": one.version,
            "licence": licence(one),
            "of_base": not str(one.locate_file("")).startswith(sys.prefix),
        }
        # The first of a name on the path is the one that is imported.
        for one in reversed(list(metadata.distributions()))
        if one.name
    }
    return [rows[name] for name in sorted(rows)]


def main(arguments: list[str]) -> int:
    """Entry point; `check` ends with 1 where something is missing, each of it a line on stderr."""
    if len(arguments) == 2 and arguments[0] == "check":
        installed = {canonicalize_name(row["name"]): row["version"] for row in listing()}
        problems = unmet(requirements(Path(arguments[1]).read_text()), installed)
        sys.stderr.writelines(f"requirements: {problem}\n" for problem in problems)
        return 1 if problems else 0
    if arguments == ["list"]:
        sys.stdout.write(json.dumps(listing(), indent=2, ensure_ascii=False) + "\n")
        return 0
    sys.stderr.write("usage: contents.py check FILE | list\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
