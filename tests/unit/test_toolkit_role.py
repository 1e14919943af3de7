"""What the engine and toolkit roles promise in their files: architectures, known faults with a fix, nothing removed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.filter.core import comment

from role_rules import Rules

ROLES = Path(__file__).parents[2] / "roles"
TOOLKIT: dict[str, Any] = yaml.safe_load((ROLES / "nvidia_container_toolkit/vars/main.yml").read_text())
ENGINE: dict[str, Any] = yaml.safe_load((ROLES / "docker_engine/vars/main.yml").read_text())


def render(role: str, name: str, **variables: Any) -> list[str]:
    """A template of a role, without its comments."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - no page
    environment.filters["comment"] = comment
    text = (ROLES / role / "templates" / name).read_text()
    lines = environment.from_string(text).render(ansible_managed="managed", **variables).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(("machine", "debian"), [("aarch64", "arm64"), ("x86_64", "amd64")])
def test_nvidias_source_is_that_of_the_architecture(machine: str, debian: str) -> None:
    assert render(
        "nvidia_container_toolkit",
        "nvidia-container-toolkit.sources.j2",
        nvidia_container_toolkit_repository_url="https://example.com/deb",
        __nvidia_container_toolkit_arch=TOOLKIT["__nvidia_container_toolkit_deb_arches"][machine],
        __nvidia_container_toolkit_keyring=TOOLKIT["__nvidia_container_toolkit_keyring"],
    ) == [
        "Types: deb",
        f"URIs: https://example.com/deb/{debian}",
        "Suites: /",
        "Signed-By: /etc/apt/keyrings/nvidia-container-toolkit.asc",
    ]


@pytest.mark.parametrize(
    ("name", "codename", "architecture"),
    [("ubuntu", "noble", "arm64"), ("ubuntu", "jammy", "amd64"), ("debian", "trixie", "amd64")],
)
def test_dockers_source_is_that_of_distribution_and_architecture(name: str, codename: str, architecture: str) -> None:
    assert render(
        "docker_engine",
        "docker.sources.j2",
        docker_engine_repository_url="https://download.docker.com/linux",
        __docker_engine_os_id=name,
        __docker_engine_os_codename=codename,
        __docker_engine_probe={"commands": {"arch": {"stdout": f"{architecture}\n"}}},
        __docker_engine_key_path=ENGINE["__docker_engine_key_path"],
    ) == [
        "Types: deb",
        f"URIs: https://download.docker.com/linux/{name}",
        f"Suites: {codename}",
        "Components: stable",
        f"Architectures: {architecture}",
        "Signed-By: /etc/apt/keyrings/docker.asc",
    ]


@pytest.mark.parametrize("path", sorted(ROLES.rglob("tasks/*.yml")), ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_nothing_is_removed_that_nobody_named(path: Path) -> None:
    # On a DGX autoremove takes packages of the platform with it, and a full upgrade is the operator's.
    code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    tasks = re.sub(r"(?s)(fail_msg|msg|message): .*?(?=\n\s*(?:- |\w+:))", "", code)
    assert not re.search(r"autoremove|autoclean|dist-upgrade|upgrade: ", tasks)


@pytest.mark.parametrize("version", ["1.18.0", "1.18.1", "1.18.2", "1.19.0", "1.19.1", "1.20.0"])
def test_a_toolkit_with_a_fault_is_known(version: str) -> None:
    assert TOOLKIT["__nvidia_container_toolkit_known_faults"][version].strip().endswith(".")


NOTHING: dict[str, Any] = {"kind": "absent", "mode": "", "uid": None, "gid": None, "content": None}
OWNED: dict[str, Any] = {"kind": "file", "mode": "0644", "uid": 0, "gid": 0}
SAID: dict[str, Any] = {"rc": 0, "stdout": "", "stderr": ""}
FOUR: list[str] = TOOLKIT["__nvidia_container_toolkit_packages"]


def toolkit_rules(version: str = "", *, probe: dict[str, dict[str, Any]] | None = None, **variables: Any) -> Rules:
    """The role where the four packages are at `version`, or absent, and its source is there; `probe` differs."""
    rules = Rules("nvidia_container_toolkit", **variables)
    sources, keyring, env = (
        rules.variables[f"__nvidia_container_toolkit_{name}"] for name in ("sources", "keyring", "env")
    )
    files = dict.fromkeys((keyring, env, "/etc/dgx-release", "/dev/nvidiactl", "/etc/apt/keyrings"), NOTHING)
    files[sources] = {**NOTHING, "kind": "file", "content": "older"}
    commands = dict.fromkeys(("gpus", "mig_modes", "held", "refresh_after", "other_sources"), SAID)
    commands |= {"machine": {**SAID, "stdout": "x86_64\n"}, "engine": {**SAID, "stdout": "29.8.2\n"}}
    packages = {name: {"version": version and f"{version}-1", "held": False} for name in FOUR}
    found = {"files": files, "commands": commands, "packages": packages}
    given = probe or {}
    rules.variables["__nvidia_container_toolkit_probe"] = {
        part: values | given.get(part, {}) for part, values in found.items()
    }
    return rules


UBUNTU = 'ID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'


def engine_rules(engine: str = "", *, probe: dict[str, dict[str, Any]] | None = None, **variables: Any) -> Rules:
    """The role docker_engine on Ubuntu with a docker-ce of this version, or without an engine; `probe` differs."""
    rules = Rules("docker_engine", __docker_engine_probe_after={}, **variables)
    names = ("key_path", "sources_path", "daemon_json")
    files = dict.fromkeys((rules.variables[f"__docker_engine_{name}"] for name in names), NOTHING)
    files |= {"/etc/dgx-release": NOTHING, "/etc/os-release": {**OWNED, "content": UBUNTU}}
    missing = {"rc": 127, "stdout": "", "stderr": "not found"}
    commands = dict.fromkeys(("dockerd", "buildx", "info", "snap"), missing) | dict.fromkeys(("held", "etc"), SAID)
    commands |= {"arch": {**SAID, "stdout": "amd64\n"}, "key_users": {**missing, "rc": 1}}
    if engine:
        commands |= {"dockerd": {**SAID, "stdout": f"Docker version {engine}, build standin"}, "buildx": SAID}
        commands["info"] = {**SAID, "stdout": f'{{"version": "{engine}"}}'}
    lists = ("ce_packages", "ce_conflicts")
    known = [name for part in lists for name in rules.variables[f"__docker_engine_{part}"]] + ["docker-buildx"]
    packages = {name: {"version": "", "held": False} for name in known}
    if engine:
        packages["docker-ce"] = {"version": f"5:{engine}-1~ubuntu.24.04~noble", "held": False}
    units = {
        "docker.service": {"load": "loaded" if engine else "not-found", "active": "active", "file_state": "enabled"}
    }
    found = {"files": files, "commands": commands, "packages": packages, "units": units}
    given = probe or {}
    rules.variables["__docker_engine_probe"] = {part: values | given.get(part, {}) for part, values in found.items()}
    return rules


DAMAGE: list[dict[str, Any]] = [
    {"mode": "0600"},
    {"mode": "0666"},
    {"uid": 1000},
    {"gid": 1000},
    {"content": "other"},
    NOTHING,
]


@pytest.mark.parametrize("damage", [{}, *DAMAGE], ids=str)
def test_dockers_source_is_repaired_where_it_is_ours(damage: dict[str, Any]) -> None:
    key, sources = ENGINE["__docker_engine_key_path"], ENGINE["__docker_engine_sources_path"]
    text = engine_rules("29.8.2").value("__docker_engine_sources_text")
    right = {key: {**OWNED, "content": "key"}, sources: {**OWNED, "content": text}}

    def damaged(files: dict[str, dict[str, Any]], *, key_right: bool = True, used_by: str = "") -> bool:
        probe = {"files": right | files, "commands": {"key_users": {**SAID, "stdout": used_by}}}
        rules = engine_rules("29.8.2", probe=probe, __docker_engine_key_right=key_right)
        return bool(rules.value("__docker_engine_source_damaged"))

    # A file of other content says nothing of being ours: it is somebody's.
    assert damaged({sources: right[sources] | damage}) is (damage not in ({}, {"content": "other"}))
    assert damaged({sources: right[sources] | {"content": f"{text}more"}})
    assert damaged({key: right[key] | damage}, key_right="content" not in damage) is (damage != {})
    # Without the file the key tells, where nobody else uses it.
    assert damaged({sources: NOTHING})
    assert not damaged({sources: NOTHING}, used_by="/etc/apt/sources.list.d/docker.list")
    assert not damaged({sources: NOTHING}, key_right=False)


@pytest.mark.parametrize("damage", [{}, *DAMAGE], ids=str)
def test_nvidias_source_and_the_files_of_the_role_are_repaired(damage: dict[str, Any]) -> None:
    keyring, sources = (TOOLKIT[f"__nvidia_container_toolkit_{name}"] for name in ("keyring", "sources"))
    order, guard = (TOOLKIT[f"__nvidia_container_toolkit_{name}"] for name in ("boot_order", "guard"))
    text = toolkit_rules().value("__nvidia_container_toolkit_sources_text")
    files = {path: {**OWNED, "content": content} for path, content in ((keyring, "key"), (sources, text))}
    files |= {file["path"]: {**OWNED, "content": file["text"]} for file in (order, guard)}
    files[str(Path(order["path"]).parent)] = {**OWNED, "kind": "dir"}
    for path in (keyring, sources, order["path"], guard["path"]):
        there = files | {path: files[path] | damage}
        rules = toolkit_rules(
            "1.20.1",
            probe={"files": there, "packages": {"unattended-upgrades": {"version": "2.9", "held": False}}},
            __nvidia_container_toolkit_key_right=path != keyring or damage.get("content", "key") == "key",
        )
        tasks = {
            task["name"].partition("| ")[2]: task
            for part in ("boot", "configure")
            for task in rules.read(f"tasks/{part}.yml")
        }
        hit = {
            keyring: rules.value("__nvidia_container_toolkit_source_due"),
            sources: rules.value("__nvidia_container_toolkit_source_due"),
            order["path"]: rules.applies(tasks["Start Docker after the refresh of the CDI specification"]),
            guard["path"]: rules.applies(tasks["Keep unattended upgrades away from the driver"]),
        }
        same = {keyring, sources} if path in {keyring, sources} else {path}
        assert hit == {other: other in same and damage != {} for other in hit}


LAST, USUAL = "sysinit.target multi-user.target basic.target", "sysinit.target basic.target"


@pytest.mark.parametrize(
    ("found", "after", "wanted", "source", "last"),
    [
        ("1.20.1", USUAL, "1.20.1-1", "auto", False),
        ("1.19.0", LAST, "1.20.1-1", "auto", False),  # it goes in this run
        ("1.20.1", USUAL, "1.19.0-1", "auto", True),
        ("", "", "1.19.0-1", "auto", True),
        ("", "", "1.20.1-1", "auto", False),
        ("1.19.0", LAST, "1.20.1-1", "host", True),
        ("1.19.1", LAST, "1.20.1-1", "host", True),  # a unit that somebody kept
        ("1.19.1", USUAL, "1.20.1-1", "host", False),
    ],
)
def test_docker_waits_for_no_refresh_that_comes_last(
    found: str, after: str, wanted: str, source: str, last: bool
) -> None:
    drop_in: str = TOOLKIT["__nvidia_container_toolkit_boot_order"]["path"]
    rules = toolkit_rules(
        found,
        probe={
            "commands": {"refresh_after": {**SAID, "stdout": f"{after}\n"}},
            "files": {drop_in: {**NOTHING, "kind": "file"}, str(Path(drop_in).parent): {**NOTHING, "kind": "dir"}},
        },
        nvidia_container_toolkit_version=wanted,
        nvidia_container_toolkit_source=source,
    )
    tasks = {task["name"].partition("| ")[2]: task for task in rules.read("tasks/boot.yml")}
    assert rules.applies(tasks["Start Docker after the refresh of the CDI specification"]) is not last
    assert rules.applies(tasks["Let Docker start before a refresh that comes last"]) is last


def test_no_unit_of_ours_waits_for_the_refresh_by_itself() -> None:
    text = (ROLES.parent / "templates/comfyui.service.j2").read_text()
    assert [line for line in text.splitlines() if line.startswith("After=") and "nvidia-cdi-refresh" in line] == []


@pytest.mark.parametrize(
    ("containers", "live_restore", "others", "inputs", "allowed"),
    [
        ("", "false", ["data-root"], {}, True),
        ("theirs\n", "true", [], {}, True),
        ("theirs\n", "true", ["data-root"], {}, False),
        ("theirs\n", "true", ["data-root"], {"docker_engine_restart_may_stop_containers": True}, True),
        ("theirs\n", "false", [], {}, False),
        ("", "true", [], {"docker_engine_service_managed": False}, False),
    ],
)
def test_docker_is_restarted_where_that_loses_no_container(
    containers: str, live_restore: str, others: list[str], inputs: dict[str, bool], allowed: bool
) -> None:
    found = {"containers": {**SAID, "stdout": containers}, "live_restore": {**SAID, "stdout": f"{live_restore}\n"}}
    rules = Rules(
        "docker_engine",
        __docker_engine_before_restart={"commands": found},
        __docker_engine_of_others={"others_restart_keys": others},
        **inputs,
    )
    assert rules.value("__docker_engine_restart_allowed") is allowed
    (task,) = (task for task in rules.read("handlers") if task["name"].startswith("List the containers"))
    said = rules.templar(**task["vars"]).template(task["ansible.builtin.debug"]["msg"])
    assert ("Docker was not restarted" in said) is not allowed
    assert ("/etc/docker/daemon.json (data-root)" in said) is (bool(others) and not allowed)


@pytest.mark.parametrize(
    ("toolkit", "source", "way"),
    [("1.17.8-1", "auto", "gpus"), ("1.17.8-1", "nvidia", "cdi"), ("1.18.0-1", "auto", "cdi"), ("", "auto", "cdi")],
)
def test_gpus_are_asked_for_as_the_toolkit_wants_that_the_run_ends_with(toolkit: str, source: str, way: str) -> None:
    site = DataLoader().load_from_file(
        str(ROLES.parent / "inventory/group_vars/all/preflight.yml"), trusted_as_template=True
    )
    rules = Rules(
        "preflight",
        __preflight_probe={
            "commands": {"engine": {**SAID, "stdout": "29.8.2\n"}},
            "packages": {"nvidia-container-toolkit": {"version": toolkit}},
        },
        preflight_gpus="all",
        preflight_toolkit_replaced=site["preflight_toolkit_replaced"],
        nvidia_container_toolkit_source=source,
    )
    (task,) = (task for task in rules.read("tasks/probe.yml") if "ansible.builtin.set_fact" in task)
    request = task["ansible.builtin.set_fact"]["preflight_found_gpu_request"]
    found = rules.templar(**{**task["vars"], "gpus": "all"}).template(request)
    assert found["way"] == way


DGX_OS = {"/etc/dgx-release": {**OWNED, "content": "DGX_NAME"}}
MISSING = {"rc": 127, "stdout": "", "stderr": "not found"}


def there(version: str) -> dict[str, Any]:
    """A package at this version."""
    return {"version": version, "held": False}


@pytest.mark.parametrize(
    ("engine", "probe", "words"),
    [
        ("24.0.9", {}, "Docker 24.0.9 is here (docker-ce), expected 25.0 or newer"),
        ("24.0.9", {}, "sudo apt-get install docker-ce docker-ce-cli containerd.io docker-buildx-plugin"),
        ("24.0.9", {"files": DGX_OS}, "Update DGX OS: sudo apt-get update && sudo apt-get dist-upgrade"),
        ("", {"files": DGX_OS}, "This is DGX OS (/etc/dgx-release), and its Docker engine is missing"),
        ("29.8.2", {"packages": {"podman-docker": there("4.9")}}, "sudo apt-get remove podman-docker"),
        ("", {"packages": {"runc": there("1.1"), "containerd": there("1.7")}}, "apt-get remove containerd runc, or"),
        ("29.8.2", {"units": {"docker.service": {"load": "masked"}}}, "sudo systemctl unmask docker.service"),
        ("29.8.2", {"units": {"docker.service": {"load": "not-found"}}}, "docker_engine_service_managed: false"),
        ("29.8.2", {"files": DGX_OS, "commands": {"buildx": MISSING}}, "sudo apt-get install docker-buildx-plugin"),
        ("", {"files": {"/etc/os-release": {**OWNED, "content": "ID=fedora"}}}, "Debian and Ubuntu only; found fedora"),
        ("29.8.2", {"commands": {"snap": SAID}}, "sudo snap remove docker"),
    ],
)  # fmt: skip
def test_an_engine_that_cannot_serve_is_refused(engine: str, probe: dict[str, Any], words: str) -> None:
    (refusal,) = engine_rules(engine, probe=probe).refusals("host")
    assert words in refusal


@pytest.mark.parametrize("engine", ["", "25.0.0", "29.8.2"])
def test_an_engine_that_can_is_not(engine: str) -> None:
    assert engine_rules(engine).refusals("host") == []


FOREIGN = {TOOLKIT["__nvidia_container_toolkit_sources"]: NOTHING}
DRIVER_SAID = {"rc": 9, "stdout": "", "stderr": "Driver/library version mismatch"}
STRANGE = {**SAID, "stdout": "/etc/apt/sources.list.d/cuda-extra.list\n"}


@pytest.mark.parametrize(
    ("version", "source", "probe", "words"),
    [
        ("1.19.1", "nvidia", {"files": DGX_OS}, "This is DGX OS, which brings the toolkit from its own repositories"),
        ("", "auto", {"files": DGX_OS}, "libnvidia-container1 absent; expected all four at one version"),
        ("", "auto", {"files": DGX_OS}, "apt-get install nvidia-container-toolkit on the host"),
        ("", "host", {}, "or set nvidia_container_toolkit_source: nvidia to install"),
        ("1.19.1", "host", {"packages": {FOUR[3]: there("1.18.2-1")}}, "container1 1.18.2-1; expected all four"),
        ("1.17.8", "auto", {"files": FOREIGN}, "nvidia-container-toolkit 1.17.8-1, .*1.18.0 or newer"),
        ("1.20.1", "nvidia", {"commands": {"other_sources": STRANGE}}, "cuda-extra.list also names nvidia.github.io"),
        ("", "auto", {"commands": {"other_sources": STRANGE}}, "or set nvidia_container_toolkit_source: host"),
        ("", "auto", {"commands": {"machine": {**SAID, "stdout": "riscv64\n"}}}, "This host is riscv64; NVIDIA has"),
        ("1.20.1", "auto", {"commands": {"gpus": DRIVER_SAID}}, "nvidia-smi -L said \"Driver/library version mismatch"),
        ("1.20.1", "auto", {"commands": {"engine": {**SAID, "stdout": "25.0.5"}}}, "comfyui_toolkit_version: 1.18.2-1"),
    ],
)  # fmt: skip
def test_a_toolkit_that_cannot_serve_is_refused(version: str, source: str, probe: dict[str, Any], words: str) -> None:
    rules = toolkit_rules(version, probe=probe, nvidia_container_toolkit_source=source)
    (refusal,) = rules.refusals("host") or rules.refusals("versions")
    assert re.search(words, refusal)


@pytest.mark.parametrize(
    ("version", "source"), [("", "auto"), ("1.19.1", "auto"), ("1.19.1", "host"), ("1.18.0", "nvidia")]
)
def test_a_toolkit_that_can_is_not(version: str, source: str) -> None:
    rules = toolkit_rules(version, nvidia_container_toolkit_source=source)
    assert rules.refusals("host") + rules.refusals("versions") == []


@pytest.mark.parametrize(
    ("release", "inputs", "packages"),
    [
        (UBUNTU, {}, ["docker-ce=5:29.8.2-1~ubuntu.24.04~noble", "docker-ce-cli=5:29.8.2-1~ubuntu.24.04~noble"]),
        (
            'ID=ubuntu\nVERSION_ID="22.04"\nVERSION_CODENAME=jammy\n',
            {"docker_engine_version": "28.5.1"},
            ["docker-ce=5:28.5.1-1~ubuntu.22.04~jammy", "docker-ce-cli=5:28.5.1-1~ubuntu.22.04~jammy"],
        ),
        (
            'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n',
            {"docker_engine_source": "docker-ce"},
            ["docker-ce=5:29.8.2-1~debian.13~trixie", "docker-ce-cli=5:29.8.2-1~debian.13~trixie"],
        ),
    ],
    ids=["noble", "jammy", "trixie"],
)
def test_the_engine_and_its_client_are_installed_at_one_version(
    release: str, inputs: dict[str, str], packages: list[str]
) -> None:
    probe = {"files": {"/etc/os-release": {**OWNED, "content": release}}}
    rules = engine_rules(probe=probe, **inputs)
    assert rules.value("__docker_engine_to_install") == [*packages, "containerd.io", "docker-buildx-plugin"]


def test_the_distributions_engine_and_a_missing_buildx() -> None:
    theirs = engine_rules(docker_engine_source="distribution")
    assert theirs.value("__docker_engine_to_install") == ["docker.io", "docker-buildx", "iptables", "procps"]
    assert engine_rules("29.8.2").value("__docker_engine_to_install") == []
    bare = engine_rules("29.8.2", probe={"commands": {"buildx": MISSING}})
    assert bare.value("__docker_engine_to_install") == ["docker-ce-cli", "docker-buildx-plugin"]
    assert bare.refusals("host") == []


@pytest.mark.parametrize(
    ("release", "silent", "packages"),
    [
        ("debian", (), []),
        ("debian", ("info", "buildx"), ["docker-cli", "docker-buildx"]),
        ("ubuntu", ("info", "buildx"), ["docker-buildx"]),  # there the client comes with the engine
        ("debian", ("kill",), ["procps"]),
        ("plan9", ("kill",), []),
    ],
)
def test_what_the_distributions_engine_lost_is_installed(
    release: str, silent: tuple[str, ...], packages: list[str]
) -> None:
    theirs = {"docker-ce": {"version": ""}, "docker.io": {"version": "26.1.5"}}
    probe = {
        "files": {"/etc/os-release": {**OWNED, "content": f"ID={release}\n"}},
        "packages": theirs,
        "commands": {"kill": SAID, **dict.fromkeys(silent, MISSING)},
    }
    assert engine_rules("26.1.5", probe=probe).value("__docker_engine_to_install") == packages


@pytest.mark.parametrize(
    ("installed", "let", "kind", "written", "removed"),
    [
        ("2.9", False, "absent", True, False),
        ("", False, "absent", False, False),
        ("2.9", True, "absent", False, False),
        ("2.9", True, "file", False, True),
    ],
)
def test_unattended_upgrades_are_kept_from_the_driver_which_is_said_and_one_variable_off(
    installed: str, let: bool, kind: str, written: bool, removed: bool
) -> None:
    guard = TOOLKIT["__nvidia_container_toolkit_guard"]["path"]
    rules = toolkit_rules(
        "1.20.1",
        probe={"files": {guard: {**NOTHING, "kind": kind}}, "packages": {"unattended-upgrades": there(installed)}},
        nvidia_container_toolkit_unattended_driver_upgrades=let,
    )
    tasks = {task["name"].partition("| ")[2]: task for task in rules.read("tasks/configure.yml")}
    keep = tasks["Keep unattended upgrades away from the driver"]
    assert rules.applies(keep) is written
    assert rules.applies(tasks["Let unattended upgrades have the driver"]) is removed
    said = rules.templar(**keep["vars"]).template(keep["block"][0]["ansible.builtin.debug"]["msg"])
    assert guard in said
    assert "nvidia_container_toolkit_unattended_driver_upgrades: true" in said
