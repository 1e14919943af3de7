"""The verdict on a deployment: verified as it is, broken by exactly the tests that a fault concerns, or unknown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
SUITE = ROOT / "tests" / "testinfra"
# What a fault here may concern. The tests of engine, toolkit and image are left out for their time.
FILES = [
    "test_api.py",
    "test_comfyui_service.py::test_the_unit_runs_and_starts_at_boot",
    "test_deployment.py",
    "test_generation.py",
    "test_gpu.py",
    "test_models.py",
    "test_render.py",
    "test_workflows.py",
]
DATA = "/srv/comfyui"
BLANK = "from PIL import Image; Image.new('RGB', (512, 512), 'white').save('/tmp/blank.png')"

# Each fault, as a command on the host, and the tests that it makes fail.
FAULTS: dict[str, tuple[str, set[str]]] = {
    "wrong owner": (
        f"chown 990:990 {DATA}/workflows/txt2img_sdxl.json",
        {"test_file_belongs_to_whom_it_should[txt2img_sdxl.json]"},
    ),
    "missing template": (
        f"rm {DATA}/workflows/img2img_sdxl.json",
        {
            "test_file_is_deployed_as_repository_and_settings_say[img2img_sdxl.json]",
            "test_criterion_04_template_suits_the_server_and_is_accepted_without_node_errors[img2img_sdxl]",
        },
    ),
    "edited checkpoint name": (
        f"sed -i s/sd_xl_base_1.0.safetensors/other.safetensors/ {DATA}/workflows/batch_generation.json",
        {
            "test_file_is_deployed_as_repository_and_settings_say[batch_generation.json]",
            "test_criterion_04_template_suits_the_server_and_is_accepted_without_node_errors[batch_generation]",
        },
    ),
    "blank image": (
        f'docker exec comfyui python -c "{BLANK}" && docker exec comfyui cat /tmp/blank.png > /tmp/blank.png'
        f" && cat /tmp/blank.png > {DATA}/input/dgx_pixels_sample.png",
        {
            "test_file_is_deployed_as_repository_and_settings_say[input/dgx_pixels_sample.png]",
            "test_the_sample_picture_comes_back_scaled_and_not_blank",
        },
    ),
}
# What needs the server; the rest of a host is as it was when the service is stopped.
SERVED = {"test_api.py", "test_render.py", "test_gpu.py"}
SERVED_ELSEWHERE = {
    "test_the_unit_runs_and_starts_at_boot",
    "test_criterion_06_the_image_has_comfyuis_dependencies",
    "test_the_server_says_what_it_runs_on",
}
HELD_BY_THE_JOURNAL = "test_criterion_01_comfyui_starts_within_its_limit"
# On a host without a GPU these cannot pass; the others of their levels can, on the stand-in.
ONLY_ON_A_GPU = {
    "test_criterion_05_comfyui_computes_on_the_gpu",
    "test_criterion_05_nvidia_smi_shows_usage",
    "test_criterion_08_the_gpu_is_used_by_half_at_least",
    "test_cuda_computes_in_the_running_container_with_code_for_this_gpu",
    "test_weights_run_in_fp16_as_the_server_reports",
}

Suite = Callable[..., dict[str, Any]]


@pytest.fixture
def suite(pytestconfig: pytest.Config, evidence: Path, tmp_path: Path) -> Suite:
    """Run the suite against the host under test; its verify.json comes back, with pytest's status as `status`."""

    def run(files: list[str], **environment: str) -> dict[str, Any]:
        shutil.copy(evidence / "site.json", tmp_path)
        options = [f"--hosts={pytestconfig.getoption('hosts')}", "--import-mode=importlib", "-pverdict"]
        options += [f"--ansible-inventory={pytestconfig.getoption('ansible_inventory')}", "-psite_fixtures"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-pno:cacheprovider", *options, *[f"{SUITE}/{name}" for name in files]],
            env={**os.environ, **environment, "EVIDENCE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        document: dict[str, Any] = json.loads((tmp_path / "verify.json").read_text())
        print(done.stdout)
        return {**document, "status": done.returncode}

    return run


def names(document: dict[str, Any], outcome: str) -> set[str]:
    return {test["name"] for test in document["tests"] if test["outcome"] == outcome}


def test_the_deployment_is_verified_and_what_needs_a_gpu_is_named(suite: Suite) -> None:
    document = suite(FILES)
    assert (document["status"], document["verdict"], names(document, "failed")) == (0, "verified", set())
    assert [level["outcome"] for level in document["levels"]] == ["passed", "passed", "passed", "partly", "skipped"]
    assert set(document["skipped"]) == {"no GPU"}
    assert document["skipped"]["no GPU"] == len(names(document, "skipped"))
    unmet = {criterion["number"] for criterion in document["criteria"] if criterion["outcome"] == "skipped"}
    assert unmet == {3, 5, 7, 8, 9, 11}
    facts = document["facts"]
    assert set(facts) == {"Host", "Image", "Models, SHA-256", "Server", "Workflows, SHA-256"}
    assert set(facts["Workflows, SHA-256"]) == {
        *(f"workflows/{path.name}" for path in (ROOT / "workflows").glob("*.json")),
        *(f"user/default/workflows/{path.name}" for path in (ROOT / "workflows/ui").glob("*.json")),
        "input/dgx_pixels_sample.png",
    }
    assert {"system", "kernel", "Docker", "Container Toolkit"} <= set(facts["Host"])
    assert {"digest", "base", "ComfyUI", "commit", "requirements, SHA-256", "release"} <= set(facts["Image"])


def test_faults_make_exactly_their_tests_fail(host: Any, suite: Suite) -> None:
    host.check_output(f"cp --archive {DATA}/workflows {DATA}/input /root/")
    try:
        for command, _ in FAULTS.values():
            host.check_output(command)
        document = suite(FILES)
    finally:
        host.check_output(f"cp --archive /root/workflows /root/input {DATA}/")
    assert names(document, "failed") == set().union(*(tests for _, tests in FAULTS.values()))
    assert (document["status"], document["verdict"]) == (1, "broken")
    reasons = " ".join(test["reason"] for test in document["tests"])
    assert "img2img_sdxl.json is not there" in reasons
    assert "ckpt_name: 'other.safetensors' is not one of: sd_xl_base_1.0.safetensors" in reasons
    assert "is blank: every pixel has the same colour" in reasons


def test_a_stopped_service_is_broken_and_everything_else_still_holds(host: Any, suite: Suite) -> None:
    host.check_output("systemctl stop comfyui")
    try:
        document = suite(FILES)
    finally:
        host.check_output("systemctl start comfyui")
        host.check_output("timeout 60 sh -c 'until curl -sf http://127.0.0.1:8188/queue; do sleep 0.2; done'")
    served = {test["name"] for test in document["tests"] if test["file"] in SERVED and test["outcome"] != "skipped"}
    assert names(document, "failed") == (served | SERVED_ELSEWHERE) - {HELD_BY_THE_JOURNAL}
    assert (document["status"], document["verdict"]) == (1, "broken")


def test_what_needs_a_gpu_runs_and_only_the_gpu_is_missing(suite: Suite) -> None:
    document = suite(["test_generation.py", "test_gpu.py"], VERIFY_PRETEND_GPU="1")
    assert names(document, "failed") == ONLY_ON_A_GPU
    assert document["skipped"] == {}
    assert {image["file"] for image in document["images"]} >= {"txt2img_sdxl_1.png", "batch_generation_4.png"}


@pytest.mark.parametrize("case", ["a fault", "no tests", "out of reach"])
def test_the_playbooks_exit_status_tells_broken_from_unknown(
    host: Any, pytestconfig: pytest.Config, tmp_path: Path, case: str
) -> None:
    status, verdict = (2, "broken") if case == "a fault" else (4, "could not tell")
    tests = "/nonexistent" if case == "no tests" else str(SUITE / "test_workflows.py")
    inventory = Path(pytestconfig.getoption("ansible_inventory"))
    hosts = yaml.safe_load((inventory / "hosts.yml").read_text())
    (variables,) = hosts["dgx"]["hosts"].values()
    if case == "out of reach":
        variables["ansible_host"] += "-that-is-not-there"
    # Another name, so that the evidence of this run stays.
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"dgx": {"hosts": {"judged": variables}}}))
    (tmp_path / "group_vars").symlink_to(ROOT / "inventory/group_vars")
    folder = ROOT / "artifacts" / "judged"
    host.check_output(f"chmod 0600 {DATA}/workflows/txt2img_sdxl.json")
    try:
        done = subprocess.run(
            ["ansible-playbook", "--inventory", str(tmp_path), "playbooks/verify.yml"],
            cwd=ROOT,
            env={**os.environ, "VERIFY_TESTS": tests},
            capture_output=True,
            text=True,
            check=False,
        )
        document = json.loads((folder / "verify.json").read_text())
        assert (done.returncode, document["verdict"]) == (status, verdict), done.stdout
        assert f"judged: {verdict}" in (folder / "verify.html").read_text()
        assert (folder / "verify.xml").exists() == (case != "out of reach")
    finally:
        host.check_output(f"chmod 0644 {DATA}/workflows/txt2img_sdxl.json")
        shutil.rmtree(folder, ignore_errors=True)
