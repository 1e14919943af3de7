"""The image on a host that serves: made from what is pinned, refused where an input is wrong, the old one as it was.

Each test is a run of site.yml for the image alone, with what is typed after -e; faults are real ones of real builds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pip._internal.models.index import PyPI

from image_sandbox import Sandbox
from playbook_runs import ROOT

NAME = os.environ.get("MOLECULE_SCENARIO_NAME", "image")
GATE = ["/opt/comfyui/venv/bin/python", "/opt/comfyui/torch_gate.py"]
REMOTE_TASKS = 6
DIST_PACKAGES = "/usr/lib/python3/dist-packages"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(NAME, tmp_path_factory.mktemp("image"))


@pytest.fixture(autouse=True)
def the_service_is_left_alone(sandbox: Sandbox) -> Iterator[None]:
    """Whatever becomes of a build: what runs goes on, and its image stays."""
    before = sandbox.service()
    yield
    assert sandbox.service() == before
    assert sandbox.wanted in sandbox.images()


@pytest.fixture(scope="module")
def older(sandbox: Sandbox) -> dict[str, Any]:
    """ComfyUI 0.3.68 on a base that has a torchaudio of its own."""
    folder = f"{DIST_PACKAGES}/torchaudio"
    line = f"RUN mkdir {folder} && echo '__version__ = \"2.6.0+own\"' > {folder}/__init__.py"
    return sandbox.older() | {"comfyui_base_image": sandbox.push_base("with-torchaudio", line)}


def test_a_run_without_work_builds_nothing_and_keeps_its_budget(sandbox: Sandbox) -> None:
    outcome = sandbox.play()
    assert outcome.status == 0, outcome.output
    tasks = sandbox.tasks()
    assert 0 < sum(task["runs"] for task in tasks) <= REMOTE_TASKS, tasks
    assert [task for task in tasks if task["status"] != "ok"] == []
    assert sandbox.images() == sandbox.kept


def test_a_build_that_is_interrupted_leaves_nothing_but_its_cache(sandbox: Sandbox, older: dict[str, Any]) -> None:
    process = sandbox.begin(**older)
    # The client of the builder, by its number, once pip is at work.
    sandbox.shell(
        "for i in $(seq 900); do pgrep -f '^/opt/comfyui/venv/bin/python -m pip install' > /dev/null && break; sleep "
        "0.1; done; kill -9 $(pgrep -f '^[^ ]*docker-buildx.* build ')"
    )
    outcome = sandbox.finish(process)
    assert outcome.status != 0
    assert "The build was interrupted" in outcome.message, outcome.output
    assert "Run this again: it goes on from the last step." in outcome.message
    assert sandbox.images() == sandbox.kept


def test_a_dry_run_predicts_the_image_that_a_real_one_makes(sandbox: Sandbox, older: dict[str, Any]) -> None:
    predicted = sandbox.play("--check", **older)
    assert predicted.status == 0, predicted.output
    assert sandbox.images() == sandbox.kept
    made = sandbox.play(**older)
    assert made.status == 0, made.output
    assert len(set(re.findall("GHSA(?:-[a-z0-9]{4}){3}", made.output))) == 5, made.output
    tag = sandbox.made()
    assert f"image dgx-comfyui:{tag}: found absent, expected built from http://upstreams.test" in predicted.output
    assert "over its base" in made.output
    record = json.loads(sandbox.shell(f"cat /etc/comfyui/images/{tag}.json"))
    contents = {entry["name"].replace("_", "-"): entry for entry in record["contents"]}
    assert contents["comfyui-frontend-package"]["version"] == "1.28.8"
    assert (contents["torch"]["of_base"], contents["einops"]["of_base"]) == (True, False)
    assert contents["einops"]["licence"]
    assert 0 < record["overhead_b"] < record["size_b"]
    assert "einops==" in sandbox.shell(f"cat /etc/comfyui/images/{tag}.txt")
    lock = sandbox.shell(f"sha256sum < /etc/comfyui/images/{tag}.txt").split()[0]
    assert record["labels"]["dgx-comfyui.requirements.sha256"] == lock
    # The login was for git alone.
    assert record["labels"]["org.opencontainers.image.source"] == "http://upstreams.test/git/older.git"
    assert "hunter22" not in made.output + predicted.output
    assert "hunter22" not in sandbox.shell(
        f"docker image inspect dgx-comfyui:{tag}; docker image history --no-trunc dgx-comfyui:{tag}"
    )
    assert sandbox.shell("stat --format %a /var/lib/comfyui/image").strip() == "700"


def test_the_bases_own_torchaudio_is_used_where_it_has_one(sandbox: Sandbox) -> None:
    said = sandbox.shell(
        f"docker run --rm --network none dgx-comfyui:{sandbox.made()} "
        "python -c 'import torchaudio; print(torchaudio.__version__)'"
    )
    assert said.strip() == "2.6.0+own"


def test_a_version_that_is_not_listed_is_warned_about(sandbox: Sandbox) -> None:
    outcome = sandbox.play("--check", comfyui_versions={})  # the sandbox gives the commit
    assert outcome.status == 0, outcome.output
    assert "ComfyUI 0.28.1 IS NOT KNOWN HERE" in " ".join(outcome.output.split())


def test_an_image_that_no_release_names_goes_with_its_record(sandbox: Sandbox) -> None:
    assert sandbox.made()
    outcome = sandbox.play()
    assert outcome.status == 0, outcome.output
    assert sandbox.images() == sandbox.kept
    assert {name.rpartition(".")[0] for name in sandbox.shell("ls /etc/comfyui/images").split()} <= sandbox.kept


def test_a_source_that_the_lock_was_not_made_for_is_refused(sandbox: Sandbox, older: dict[str, Any]) -> None:
    outcome = sandbox.play(**{**older, "comfyui_version": "0.28.1"})
    assert outcome.status != 0
    assert "The lock does not match this ComfyUI" in outcome.message, outcome.output
    assert re.search(r"asks for comfyui-frontend-package==1\.28\.8, the lock has 1\.45\.21", outcome.message)
    assert f"Expected the lock of the commit {older['comfyui_source_commit']}" in outcome.message
    assert sandbox.images() == sandbox.kept


def test_a_custom_node_that_wants_another_torch_is_refused_by_name(sandbox: Sandbox) -> None:
    node = sandbox.serve("greedy", {"__init__.py": b"", "requirements.txt": b"einops\ntorch>=2.11\n"})
    outcome = sandbox.play(comfyui_custom_nodes=[{"name": "greedy", **node}])
    assert outcome.status != 0
    assert "A requirement asks for another version than the base image or the lock has" in outcome.message, (
        outcome.output
    )
    assert re.search(r"The user requested torch>=2\.11 The user requested \(constraint\) torch==2\.", outcome.message)
    assert "The custom node greedy brought it: take it out of comfyui_custom_nodes" in outcome.message
    assert sandbox.images() == sandbox.kept


def test_a_custom_node_that_fits_is_built_in(sandbox: Sandbox) -> None:
    node = sandbox.serve(
        "modest", {"__init__.py": b"NODE_CLASS_MAPPINGS = {}\n", "requirements.txt": b"humanize\neinops\n"}
    )
    # What a run under the umask 077 leaves there.
    sandbox.shell("chmod --recursive go= /var/lib/comfyui/image/source")
    # A site's own CA is trusted beside the others: with it alone the package index could not be asked.
    sandbox.shell("openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=own -keyout /dev/null -out /run/own.pem 2>&1")
    nodes = [{"name": "modest", **node}]
    index = PyPI.simple_url.replace("://", "://someone:hunter22@")  # it takes any login
    outcome = sandbox.play(
        comfyui_custom_nodes=nodes, comfyui_extra_ca_bundle="/run/own.pem", comfyui_package_index=index
    )
    assert outcome.status == 0, outcome.output
    tag = sandbox.made()
    record = json.loads(sandbox.shell(f"cat /etc/comfyui/images/{tag}.json"))
    assert "humanize" in [entry["name"] for entry in record["contents"]]
    made = f"dgx-comfyui:{tag}"
    locked = "find /opt/comfyui/app /data/custom_nodes ! -readable"
    assert sandbox.shell(f"docker run --rm --network none {made} {locked}") == ""
    traces = "grep -rl -e hunter22 -e 'BEGIN CERT' /root /data /opt/comfyui/*.* || ls /data/custom_nodes/modest"
    assert sandbox.shell(f'docker run --rm --network none --user 0 {made} sh -c "{traces}"').split() == [
        "__init__.py",
        "requirements.txt",
    ]
    assert "hunter22" not in outcome.output
    assert "hunter22" not in sandbox.shell(f"docker image inspect {made}; docker image history --no-trunc {made}")


def test_a_base_without_torch_is_refused(sandbox: Sandbox) -> None:
    base = sandbox.push_base("without-torch", f"RUN rm -r {DIST_PACKAGES}/torch {DIST_PACKAGES}/torch-*")
    outcome = sandbox.play(comfyui_base_image=base)
    assert outcome.status != 0
    assert f"the base image has no torch, expected a PyTorch image; this is {base}" in outcome.message, outcome.output
    assert "Set comfyui_base_image to one" in outcome.message


def test_a_base_with_an_older_torch_than_the_version_needs_is_refused(sandbox: Sandbox) -> None:
    outcome = sandbox.play(comfyui_version="0.33.0", comfyui_source_commit=sandbox.variables["comfyui_source_commit"])
    assert outcome.status != 0
    assert re.search(
        r"ComfyUI 0\.33\.0 does not run on .*: the base has torch 2\.6\.0\S*, expected 2\.7 or newer", outcome.message
    )
    assert "comfyui_version to another version" in outcome.message


def test_a_registry_that_is_down_is_refused(sandbox: Sandbox) -> None:
    # By a digest that the engine does not hold: one that it holds is built on without asking anybody.
    outcome = sandbox.play(comfyui_base_image=f"upstreams.test:5999/standin/pytorch:1@sha256:{'d' * 64}")
    assert outcome.status != 0
    assert "could not be fetched, expected that upstreams.test:5999 answers this host" in outcome.message, (
        outcome.output
    )
    assert "or set comfyui_base_image to a mirror" in outcome.message


def test_a_full_disk_is_named(sandbox: Sandbox) -> None:
    folder = "/var/lib/comfyui/image"
    sandbox.shell(f"mount -t tmpfs -o size=200k,mode=700 tmpfs {folder}")
    try:
        outcome = sandbox.play(comfyui_image_system_packages=[])
    finally:
        sandbox.shell(f"umount {folder}")
    assert outcome.status != 0
    assert f"{folder} could not be written" in outcome.message, outcome.output
    assert f"this shows it: df -h {folder}" in outcome.message


def test_the_gate_notices_a_tampered_file_of_the_base(sandbox: Sandbox) -> None:
    tamper = f"printf x >> {DIST_PACKAGES}/torch/version.py && {' '.join(GATE)} verify /opt/comfyui/torch.json"
    status, said = sandbox.in_image("sh", "-c", tamper, user="0")
    assert status == 1
    assert "torch gate: torch: the base has" in said
    status, said = sandbox.in_image(*GATE, "verify", "/opt/comfyui/torch.json")
    assert (status, said) == (0, "")


def test_the_gate_names_who_brought_another_torch(sandbox: Sandbox) -> None:
    # What pip would leave behind: another torch, and the package that asked for it.
    script = f"""
    site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp -r {DIST_PACKAGES}/torch $site/torch
    for one in torch-2.99.0 asker-1.0; do
      mkdir $site/$one.dist-info
      printf 'Metadata-Version: 2.1\\nName: %s\\nVersion: %s\\n' ${{one%-*}} ${{one#*-}} > $site/$one.dist-info/METADATA
    done
    echo 'Requires-Dist: torch==2.99.0' >> $site/asker-1.0.dist-info/METADATA
    {" ".join(GATE)} verify /opt/comfyui/torch.json"""
    status, said = sandbox.in_image("sh", "-c", script, user="0")
    assert status == 1
    assert "asked for by asker 1.0 (torch==2.99.0)" in said


def test_the_gate_notices_a_wrong_list_of_architectures(sandbox: Sandbox) -> None:
    status, said = sandbox.in_image(*GATE, "covers", "/opt/comfyui/torch.json", "12.1")
    assert status == 1
    assert "this torch has code for no GPU, expected the compute capability 12.1 too" in said
    forge = "import json; s = json.load(open('/opt/comfyui/torch.json')); s['packages']['architectures'] = ['sm_121']; "
    forge += "json.dump(s, open('/tmp/forged.json', 'w'))"
    status, said = sandbox.in_image(
        "sh", "-c", f'python -c "{forge}" && {" ".join(GATE)} verify /tmp/forged.json', user="0"
    )
    assert status == 1
    assert 'architectures: the base has ["sm_121"], found []' in said


def test_a_torch_without_code_for_the_hosts_gpu_is_refused(sandbox: Sandbox) -> None:
    sandbox.shell(
        "printf '#!/bin/sh\\necho NVIDIA GB10, 580.95.05, 12.1\\n' > /usr/local/bin/nvidia-smi && chmod 755 "
        "/usr/local/bin/nvidia-smi"
    )
    before = sandbox.images(), sandbox.shell("ls /etc/comfyui/images")
    try:
        outcome = sandbox.play(comfyui_device="cuda")
        # A comment makes another tag, and every step of it is in the cache.
        (sandbox.scratch / "Dockerfile.j2").write_text((ROOT / "templates/Dockerfile.j2").read_text() + "# another\n")
        built = sandbox.play(comfyui_device="cuda", comfyui_image_template_dir=str(sandbox.scratch))
    finally:
        sandbox.shell("rm /usr/local/bin/nvidia-smi")
    for refused in (outcome, built):
        assert refused.status != 0
        assert (
            "this torch has code for no GPU, expected the compute capability 12.1 too: the GPU of this host"
            in refused.message
        )
    assert (
        "Set comfyui_base_image to a base for it, as the default is (25.09 is the first NGC tag seen to have it)"
        in outcome.message
    )
    assert "Build the image on the base" in built.output
    assert (sandbox.images(), sandbox.shell("ls /etc/comfyui/images")) == before
