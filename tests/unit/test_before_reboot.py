"""What stands in the way of an update or its reboot: the judgement host by host, the look itself, and the play."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import playbook_runs
from programs import load_program

ROOT = Path(__file__).parents[2]
TASKS = yaml.safe_load((ROOT / "playbooks/tasks/before_reboot.yml").read_text())
LOOK = TASKS[0]["host_probe"]
PLAY = yaml.safe_load((ROOT / "playbooks/reprovision.yml").read_text())[0]
NEEDED_B = PLAY["vars"]["before_reboot_needed_b"]
TOOLKIT = yaml.safe_load((ROOT / "roles/nvidia_container_toolkit/vars/main.yml").read_text())
OURS = TOOLKIT["__nvidia_container_toolkit_sources"]
FOUR = TOOLKIT["__nvidia_container_toolkit_packages"]
judge = load_program(ROOT / "plugins/filter/before_reboot.py")

OLD, NEW = "6.17.0-1029-nvidia", "6.17.0-1032-nvidia"
OPEN, CLOSED = "Dual MIT/GPL", "NVIDIA"
DF = "Filesystem Avail File\n"


def host(
    answers: dict[str, Any] | None = None,
    *,
    wants_reboot: str | None = None,
    ours: bool = False,
    unheld: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What the look says of a host: as delivered one without a GPU, with `answers` by command (rc 0, or a pair)."""
    silent = dict.fromkeys(LOOK["commands"], "")
    said = silent | {"ota": (127, "", "")} | {"running": NEW, "disks": f"{DF}/dev/a 90000000000 /\n"} | (answers or {})
    full = {name: (0, answer, "") if isinstance(answer, str) else answer for name, answer in said.items()}
    files: dict[str, Any] = {path: {"kind": "absent", "content": None} for path in LOOK["files"] + LOOK["contents"]}
    if wants_reboot is not None:
        files["/run/reboot-required"] = {"kind": "file", "content": "*** System restart required ***\n"}
        files["/run/reboot-required.pkgs"] = {"kind": "file", "content": wants_reboot}
    if ours:
        files[OURS]["kind"] = "file"
    return {
        "commands": {name: dict(zip(("rc", "stdout", "stderr"), answer, strict=True)) for name, answer in full.items()},
        "files": files,
        "packages": {name: {"version": "1.20.1-1", "held": ours and name not in unheld} for name in FOUR},
    }


def kernels(*rows: tuple[str, str, str]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def packages(*rows: tuple[str, str]) -> str:
    return "".join(f"{name}\t{version}\tii \n" for name, version in rows)


def loaded(version: str) -> str:
    return f"NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  {version}  Release Build\nGCC version:  13.3.0\n"


def gsp(*versions: str) -> str:
    nouveau = "/lib/firmware/nvidia/ga102/gsp\n"
    return nouveau + "".join(f"/lib/firmware/nvidia/{version}/gsp_ga10x.bin\n" for version in versions)


def ota(torn: float, *failed: str) -> str:
    others = {"ota": "OTA2604", "torn": 9.0, "failed": ["driver"]}
    return json.dumps(
        {"detected_ota": "OTA2607", "torn": torn, "scores": [others, {"ota": "OTA2607", "failed": failed}]}
    )


V, NEXT = "580.159.03", "580.178.04"
SPARK = {
    "kernels": kernels((OLD, V, OPEN), (NEW, V, OPEN)),
    "loaded": loaded(V),
    "firmware": gsp(V),
    "driver_packages": packages(
        ("libnvidia-compute-580", f"{V}-0ubuntu0.24.04.1"), (f"linux-modules-nvidia-580-open-{NEW}", "6.17.0-1032.32")
    ),
    "ota": ota(0.0),
}
ONE_KERNEL = SPARK | {"kernels": kernels((NEW, V, OPEN))}
DEBIAN = {
    "running": "6.1.0-18-amd64",
    "kernels": kernels(("6.1.0-18-amd64", "535.183.01", CLOSED)),
    "loaded": loaded("535.183.01"),
    "firmware": gsp(),
    "driver_packages": packages(("libcuda1", "535.183.01-1~deb12u1")),
    "dkms": "nvidia-current/535.183.01, 6.1.0-18-amd64, x86_64: installed\n",
}
AFTER_UPDATE = SPARK | {
    "kernels": kernels((OLD, V, OPEN), (NEW, NEXT, OPEN)),
    "running": OLD,
    "firmware": gsp(V, NEXT),
    "driver_packages": packages(("libnvidia-compute-580", f"{NEXT}-0ubuntu0.24.04.1")),
}
UNMET = (100, "", "E: Unmet dependencies. Try 'apt --fix-broken install' with no packages (or specify a solution).\n")


@pytest.mark.parametrize(
    "probe",
    [
        pytest.param(host(SPARK), id="a DGX Spark"),
        pytest.param(host(SPARK | {"ota": (127, "", "no such file")}), id="a DGX Spark that never had an OTA"),
        pytest.param(host({**SPARK, "held": "\n".join(FOUR), "ota": (127, "", "")}, ours=True), id="Ubuntu, ours"),
        pytest.param(host(DEBIAN), id="Debian, DKMS, the closed module"),
        pytest.param(host({"kernels": kernels((OLD, "", ""), (NEW, "", ""))}), id="no GPU, two kernels"),
        pytest.param(host({"kernels": "", "loaded": loaded(V)}), id="a container: no kernel of its own"),
    ],
)
def test_a_healthy_host_has_nothing_in_the_way(probe: dict[str, Any]) -> None:
    assert judge.findings(probe, NEEDED_B) == []


@pytest.mark.parametrize(
    ("probe", "stop", "found", "command"),
    [
        pytest.param(
            host(SPARK | {"kernels": kernels((OLD, V, OPEN), (NEW, "", "")), "driver_packages": ""}),
            True,
            f"kernel {NEW}, which the next boot takes, without a module nvidia",
            "sudo apt-get remove linux-image-",  # nothing tells how the other has its own
            id="no module, driver of nobody",
        ),
        pytest.param(
            host(
                SPARK
                | {
                    "kernels": kernels((OLD, V, OPEN), (NEW, "", "")),
                    "driver_packages": packages((f"linux-modules-nvidia-580-open-{OLD}", "6.17.0-1029.29")),
                }
            ),
            True,
            f"kernel {NEW}, which the next boot takes, without a module nvidia",
            f"apt-get install --reinstall linux-modules-nvidia-580-open-{NEW}",
            id="no module, the other kernel's is precompiled",
        ),
        pytest.param(
            host(DEBIAN | {"kernels": kernels(("6.1.0-18-amd64", "", ""))}),
            True,
            "without a module nvidia",
            "sudo apt-get install linux-headers-6.1.0-18-amd64; sudo dkms autoinstall -k 6.1.0-18-amd64",
            id="DKMS failed for the only kernel",
        ),
        pytest.param(
            host(SPARK | {"kernels": kernels((OLD, "", ""), (NEW, V, OPEN))}),
            False,
            f"kernel {OLD}, another one, without a module nvidia",
            f"linux-modules-nvidia-580-open-{OLD}",
            id="an old kernel without a module",
        ),
        pytest.param(
            host(ONE_KERNEL | {"driver_packages": packages(("libnvidia-compute-580", "580.173.02-0ubuntu0.24.04.1"))}),
            True,
            f"with the module {V} beside libraries of 580.173.02",
            "full-upgrade",
            id="libraries newer than the modules",
        ),
        pytest.param(
            host(ONE_KERNEL | {"firmware": gsp("580.173.02")}),
            True,
            f"with the module {V} and GSP firmware of 580.173.02",
            "full-upgrade",
            id="GSP firmware of another version",
        ),
        pytest.param(
            host(ONE_KERNEL | {"firmware": (2, "", "ls: cannot access")}),
            True,
            f"with the module {V} and GSP firmware of no version",
            "full-upgrade",
            id="the open module without firmware",
        ),
        pytest.param(host(SPARK | {"ota": ota(1.3, "driver")}), True, "1.3 % of OTA2607", "Dashboard", id="OTA torn"),
        pytest.param(
            host(SPARK | {"ota": ota(2.6, "nvidia-system-station", "USBPD")}),
            False,
            "2.6 % of OTA2607 missing (nvidia-system-station, USBPD)",
            "full-upgrade",
            id="OTA without what was removed on purpose",
        ),
        pytest.param(
            host(SPARK | {"ota": (1, '{\n  "error": "must run as root"\n}\n', "")}),
            False,
            "must run as root",
            "sudo nvidia-spark-ota-check summary",
            id="no answer about the OTA",
        ),
        pytest.param(
            host({"unfinished": "nvidia-dkms-580-open\tiF \nlibx\tiU \n"}),
            True,
            "nvidia-dkms-580-open (iF), libx (iU)",
            "sudo dpkg --configure -a",
            id="half configured",
        ),
        pytest.param(
            host({"unfinished": "libx\tiH \nliby\tiUR\n"}),
            True,
            "libx (iH), liby (iUR)",
            "sudo dpkg --configure -a; sudo apt-get --reinstall install libx liby",
            id="half installed",
        ),
        pytest.param(
            host({"interrupted": "0001\n"}), True, "dpkg interrupted", "sudo dpkg --configure -a", id="interrupted"
        ),
        pytest.param(
            host({"apt_check": UNMET}), True, "Unmet", "sudo apt-get --fix-broken install", id="unmet dependencies"
        ),
        pytest.param(
            host({"apt_check": (100, "", "E: Malformed entry 1 in list file /etc/apt/sources.list\n")}),
            True,
            "Malformed entry 1",
            "sudo apt-get check",
            id="a source that cannot be read",
        ),
        pytest.param(
            # What the holder is in the middle of is not the host's fault.
            host({"locks": "812\t/var/lib/dpkg/lock\tapt-get\n", "unfinished": "libx\tiU \n", "interrupted": "0001\n"}),
            True,
            "apt in use: apt-get (process 812) holds /var/lib/dpkg/lock",
            "ps -fp 812",
            id="apt in use",
        ),
        pytest.param(
            host({"locks": (1, "", "Traceback ...\nPermissionError: [Errno 13] Permission denied\n")}),
            True,
            "apt's locks cannot be read: PermissionError",
            "ansible_become=true",
            id="not root",
        ),
        pytest.param(
            host({"kernels": kernels((NEW, "", ""))}, wants_reboot="linux-base\nlinux-base\nlibc6\n"),
            False,
            "a reboot asked for by linux-base, libc6",
            "sudo reboot",
            id="reboot pending",
        ),
        pytest.param(
            host({"kernels": kernels((NEW, "", "")), "running": OLD}),
            False,
            f"kernel {OLD} running and {NEW} installed",
            "sudo reboot",
            id="reboot pending, and nobody says so",
        ),
        pytest.param(
            host({"held": "\n".join(FOUR[1:])}, ours=True, unheld=(FOUR[0],)),
            True,
            f"not held: {FOUR[0]}",
            f"sudo apt-mark hold {FOUR[0]}",
            id="the toolkit's hold is gone",
        ),
        pytest.param(
            host({"held": "docker-ce\nnvidia-driver-580-open\n"}),
            False,
            "held: docker-ce nvidia-driver-580-open",
            "sudo apt-mark unhold docker-ce nvidia-driver-580-open",
            id="held by others",
        ),
        pytest.param(
            host({"disks": f"{DF}/dev/a 8400000000 /boot\n/dev/a 8400000000 /\n/dev/a 8400000000 /var\n"}),
            True,
            "8.4 GB free for /boot, /, /var",
            "sudo apt-get clean",
            id="one disk for all",
        ),
        pytest.param(
            host({"disks": f"{DF}/dev/b 400000000 /boot\n/dev/a 8000000000 /\n/dev/a 8000000000 /var\n"}),
            True,
            "0.4 GB free for /boot",
            "linux-image-*",
            id="a full /boot",
        ),
    ],
)
def test_one_thing_in_the_way_is_one_finding(probe: dict[str, Any], stop: bool, found: str, command: str) -> None:
    (finding,) = judge.findings(probe, NEEDED_B)
    shown = finding["shown"]
    assert list(shown) == ["Stop" if stop else "Remark", "expected", "type"]
    assert finding["stop"] == stop
    assert found in next(iter(shown.values()))
    assert command in shown["type"]
    assert shown["expected"]
    assert all(f"{name}: {words}" in finding["text"] for name, words in shown.items())


def test_an_update_that_waits_for_its_reboot_stops_nothing() -> None:
    # NVIDIA's program judges by the running driver, which is old until the reboot.
    probe = host(AFTER_UPDATE | {"ota": ota(1.3, "driver", "kernel")}, wants_reboot="linux-base\n")
    found = judge.findings(probe, NEEDED_B)
    assert [finding["stop"] for finding in found] == [False] * 4
    texts = " ".join(finding["text"] for finding in found)
    assert f"kernel {OLD}, another one, with the module {V} beside libraries of {NEXT}" in texts
    assert f"the driver {V} in memory and {NEXT} installed" in texts
    assert f"kernel {OLD} running and {NEW} installed" in texts


def test_a_module_that_dkms_could_not_build_stops_the_reboot_into_its_kernel() -> None:
    failed = {
        "kernels": kernels(("6.1.0-9-amd64", "535.183.01", CLOSED), ("6.1.0-18-amd64", "", "")),
        "running": "6.1.0-9-amd64",
        "unfinished": "nvidia-kernel-dkms\tiF \n",
    }
    found = judge.findings(host(DEBIAN | failed), NEEDED_B)
    assert [finding["stop"] for finding in found] == [True, True, False]
    texts = "\n".join(finding["text"] for finding in found)
    # 18 is newer than 9, though not by the alphabet.
    assert "kernel 6.1.0-18-amd64, which the next boot takes, without a module nvidia" in texts
    assert "dkms autoinstall -k 6.1.0-18-amd64 (/var/lib/dkms/nvidia*/*/build/make.log says why it failed)" in texts
    assert "packages that are not done: nvidia-kernel-dkms (iF)" in texts


def test_the_kernel_that_grub_names_is_the_one_that_counts() -> None:
    generic = "6.20.0-35-generic"
    mixed = SPARK | {"kernels": kernels((NEW, V, OPEN), (generic, "", ""))}
    found = judge.findings(host(mixed), NEEDED_B)
    assert [finding["stop"] for finding in found] == [True, False]
    (finding,) = judge.findings(host(mixed | {"grub": f"vmlinuz-{NEW}\n"}), NEEDED_B)
    assert not finding["stop"]
    assert f"kernel {generic}, another one, without a module" in finding["text"]


def test_what_hangs_is_not_taken_for_healthy() -> None:
    (finding,) = judge.findings(host({"kernels": (124, "", "no answer within 60 s")}), NEEDED_B)
    assert finding["stop"]
    assert "no answer within 60 s about kernels" in finding["text"]


def test_a_toolkit_that_is_not_there_needs_no_hold() -> None:
    probe = host(ours=True)
    probe["packages"] = {name: {"version": "", "held": False} for name in FOUR}
    assert judge.findings(probe, NEEDED_B) == []


def test_what_others_hold_in_part_is_a_remark() -> None:
    probe = host()
    probe["packages"][FOUR[0]]["held"] = True
    (finding,) = judge.findings(probe, NEEDED_B)
    assert not finding["stop"]
    assert finding["shown"]["type"] == f"sudo apt-mark hold {' '.join(FOUR[1:])}"


def test_the_look_knows_the_toolkit_as_its_role_does() -> None:
    assert LOOK["packages"] == FOUR
    assert sorted(LOOK["files"]) == sorted([OURS, TOOLKIT["__nvidia_container_toolkit_keyring"]])


def test_the_runbook_shows_what_the_play_says() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    others = packages((f"linux-modules-nvidia-580-open-{OLD}", "6.17.0-1029.29"))
    bare = SPARK | {"kernels": kernels((OLD, V, OPEN), (NEW, "", "")), "driver_packages": others}
    (finding,) = judge.findings(host(bare), NEEDED_B)
    assert "\n-   " + "\n    ".join(": ".join(part) for part in finding["shown"].items()) + "\n" in page
    boot, root, var = (f"{NEEDED_B[folder] / 1e9:g} GB in `{folder}`" for folder in ("/boot", "/", "/var"))
    assert f"{boot}, {root} and {var}" in page


def shell(name: str, **environment: str) -> str:
    program = LOOK["commands"][name]
    done = subprocess.run(program, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout


def test_kernels_are_seen_with_the_modules_of_either_name(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    modinfo = tmp_path / "modinfo"
    modinfo.write_text(
        '#!/bin/sh\n# -k KERNEL -F FIELD NAME\ncase "$2 $5" in\n'
        f"'{NEW} nvidia' | '6.1.0-18-amd64 nvidia-current') [ $4 = version ] && echo {V} || echo '{OPEN}' ;;\n"
        '*) echo "modinfo: ERROR: Module $5 not found." >&2; exit 1 ;;\nesac\n'
    )
    modinfo.chmod(0o755)
    program = TASKS[0]["vars"]["modules"].replace("/boot", str(tmp_path / "boot"))

    def seen() -> str:
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(["sh", "-c", program], env={"PATH": path}, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout

    assert seen() == ""
    for kernel in (OLD, NEW, "6.1.0-18-amd64", f"{NEW}.old", f"{NEW}.dpkg-new"):
        (tmp_path / "boot" / f"vmlinuz-{kernel}").touch()
    assert sorted(seen().splitlines()) == sorted(
        kernels((OLD, "", ""), (NEW, V, OPEN), ("6.1.0-18-amd64", V, OPEN)).splitlines()
    )


def test_packages_are_seen_by_their_states(tmp_path: Path) -> None:
    states = {
        "done": "install ok installed",
        "held": "hold ok installed",
        "gone": "deinstall ok config-files",
        "unpacked": "install ok unpacked",
        "broken": "install reinstreq half-installed",
        "libcuda1": "install ok half-configured",
    }
    entry = "Package: {}\nStatus: {}\nMaintainer: nobody\nArchitecture: all\nVersion: 580.159.03-1\nDescription: x\n\n"
    (tmp_path / "status").write_text("".join(entry.format(*item) for item in states.items()))
    unfinished = shell("unfinished", DPKG_ADMINDIR=str(tmp_path)).splitlines()
    assert sorted(unfinished) == ["broken\tiHR", "libcuda1\tiF ", "unpacked\tiU "]
    query = subprocess.run(
        LOOK["commands"]["driver_packages"],
        env=os.environ | {"DPKG_ADMINDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert query.stdout == "libcuda1\t580.159.03-1\tiF \n"


def test_the_holder_of_a_lock_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "lock-frontend"
    lock.touch()
    program = (ROOT / "plugins/module_utils/apt_lock.py").read_text()
    program = re.sub(r"(?m)^LOCKS = .*$", f"LOCKS = ('{lock}', '/nowhere/lock')", program)

    def seen() -> str:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert seen() == ""
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        holder.stdout.readline()
        name = Path(f"/proc/{holder.pid}/comm").read_text().strip()
        assert seen() == f"{holder.pid}\t{lock}\t{name}\n"
        holder.communicate(b"\n")


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"dgx": {"hosts": {"healthy": local, "broken": local}}}))
    playbook = str(ROOT / "playbooks/reprovision.yml")
    return subprocess.run(
        ["ansible-playbook", "--inventory", str(folder / "hosts.yml"), playbook, "--tags", "before_reboot", *options],
        env=playbook_runs.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_play_prints_every_finding_and_fails_for_a_stop_only(tmp_path: Path) -> None:
    probes = {
        "healthy": host(AFTER_UPDATE, wants_reboot="linux-base\n"),
        "broken": host(SPARK | {"firmware": gsp("580.173.02"), "held": "docker-ce\n"}),
    }
    given = {"probes": probes, "before_reboot_probe": "{{ probes[inventory_hostname] }}"}
    (tmp_path / "given.json").write_text(json.dumps(given))
    options = ["--extra-vars", f"@{tmp_path}/given.json"]
    for mode in ([], ["--check"]):
        done = run(tmp_path, *options, *mode)
        assert done.returncode == 2, done.stdout + done.stderr
        said = " ".join(done.stdout.split())
        for probe in probes.values():
            for finding in judge.findings(probe, NEEDED_B):
                assert all(f"{name}: " in said and words in said for name, words in finding["shown"].items())
        (stop,) = (finding["text"] for finding in judge.findings(probes["broken"], NEEDED_B) if finding["stop"])
        assert playbook_runs.last_words(done.stdout) == stop
        assert re.search(r"healthy +: ok=3 +changed=0 +unreachable=0 +failed=0", done.stdout)
        assert re.search(r"broken +: ok=2 +changed=0 +unreachable=0 +failed=1", done.stdout)


def test_the_look_works_on_this_machine(tmp_path: Path) -> None:
    done = run(tmp_path, "--limit", "healthy")
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert re.search(r"healthy +: ok=[23] +changed=0 +unreachable=0", done.stdout)
    (look, *rest) = done.stdout.split("TASK [before_reboot | ")[1:]
    assert "ok: [healthy]" in look
    assert "Nothing stands in the way" in rest[0] or "expected: " in rest[0]
