"""Does one damage of the drift matrix to the running demo; `make demo` names it in its table and repairs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from drift_matrix import Damage, Kind, kind_of, read, script
from live_host import LiveHost

DEMO = os.environ.get("DEMO_NAME", "demo")


def choices(kinds: Sequence[Kind]) -> dict[str, tuple[Kind, Damage]]:
    """What can be done to a demo, by name."""
    return {f"{kind.name}-{damage.name}": (kind, damage) for kind in kinds if kind.demo for damage in kind.damages}


def listing(kinds: Sequence[Kind]) -> str:
    """The names, as `make help` shows its targets."""
    named = choices(kinds).items()
    lines = [(name, damage.says, "" if "$(" in kind.demo else f": {kind.demo}") for name, (kind, damage) in named]
    return "\n".join(f"  {name:28}{says}{resource}" for name, says, resource in lines)


def running_demo() -> LiveHost | None:
    """The demo's host; None where none runs."""
    try:
        live = LiveHost(DEMO)
    except FileNotFoundError:
        return None
    return live if live.run("true").returncode == 0 else None


def damage_demo(live: LiveHost, name: str, kinds: Sequence[Kind]) -> tuple[str, int]:
    """Do it; what to say, and the exit status."""
    kind, damage = choices(kinds)[name]
    resource = live.run(f"echo {kind.demo}").stdout.strip()
    found = kind_of(resource, kinds)
    if found is None or found[0] is not kind:
        return f"The demo has no {kind.name} now, expected one to damage. Type make demo, then this again.", 1
    done = live.run(f"set -e\n{script(damage, found[1])}")
    if done.returncode != 0:
        why = (done.stderr or done.stdout).strip()
        return f"It could not be done to {resource}: {why}. Type make demo, then this again.", 1
    return f"Done: {damage.says}: {resource}. Type make demo: the table after its site.yml names it as repaired.", 0


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    kinds, _ = read()
    name = " ".join(arguments)
    if not name:
        print(f"make demo-break NAME=... with one of these, then make demo:\n{listing(kinds)}")
        return 0
    if name not in choices(kinds):
        words = f"There is no damage {name}, expected one of these. make demo-break NAME=..."
        sys.stderr.write(f"{words}\n{listing(kinds)}\n")
        return 1
    live = running_demo()
    if live is None:
        sys.stderr.write("No demo runs here, expected one to damage. Type: make demo\n")
        return 1
    said, status = damage_demo(live, name, kinds)
    (sys.stderr if status else sys.stdout).write(f"{said}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
