"""Whether dpkg has ended what it began. The same question is asked before an update and before any change of ours."""

from __future__ import annotations


def problem(unfinished: str, interrupted: str) -> tuple[str, str]:
    """What is not done, and the command that ends it; both empty where all is.

    `unfinished` has lines of a package and its state, as dpkg-query abbreviates it, with a tab between; `interrupted`
    lists /var/lib/dpkg/updates.
    """
    states = [line.split("\t") for line in unfinished.splitlines()]
    if not states and not interrupted.strip():
        return "", ""
    found = ", ".join(f"{name} ({state.strip()})" for name, state in states) or "dpkg interrupted"
    # Half-installed, or to be installed again: to configure it does not bring its files.
    torn = [name for name, state in states if state[1] == "H" or state[2] == "R"]
    return found, "sudo dpkg --configure -a" + (f"; sudo apt-get --reinstall install {' '.join(torn)}" if torn else "")
