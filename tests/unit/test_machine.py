"""What machine a host is, and what of its driver would break; the kinds are those of the role preflight."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from machine import detect, dgx_os_version, driver_faults, parse_release, parse_versions
from role_rules import Rules

ROLE = Path(__file__).parents[2] / "roles" / "preflight"
KINDS: dict[str, Any] = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__preflight_machines"]

SPARK = """\
DGX_NAME="DGX Spark"
DGX_PRETTY_NAME="NVIDIA DGX Spark"
DGX_SWBUILD_DATE="2025-09-10-13-50-03"
DGX_SWBUILD_VERSION="7.2.3"
DGX_COMMIT_ID="833b4a7"
DGX_PLATFORM="DGX Server for KVM"
DGX_SERIAL_NUMBER="1234567890123"

DGX_OTA_VERSION="7.3.1"
DGX_OTA_DATE="Mo 3. Nov 10:02:11 CET 2025"

DGX_OTA_VERSION="7.6.0"
DGX_OTA_DATE="Thu Oct  1 08:12:09 UTC 2026"
"""
STATION = (
    'DGX_NAME="DGX Server"\nDGX_PLATFORM="DGX Server for GALAXY-GB300"\nDGX_SWBUILD_VERSION="7.5.0-GB300ws-GB200ws"\n'
)
H100 = "DGX_NAME=DGX H100\nDGX_SWBUILD_VERSION='6.1.0'\n"


def test_the_last_update_counts_and_the_serial_number_is_not_read() -> None:
    release = parse_release(SPARK)
    assert dgx_os_version(release) == "7.6.0"
    assert release["DGX_NAME"] == "DGX Spark"
    assert "1234567890123" not in str(release)


def test_a_host_that_was_never_updated_has_its_factory_image() -> None:
    assert dgx_os_version(parse_release(STATION)) == "7.5.0-GB300ws-GB200ws"
    assert dgx_os_version(parse_release("")) == ""


def test_values_come_with_any_quotes_or_none() -> None:
    assert parse_release(H100) == {"DGX_NAME": "DGX H100", "DGX_SWBUILD_VERSION": "6.1.0"}


def test_nothing_in_the_file_is_run() -> None:
    assert parse_release('DGX_NAME="$(touch /tmp/x)"\nPATH=/evil\n') == {"DGX_NAME": "$(touch /tmp/x)"}


@given(st.text(), st.text(alphabet="0123456789ABC", min_size=4))
def test_a_serial_number_never_comes_out(text: str, serial: str) -> None:
    found = parse_release(f"{text}\nDGX_SERIAL_NUMBER={serial}\nDGX_BASEBOARD_SERIAL='{serial}'\n")
    assert not any("SERIAL" in key for key in found)
    assert found == parse_release(text)


@pytest.mark.parametrize(
    ("gpus", "release", "architecture", "kind"),
    [
        (["NVIDIA GB10"], SPARK, "aarch64", "dgx-spark"),
        # Other makers' machines with a GB10 have no such file, or another name in it.
        (["NVIDIA GB10"], "", "aarch64", "dgx-spark"),
        (["NVIDIA GB300", "NVIDIA RTX PRO 6000 Blackwell"], STATION, "aarch64", "dgx-station"),
        (["NVIDIA A100-SXM4-80GB"], 'DGX_NAME="DGX Station A100"\n', "x86_64", "dgx-station"),
        (["NVIDIA A100-SXM4-80GB"] * 8, 'DGX_NAME="DGX A100"\n', "x86_64", "dgx-a100"),
        (["NVIDIA H100 80GB HBM3"] * 8, H100, "x86_64", "dgx-h100"),
        (["NVIDIA H200"] * 8, 'DGX_NAME="DGX H200"\n', "x86_64", "dgx-h200"),
        (["NVIDIA H100 80GB HBM3"], "", "x86_64", "gpu"),
        (["NVIDIA GeForce RTX 4090"], "", "x86_64", "gpu"),
        (["NVIDIA GH200 480GB"], SPARK, "aarch64", "gpu"),
        ([], "", "x86_64", "cpu"),
        # The file alone is no GPU.
        ([], SPARK, "aarch64", "cpu"),
    ],
)
def test_a_machine_is_known_by_what_it_shows(gpus: list[str], release: str, architecture: str, kind: str) -> None:
    assert detect(KINDS, gpus, parse_release(release), architecture) == kind


def test_the_kinds_are_those_that_can_be_typed() -> None:
    spec = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert spec["preflight_machine"]["choices"] == ["auto", *KINDS]


def faults(**given: Any) -> list[str]:
    known = {"loaded": "", "on_disk": "", "packages": {}, "kernels": "", **given}
    return driver_faults(**known)


LOADED = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.159.03  Release Build  (dvs-builder)\nGCC version:"
)
PACKAGES = {
    "libnvidia-compute-580": "580.159.03-0ubuntu0.24.04.1",
    "nvidia-driver-580-open": "580.159.03-0ubuntu0.24.04.1",
    "nvidia-firmware-580-580.159.03": "580.159.03-0ubuntu0.24.04.1",
}
KERNELS = "6.14.0-1015-nvidia 580.159.03\n6.17.0-1032-nvidia 580.159.03\n"


def test_a_sound_driver_has_no_fault() -> None:
    sound = faults(
        loaded=LOADED, on_disk="580.159.03\n", packages=PACKAGES, kernels=KERNELS, dgx_os="7.6.0", branches=["580"]
    )
    assert sound == []


def test_a_host_without_a_driver_has_no_fault() -> None:
    assert faults(kernels="6.12.0-amd64 \n6.13.0-amd64 \n") == []


@pytest.mark.parametrize(
    ("given", "found", "fix"),
    [
        ({"loaded": LOADED, "on_disk": "580.178.04\n"}, "The driver 580.159.03 is loaded and 580.178.04", "reboot"),
        (
            {"loaded": LOADED, "packages": {"libnvidia-compute-580": "580.178.04-0ubuntu1"}},
            "580.178.04 is installed, which ends in `Driver/library version mismatch`",
            "reboot",
        ),
        (
            {"kernels": KERNELS + "7.0.0-1019-nvidia \n"},
            "after a boot into it there is no GPU: kernel 7.0.0-1019-nvidia",
            "apt-get full-upgrade",
        ),
        (
            {"packages": {**PACKAGES, "nvidia-driver-580-open": "580.173.02-0ubuntu1"}},
            "The driver's package is 580.173.02 and its firmware 580.159.03",
            "Dashboard",
        ),
        (
            {"loaded": LOADED.replace("580.159.03", "595.71.05"), "branches": ["580"]},
            "The driver 595.71.05 is not supported on this machine, expected branch 580",
            "Dashboard",
        ),
        ({"dgx_os": "7.5.0", "packages": {"doca-ofed": "3.1.0-091513"}}, "fails to build", "3.2.1-044418"),
        (
            {"dgx_os": "7.6.0", "held": ["somebodys-package", "nvidia-driver-580-open"]},
            "offers the same update again and again: nvidia-driver-580-open, somebodys-package",
            "apt-mark unhold nvidia-driver-580-open somebodys-package",
        ),
    ],
    ids=["module", "library", "kernel without module", "torn pair", "branch", "doca", "held"],
)
def test_a_fault_is_named_with_its_fix(given: dict[str, Any], found: str, fix: str) -> None:
    (fault,) = faults(**given)
    assert found in fault
    assert fix in fault


def test_the_kernels_own_line_is_read_as_an_h100_with_driver_580_gives_it() -> None:
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (builder@)  \n"
    assert faults(loaded=line + "GCC version:  gcc version 15.3.0 (GCC) \n", on_disk="580.159.04\n") == []


@pytest.mark.parametrize(("dgx_os", "version"), [("7.6.0", "3.1.0-091513"), ("7.5.0", "3.2.1-044418"), ("", "3.1.0-1")])
def test_doca_is_a_fault_of_one_release_only(dgx_os: str, version: str) -> None:
    assert faults(dgx_os=dgx_os, packages={"doca-ofed": version}) == []


def test_a_hold_elsewhere_is_the_operators() -> None:
    assert faults(packages={"nvidia-driver-580-open": "580.159.03-1"}) == []


def test_only_installed_packages_count() -> None:
    listing = "a\t1:2.0-1\tii \nb\t2.0\thi \nc\t2.0\trc \nd\t\tun \n\n"
    assert parse_versions(listing) == {"a": "1:2.0-1", "b": "2.0"}


def test_a_kernels_module_is_seen_under_either_name(tmp_path: Path) -> None:
    boot = tmp_path / "boot"
    boot.mkdir()
    (tmp_path / "uname").write_text("#!/bin/sh\necho 6.12-debian\n")
    (tmp_path / "modinfo").write_text(
        "#!/bin/sh\n# -k KERNEL -F FIELD NAME\n"
        'case "$2 $5" in "6.17-dgx nvidia" | "6.12-debian nvidia-current") echo 580.159.03 ;; *) exit 1 ;; esac\n'
    )
    for name in ("uname", "modinfo"):
        (tmp_path / name).chmod(0o755)
    rules = Rules("preflight")
    (look, *_) = rules.read("tasks/probe.yml")
    commands = look["host_probe"]["commands"]

    def said(name: str) -> str:
        argv = [word.replace("/boot", str(boot)) for word in rules.templar(**look["vars"]).template(commands[name])]
        path = f"{tmp_path}:{os.environ['PATH']}"
        return subprocess.run(argv, env={"PATH": path}, capture_output=True, text=True, check=True).stdout

    assert said("driver_on_disk") == "580.159.03\n"
    assert said("kernels") == ""
    for kernel in ("6.17-dgx", "6.12-debian", "6.8-bare", "6.17-dgx.old"):
        (boot / f"vmlinuz-{kernel}").touch()
    assert [line.split() for line in said("kernels").splitlines()] == [
        ["6.12-debian", "580.159.03"],
        ["6.17-dgx", "580.159.03"],
        ["6.8-bare"],
    ]
