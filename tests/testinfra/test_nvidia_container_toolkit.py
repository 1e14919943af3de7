"""The NVIDIA Container Toolkit: its packages, the engine's runtime, and GPUs that really reach a container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import cdi_spec
import gpu_request
import openpgp

PACKAGES = [
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
]
SOURCES = "/etc/apt/sources.list.d/nvidia-container-toolkit.sources"
KEYRING = "/etc/apt/keyrings/nvidia-container-toolkit.asc"
SPEC = "/var/run/cdi/nvidia.yaml"


@pytest.fixture(scope="module")
def installed_by_us(host: Any) -> None:
    """Skips where the packages are the host's own, as on DGX OS: nothing is pinned there."""
    if not host.file(SOURCES).exists:
        pytest.skip("the toolkit is the host's own, kept as it was found")


@pytest.fixture(scope="module")
def live(host: Any) -> dict[str, tuple[int, int]]:
    """Major and minor number of the GPU device nodes that are under /dev."""
    found = host.run("find /dev -maxdepth 2 -name 'nvidia*' -type c -exec stat -c '%n %t %T' {} +")
    nodes = read_nodes(found.stdout)
    if not nodes:
        pytest.skip("no GPU device nodes on this host")
    return nodes


def read_nodes(stat_output: str) -> dict[str, tuple[int, int]]:
    """`stat -c '%n %t %T'`, which gives hexadecimal figures."""
    rows = [line.split() for line in stat_output.splitlines()]
    return {path: (int(major, 16), int(minor, 16)) for path, major, minor in rows}


@pytest.fixture(scope="module")
def spec(host: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(host.file(SPEC).content_string)
    return found


def test_the_four_packages_have_one_version(host: Any) -> None:
    assert len({host.package(name).version for name in PACKAGES}) == 1


@pytest.mark.usefixtures("installed_by_us")
def test_the_version_is_the_pinned_one_and_held(host: Any, site: dict[str, Any]) -> None:
    assert {host.package(name).version for name in PACKAGES} == {site["comfyui_toolkit_version"]}
    assert set(PACKAGES) <= set(host.check_output("apt-mark showhold").split())


@pytest.mark.usefixtures("installed_by_us")
def test_apt_trusts_the_expected_key_and_no_other(host: Any, site: dict[str, Any]) -> None:
    packets = openpgp.dearmor(host.file(KEYRING).content)
    assert openpgp.primary_fingerprints(packets) == [site["comfyui_toolkit_key_fingerprint"]]
    assert f"Signed-By: {KEYRING}" in host.file(SOURCES).content_string


def test_the_engine_knows_the_runtime(host: Any) -> None:
    runtimes = json.loads(host.check_output("docker info --format '{{json .Runtimes}}'"))
    # A host may have had it with its own path.
    assert Path(runtimes["nvidia"]["path"]).name == "nvidia-container-runtime"


def test_the_specification_is_refreshed_by_the_host(host: Any) -> None:
    assert host.service("nvidia-cdi-refresh.path").is_running
    assert host.service("nvidia-cdi-refresh.path").is_enabled
    assert host.service("nvidia-cdi-refresh.service").is_enabled


def test_the_specification_is_complete_and_current(
    host: Any, spec: dict[str, Any], live: dict[str, tuple[int, int]]
) -> None:
    missing = [path for path in cdi_spec.host_files(spec) if not host.file(path).exists]
    modes = host.run("nvidia-smi --query-gpu=index,mig.mode.current --format=csv,noheader")
    gpus = gpu_request.parse_gpus(host.check_output("nvidia-smi -L"), modes.stdout)
    # In MIG mode and without an instance there is nothing to hand over.
    bare = [gpu for gpu in gpus if gpu.split and not gpu.mig]
    described = {str(device["name"]) for device in spec["devices"]}
    assert not described & {name for gpu in bare for name in (gpu.index, gpu.uuid)}
    devices = gpu_request.spellings(gpus)
    assert cdi_spec.compare(spec, live, missing, devices=devices, without_device=len(bare)) == []


def test_a_container_gets_the_gpus_of_the_specification(
    host: Any, spec: dict[str, Any], live: dict[str, tuple[int, int]]
) -> None:
    images = host.check_output("docker image ls --format '{{.ID}}'").split()
    if not images:
        pytest.skip("no image on this host to start a container from")
    inside = host.run(
        "docker run --rm --pull never --network none --user 0 --device nvidia.com/gpu=all --entrypoint /bin/sh %s"
        """ -c 'find /dev -name "nvidia*" -type c -exec stat -c "%%n %%t %%T" {} +'""",
        images[0],
    )
    assert inside.rc == 0, inside.stderr
    wanted = {path: numbers for path, numbers in live.items() if path in cdi_spec.device_nodes(spec)}
    assert {"/dev/nvidiactl", "/dev/nvidia-uvm"} <= set(wanted)
    assert read_nodes(inside.stdout) == wanted
