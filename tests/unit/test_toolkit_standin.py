"""The stand-in toolkit: a repository that apt can trust, and programs with the effects of the real ones."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cdi_spec import compare, parse
from gpu_request import parse_gpus, spellings
from upstreams.toolkit import build, docker_ce, driver, nvidia_ctk, nvidia_smi

HERE = Path(build.__file__).parent
PROFILES = {path.stem: json.loads(path.read_text()) for path in (HERE / "profiles").glob("*.json")}
NAMES = [
    "libnvidia-container-tools",
    "libnvidia-container1",
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
]
needs_dpkg = pytest.mark.skipif(
    not (shutil.which("dpkg-deb") and shutil.which("gpg")), reason="needs dpkg-deb and gpg to build packages"
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    build.build(root, build.VERSIONS)
    return root


def paragraphs(index: str) -> list[dict[str, str]]:
    return [dict(re.findall(r"^(\S+): (.*)$", text, re.MULTILINE)) for text in index.split("\n\n")]


@needs_dpkg
def test_the_index_describes_every_package(repository: Path) -> None:
    for architecture in build.ARCHITECTURES:
        folder = repository / "stable" / "deb" / architecture
        entries = paragraphs((folder / "Packages").read_text())
        assert sorted((entry["Version"], entry["Package"]) for entry in entries) == sorted(
            (version, name) for version in build.VERSIONS for name in NAMES
        )
        for entry in entries:
            data = (folder / entry["Filename"]).read_bytes()
            assert entry["Architecture"] == architecture
            assert int(entry["Size"]) == len(data)
            assert entry["SHA256"] == hashlib.sha256(data).hexdigest()


@needs_dpkg
def test_the_packages_of_one_version_need_each_other(repository: Path) -> None:
    entries = paragraphs((repository / "stable/deb/amd64/Packages").read_text())
    depends = {entry["Package"]: entry.get("Depends") for entry in entries if entry["Version"] == "1.20.1-1"}
    assert depends["nvidia-container-toolkit"] == (
        "nvidia-container-toolkit-base (= 1.20.1-1), libnvidia-container-tools (= 1.20.1-1)"
    )
    assert depends["libnvidia-container-tools"] == "libnvidia-container1 (= 1.20.1-1)"


@needs_dpkg
def test_the_signature_is_that_of_the_published_key(repository: Path, tmp_path: Path) -> None:
    facts = json.loads((repository / "toolkit.json").read_text())
    tmp_path.chmod(0o700)
    gpg = ["gpg", "--homedir", str(tmp_path), "--batch", "--no-autostart", "--status-fd", "1"]
    subprocess.run([*gpg, "--import", str(repository / "gpgkey")], check=True, capture_output=True)
    for architecture in build.ARCHITECTURES:
        release = repository / "stable/deb" / architecture / "Release"
        for argv in (["--verify", f"{release.parent}/InRelease"], ["--verify", f"{release}.gpg", str(release)]):
            done = subprocess.run([*gpg, *argv], check=True, capture_output=True, text=True)
            assert f"VALIDSIG {facts['fingerprint']}" in done.stdout
        index = (release.parent / "Packages").read_bytes()
        assert f" {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n" in release.read_text()


@needs_dpkg
def test_the_packages_are_the_same_bytes_each_time(repository: Path, tmp_path: Path) -> None:
    build.build(tmp_path, build.VERSIONS)
    made = sorted(path.relative_to(repository) for path in repository.rglob("*.deb"))
    assert len(made) == len(build.ARCHITECTURES) * len(build.VERSIONS) * len(NAMES)
    for path in made:
        assert (repository / path).read_bytes() == (tmp_path / path).read_bytes()
    packed = (tmp_path / "stable/deb/arm64/Packages.gz").read_bytes()
    assert int.from_bytes(packed[4:8], "little") == build.EPOCH_S


@needs_dpkg
def test_the_units_lie_where_their_version_puts_them(repository: Path) -> None:
    places = {}
    for version in build.VERSIONS:
        deb = repository / "stable/deb/amd64" / f"nvidia-container-toolkit-base_{version}_amd64.deb"
        done = subprocess.run(["dpkg-deb", "--contents", str(deb)], check=True, capture_output=True, text=True)
        places[version] = set(re.findall(r"\.(/\S+)/nvidia-cdi-refresh\.(?:path|service)$", done.stdout, re.MULTILINE))
    moved, before = {"/lib/systemd/system"}, {"/etc/systemd/system"}
    assert places == {"1.20.2-1": moved, "1.20.1-1": moved, "1.19.0-1": before}


def test_only_the_refresh_of_1_19_0_comes_last_at_a_boot() -> None:
    assert "\nAfter=multi-user.target\n" in build.packed_text("nvidia-cdi-refresh.service", "1.19.0-1")
    other = build.packed_text("nvidia-cdi-refresh.service", "1.20.1-1")
    assert "After=" not in other
    assert "@" not in other


def test_the_version_is_written_in_as_the_real_program_says_it(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-ctk"
    program.write_text(build.packed_text("../nvidia_ctk.py", "1.20.1-1"))
    done = subprocess.run(["python3", str(program), "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == "NVIDIA Container Toolkit CLI version 1.20.1\ncommit: standin\n"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=8).filter(lambda key: key != "runtimes"), JSON_VALUES, max_size=4))
def test_runtime_configure_keeps_every_other_key(config: dict[str, Any]) -> None:
    wanted = {**config, "runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}}
    once = nvidia_ctk.with_runtime(json.dumps(config), as_default=False)
    assert json.loads(once) == wanted
    assert nvidia_ctk.with_runtime(once, as_default=False) == once


def test_runtime_configure_writes_as_the_real_program_does(tmp_path: Path) -> None:
    path = tmp_path / "docker" / "daemon.json"
    nvidia_ctk.configure_runtime(path, dry_run=False, as_default=True)
    assert path.read_text().startswith('{\n    "default-runtime": "nvidia",\n    "runtimes": {\n        "nvidia": {\n')
    assert '"a\\u0026b"' in nvidia_ctk.with_runtime('{"x": "a&b"}', as_default=False)
    before = path.read_text()
    nvidia_ctk.configure_runtime(path, dry_run=True, as_default=False)
    assert path.read_text() == before


@pytest.mark.parametrize(("text", "message"), [("", "EOF"), ("{", "unable to load config for runtime docker")])
def test_runtime_configure_refuses_a_broken_file(text: str, message: str) -> None:
    with pytest.raises(nvidia_ctk.StandinError, match=message):
        nvidia_ctk.with_runtime(text, as_default=False)


def test_config_sets_one_option_and_keeps_it() -> None:
    text = nvidia_ctk.set_option(nvidia_ctk.CONFIG_TEXT, "nvidia-container-runtime.mode=cdi")
    assert text == nvidia_ctk.CONFIG_TEXT.replace('mode = "auto"', 'mode = "cdi"')
    text = nvidia_ctk.set_option(text, "nvidia-container-runtime.runtimes=runc:kata")
    assert 'runtimes = ["runc", "kata"]' in text
    assert "disable-require = true" in nvidia_ctk.set_option(text, "disable-require=true")
    with pytest.raises(nvidia_ctk.StandinError, match="unknown option"):
        nvidia_ctk.set_option(text, "nvidia-container-runtime.nonsense=1")


def test_config_in_place_keeps_what_was_set(tmp_path: Path) -> None:
    path = tmp_path / "a" / "config.toml"
    nvidia_ctk.configure_toolkit(path, ["nvidia-container-runtime.mode=cdi"], in_place=True)
    nvidia_ctk.configure_toolkit(path, [], in_place=True)
    assert 'mode = "cdi"' in path.read_text()


def test_a_node_is_described_without_its_zeros() -> None:
    assert nvidia_ctk.describe_node("/dev/null", os.stat("/dev/null")) == {
        "path": "/dev/null",
        "major": 1,
        "minor": 3,
        "fileMode": 0o666,
        "permissions": "rwm",
    }


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Device nodes of a host with one GPU; a test may take some away."""
    numbers = driver.device_nodes(PROFILES["h100"])
    present = set(numbers)
    monkeypatch.setattr(os.path, "exists", lambda path: path in present)
    monkeypatch.setattr(os, "stat", lambda path: path)
    monkeypatch.setattr(
        nvidia_ctk,
        "describe_node",
        lambda path, _: {"path": path, "major": numbers[path][0], "minor": numbers[path][1]},
    )
    return present


GPUS = [("0", "GPU-5ba1d1e4-0000-4000-8000-000000000100")]


@pytest.mark.usefixtures("nodes")
def test_the_specification_describes_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia_ctk, "VERSION", "1.20.1")
    spec = nvidia_ctk.make_spec(GPUS, "580.159.04", ["/x/libcuda.so.580.159.04"], "aarch64")
    text = "\n".join(nvidia_ctk.yaml_lines(spec, 0))
    assert yaml.safe_load(text) == spec
    assert parse(text) == spec
    assert compare(spec, driver.device_nodes(PROFILES["h100"]), []) == []
    assert spec["cdiVersion"] == "0.7.0"
    assert [device["name"] for device in spec["devices"]] == ["0", GPUS[0][1], "all"]
    assert nvidia_ctk.device_names(text) == [f"nvidia.com/gpu={name}" for name in ("0", GPUS[0][1], "all")]
    assert spec["containerEdits"]["mounts"][0]["containerPath"] == "/usr/lib/aarch64-linux-gnu/libcuda.so.580.159.04"
    monkeypatch.setattr(nvidia_ctk, "VERSION", "1.19.0")
    assert nvidia_ctk.make_spec(GPUS, "580.159.04", [], "x86_64")["cdiVersion"] == "0.5.0"


def test_a_missing_uvm_node_is_a_warning_only(nodes: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    nodes.remove("/dev/nvidia-uvm")
    spec = nvidia_ctk.make_spec(GPUS, "580.159.04", [], "x86_64")
    assert "Could not locate /dev/nvidia-uvm:" in capsys.readouterr().err
    live = {path: numbers for path, numbers in driver.device_nodes(PROFILES["h100"]).items() if path in nodes}
    assert compare(spec, live, []) == ["/dev/nvidia-uvm is not in it"]


def test_a_missing_gpu_node_is_an_error(nodes: set[str]) -> None:
    nodes.remove("/dev/nvidia0")
    with pytest.raises(nvidia_ctk.StandinError, match="empty device edits"):
        nvidia_ctk.make_spec(GPUS, "580.159.04", [], "x86_64")


def test_no_devices_is_no_error_for_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nvidia_ctk.list_devices([str(tmp_path), str(tmp_path / "absent")])
    assert capsys.readouterr().out == ""


def test_nvidia_smi_on_a_card_with_its_own_memory() -> None:
    profile = PROFILES["h100"]
    assert nvidia_smi.answer(["-L"], profile) == (0, f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {GPUS[0][1]})\n")
    ask = "--query-gpu=name,memory.total,compute_cap"
    assert nvidia_smi.answer([ask, "--format=csv,noheader,nounits"], profile) == (
        0,
        "NVIDIA H100 80GB HBM3, 81559, 9.0\n",
    )
    assert nvidia_smi.answer([ask, "--format=csv"], profile) == (
        0,
        "name, memory.total [MiB], compute_cap\nNVIDIA H100 80GB HBM3, 81559 MiB, 9.0\n",
    )
    assert nvidia_smi.answer(["--query-compute-apps=pid,used_memory", "--format=csv,noheader"], profile) == (0, "")
    assert nvidia_smi.answer(["--query-gpu=nonsense", "--format=csv"], profile)[0] == 2
    assert nvidia_smi.answer(["--query-gpu=name"], profile)[0] == 1


def test_nvidia_smi_on_a_spark_has_no_memory_to_report() -> None:
    ask = ["--query-gpu=memory.total,memory.used,memory.free,compute_cap", "--format=csv,noheader"]
    assert nvidia_smi.answer(ask, PROFILES["gb10"]) == (0, "[N/A], [N/A], [N/A], 12.1\n")
    assert "580.178.04" in nvidia_smi.answer([], PROFILES["gb10"])[1]


def test_a_gpu_in_mig_mode_gives_its_parts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = PROFILES["dgx-h100"]

    def ask(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, *nvidia_smi.answer(argv[1:], profile))

    monkeypatch.setattr("upstreams.toolkit.nvidia_ctk.subprocess.run", ask)
    listing, modes = (
        ask(["nvidia-smi", *words]).stdout
        for words in (["-L"], ["--query-gpu=index,mig.mode.current", "--format=csv,noheader"])
    )
    devices = nvidia_ctk.ask_driver()[0]
    assert spellings(parse_gpus(listing, modes)) == [list(pair) for pair in devices]
    # The third is in that mode and has no part.
    assert [index for index, _ in devices] == ["0", "1:0", "1:1"]
    nodes = driver.device_nodes(profile)
    assert set(nvidia_ctk.node_paths("1:1")) == {"/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap101"} <= set(nodes)


@needs_dpkg
def test_dockers_repository_offers_its_packages(tmp_path: Path) -> None:
    docker_ce.build_repository(tmp_path)
    suite = tmp_path / "debian/dists" / docker_ce.SUITE
    index = suite / "stable/binary-amd64/Packages"
    assert (
        f"{hashlib.sha256(index.read_bytes()).hexdigest()} {index.stat().st_size} stable/binary-amd64/Packages"
        in (suite / "InRelease").read_text()
    )
    entries = {entry["Package"]: entry for entry in paragraphs(index.read_text())}
    assert set(entries) == {"docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin"}
    assert entries["docker-ce"]["Version"] == "5:26.1.5-1~debian.13~trixie"
    assert all((tmp_path / "debian" / entry["Filename"]).exists() for entry in entries.values())


def test_nvidia_smi_fails_without_a_driver(tmp_path: Path) -> None:
    done = subprocess.run(
        ["python3", nvidia_smi.__file__, "-L"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin", "NVIDIA_STANDIN_CONTROL_NODE": str(tmp_path / "absent")},
    )
    assert done.returncode == 9
    assert "couldn't communicate with the NVIDIA driver" in done.stdout
