"""What runs is what the site asked for, down to versions and digests; the product's own pages come with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filter.comfyui_workflows import SOURCES

import model_files
import verdict
from site_fixtures import Ask
from verdict import Evidence

ROOT = Path(__file__).resolve().parents[2]

# One round trip for everything. Each is read, and none of them needs to be there.
FACTS = """
import json, os, re, subprocess
def run(*argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
def read(path):
    try:
        return open(path).read()
    except OSError:
        return ""
release = dict(re.findall(r'^(\\w+)="?([^"\\n]*)', read("/etc/os-release"), re.M))
print(json.dumps({
    "system": release.get("PRETTY_NAME", ""),
    "DGX OS": " ".join(re.findall(r'^DGX_(?:OTA_|SWBUILD_)VERSION="?([^"\\n]*)', read("/etc/dgx-release"), re.M)[-1:]),
    "kernel": os.uname().release,
    "architecture": os.uname().machine,
    "memory": "%.0f GiB" % (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
    "GPU and driver": run("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
    "Docker": run("docker", "version", "--format", "{{.Server.Version}}"),
    "Container Toolkit": run("dpkg-query", "--show", "--showformat", "${Version}", "nvidia-container-toolkit"),
}))
"""

# In the container: what ComfyUI's own requirements.txt names and is not installed.
MISSING = """
import importlib.metadata, importlib.util, re
names = [re.match(r"[A-Za-z0-9._-]+", line)[0] for line in open("requirements.txt") if re.match(r"[A-Za-z0-9]", line)]
def there(name):
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return importlib.util.find_spec(name.replace("-", "_")) is not None
    return True
print(*[name for name in names if not there(name)])
"""


def test_the_host_says_what_it_is(host: Any, record: Evidence) -> None:
    facts = json.loads(host.check_output("python3 -c %s", FACTS))
    for name, value in facts.items():
        if value:
            record.fact("Host", name, value)
    assert facts["system"]
    assert facts["Docker"]


def test_criterion_06_the_image_has_comfyuis_dependencies(host: Any, site: dict[str, Any], record: Evidence) -> None:
    (container,) = json.loads(host.check_output("docker container inspect comfyui"))
    labels = container["Config"]["Labels"]
    record.fact("Image", "name", container["Config"]["Image"])
    record.fact("Image", "digest", container["Image"])
    record.fact("Image", "base", labels["org.opencontainers.image.base.name"])
    record.fact("Image", "ComfyUI", f"{labels['org.opencontainers.image.version']}")
    record.fact("Image", "commit", labels["org.opencontainers.image.revision"])
    record.fact("Image", "requirements, SHA-256", labels["dgx-comfyui.requirements.sha256"])
    record.fact("Image", "release", labels["dgx-comfyui.release"])
    assert labels["org.opencontainers.image.version"] == site["comfyui_version"]
    done = host.run("docker exec comfyui python -c %s", MISSING)
    assert done.rc == 0, done.stderr
    absent = set(done.stdout.split())
    if site["comfyui_version"] == "0.3.68":
        absent -= {"torchaudio"}  # this version starts without it, and a public wheel would not fit the base's torch
    assert absent == set()


def test_the_server_says_what_it_runs_on(ask: Ask, record: Evidence) -> None:
    _, stats = ask({"stats": ("/system_stats", None)})["stats"]
    for name, key in {"ComfyUI": "comfyui_version", "Python": "python_version", "PyTorch": "pytorch_version"}.items():
        record.fact("Server", name, stats["system"][key])
    for device in stats["devices"]:
        record.fact("Server", f"device {device['index'] or 0}", device["name"])
        record.fact("Server", "memory of the device", f"{device['vram_total'] / 2**30:.1f} GiB")
    assert stats["devices"]


def test_models_are_known_by_their_digests(host: Any, site: dict[str, Any], record: Evidence) -> None:
    # From the records of what was proved on the host: the catalogue may leave both to the hub.
    for name in site["comfyui_models"]:
        dest = model_files.entry_dest(f"{site['comfyui_data_dir']}/models", site["comfyui_model_catalogue"][name])
        found = json.loads(host.check_output("cat %s", f"{dest}.verified.json"))
        record.fact("Models, SHA-256", name, found["sha256"])
        record.fact("Models, SHA-256", f"{name}, bytes", found["size_b"])


def test_graphs_forms_and_input_images_are_known_by_their_digests(
    host: Any, site: dict[str, Any], record: Evidence
) -> None:
    folders = {"api": "workflows", "ui": "user/default/workflows", "input": "input"}
    names = [
        f"{folders[kind]}/{path.name}"
        for kind, pattern in SOURCES.items()
        for path in (ROOT / "workflows").glob(pattern)
    ]
    words = " %s" * len(names)
    # One that is missing is another test's to tell.
    listed = host.run("cd %s && sha256sum --" + words, site["comfyui_data_dir"], *sorted(names)).stdout.splitlines()
    for row in listed:
        digest, name = row.split(maxsplit=1)
        record.fact("Workflows, SHA-256", name, digest)
    assert listed


@pytest.mark.parametrize("page", sorted(ROOT.glob("roles/*/README.md")), ids=lambda page: page.parent.name)
def test_criterion_13_the_page_of_a_role_includes_troubleshooting(page: Path) -> None:
    _, section = page.read_text().split("## Troubleshooting", maxsplit=1)
    assert "| symptom | cause |" in section.lower()


@pytest.mark.last
def test_criterion_12_at_least_five_tests_pass(record: Evidence) -> None:
    assert record.count(verdict.PASSED) >= 5
