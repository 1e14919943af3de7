"""What the host holds after the role has brought models from every source, and what a download that fails leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
STORE = "/srv/comfyui/models"
HUB = "/opt/dgx-comfyui/huggingface_hub"
INVENTORY = ROOT / ".cache" / "sandbox" / os.environ.get("MOLECULE_SCENARIO_NAME", "models")


@pytest.fixture(name="published")
def read_published(site: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = site["comfyui_model_catalogue"]["sd_xl_base_1.0"]
    return entry


def record(host: Any, path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(host.file(f"{path}.verified.json").content_string)
    return content


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (f"{STORE}/checkpoints/sd_xl_base_1.0.safetensors", "http://"),
        (f"{STORE}/checkpoints/by_word.safetensors", "http://"),
        (f"{STORE}/checkpoints/linked.safetensors", "/data/linked.safetensors"),
        (f"{STORE}/loras/in_the_way.safetensors", "http://"),
        ("/srv/from-a-stick/checkpoints/sd_xl_base_1.0.safetensors", "/data/stick/sd_xl_base_1.0.safetensors"),
    ],
)
def test_every_source_gives_the_published_bytes(host: Any, published: dict[str, Any], path: str, source: str) -> None:
    assert host.file(path).sha256sum == published["sha256"]
    found = record(host, path)
    assert found["source"].startswith(source)
    assert found["licence"] == published["licence"]
    assert (found["sha256"], found["inode"]) == (published["sha256"], int(host.check_output("stat -c %%i %s", path)))


def test_what_was_there_is_linked_moved_or_left(host: Any) -> None:
    inodes = host.check_output(f"stat -c %i /data/linked.safetensors {STORE}/checkpoints/linked.safetensors").split()
    assert len(set(inodes)) == 1
    rejected = [name for name in host.file(f"{STORE}/loras").listdir() if ".rejected-" in name]
    assert [name.rpartition("-")[0] for name in rejected] == ["in_the_way.safetensors.rejected"]
    assert host.file(f"{STORE}/loras/mine.safetensors").content_string == "mine\n"
    assert host.file("/data/stick/sd_xl_base_1.0.safetensors").mode == 0o600


def test_the_hub_was_asked_by_the_locked_client(host: Any) -> None:
    lock = (ROOT / "roles/model_store/files/huggingface_hub.txt").read_text()
    version = next(line.split("==")[1].split()[0] for line in lock.splitlines() if line.startswith("huggingface-hub=="))
    assert (
        host.check_output(f"{HUB}/bin/python -c 'import huggingface_hub; print(huggingface_hub.__version__)'")
        == version
    )
    assert host.file(HUB).user == "root"
    assert host.file(HUB).mode == 0o755


def test_nothing_to_do_is_one_question_to_the_host() -> None:
    cost = json.loads((ROOT / "artifacts/models/cost.json").read_text())
    (tasks,) = [found["tasks"] for found in cost["hosts"].values()]
    # The playbook enters the role twice.
    assert [task["name"] for task in tasks] == ["model_store : probe | Read folders, files, records and free space"] * 2


def test_a_download_that_fails_ends_the_run_in_its_own_words_after_the_build(
    host: Any, published: dict[str, Any], site: dict[str, Any], tmp_path: Path
) -> None:
    # Another label is another image, built in seconds from what the engine kept.
    templates = tmp_path / "templates"
    shutil.copytree(ROOT / "templates", templates)
    with (templates / "Dockerfile.j2").open("a") as file:
        file.write("LABEL models=test\n")
    absent = {**published, "commit": "f" * 40, "filename": "absent.safetensors"}
    typed = {
        "comfyui_image_template_dir": str(templates),
        "comfyui_model_catalogue": {**site["comfyui_model_catalogue"], "absent": absent},
        "comfyui_models": ["sd_xl_base_1.0", "absent"],
        "evidence_dir": str(tmp_path / "evidence"),
    }
    (tmp_path / "typed.yml").write_text(yaml.safe_dump(typed))
    images = host.check_output("docker image ls --quiet dgx-comfyui").split()
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "--inventory", INVENTORY, "-e", f"@{tmp_path}/typed.yml",
         "--tags", "model_store,comfyui_image", ROOT / "site.yml"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180, check=False,
        # What the idempotent run cost is still to be read: tests with a host come before those without.
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "TASK_BUDGET_FILE": ""},
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    built = done.stdout.index("TASK [comfyui_image : build | Build the image")
    failed = done.stdout.index("FAILED!")
    assert "changed:" in done.stdout[built:failed]
    assert "TASK [model_store : finish | Wait until every file is proved]" in done.stdout[built:failed]
    assert "HTTP 404, the repository has no such commit: check commit in the catalogue" in done.stdout[failed:]
    assert "(item=" not in done.stdout[failed:]
    assert len(host.check_output("docker image ls --quiet dgx-comfyui").split()) == len(images) + 1
    assert not host.file(f"{STORE}/checkpoints/absent.safetensors").exists
