"""What was installed came from where it should, and what had stood in the way is out of it."""

from __future__ import annotations

from typing import Any

SOURCES = "/etc/apt/sources.list.d"


def test_apt_works_with_what_was_added(host: Any) -> None:
    done = host.run("apt-get update -o APT::Update::Error-Mode=any")
    assert done.rc == 0, done.stderr
    assert "Conflicting values" not in done.stderr


def test_the_source_of_older_instructions_is_kept_out_of_the_way(host: Any) -> None:
    assert not host.file(f"{SOURCES}/nvidia-container-toolkit.list").exists
    assert "libnvidia-container" in host.file(f"{SOURCES}/nvidia-container-toolkit.list.disabled").content_string
    earlier = host.file(f"{SOURCES}/nvidia-container-toolkit.list.disabled.~1~").content_string
    assert earlier == "from an earlier time\n"


def test_unattended_upgrades_leave_the_driver_alone(host: Any) -> None:
    shown = host.check_output("apt-config dump Unattended-Upgrade::Package-Blacklist")
    patterns = {line.split('"')[1] for line in shown.splitlines() if '"' in line}
    assert {"nvidia-", "libnvidia-", "cuda-"} <= patterns


def test_nothing_is_held_but_the_four_packages(host: Any) -> None:
    assert len(host.check_output("apt-mark showhold").split()) == 4
