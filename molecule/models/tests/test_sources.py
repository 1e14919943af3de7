"""What the host holds after the role has brought models from every source, and what a download that fails leaves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from playbook_runs import ROOT, environment

STORE = "/srv/comfyui/models"
TOKEN = "hf_only_for_this_test"  # noqa: S105  opens nothing
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
        (f"{STORE}/loras/by_proxy.safetensors", "https://127.0.0.1:8443/"),
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
    # The playbook enters the role three times.
    assert [task["name"] for task in tasks] == ["model_store : probe | Read folders, files, records and free space"] * 3


@contextlib.contextmanager
def all_command_lines() -> Iterator[set[str]]:
    """Those of every process of this machine meanwhile; a sandbox's are among them."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(path.read_text(errors="replace").replace("\0", " "))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


def play(tags: str, typed: dict[str, Any], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The site's own playbook with these variables; what fails is kept in the folder as evidence."""
    path = folder / "typed.yml"
    path.write_text(yaml.safe_dump({**typed, "evidence_dir": str(folder / "evidence")}))
    return subprocess.run(
        ["ansible-playbook", "--inventory", INVENTORY, "-e", f"@{path}", "--tags", tags, ROOT / "site.yml"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180, check=False,
        # What the idempotent run cost is still to be read: tests with a host come before those without.
        env=environment(TASK_BUDGET_FILE="", **more),
    )  # fmt: skip


# As the suite runs, which is with Mitogen, and as Ansible itself brings a module to a host.
HOW: dict[str, dict[str, str]] = {"suite": {}, "plain": {"ANSIBLE_STRATEGY": "linear"}}


@pytest.mark.parametrize("how", HOW)
def test_a_token_is_in_no_log_and_on_no_command_line(
    host: Any, published: dict[str, Any], site: dict[str, Any], tmp_path: Path, how: str
) -> None:
    fresh = {**published, "filename": f"{how}.safetensors"}
    absent = {**published, "commit": "f" * 40, "filename": "absent.safetensors"}
    typed = {
        "comfyui_model_catalogue": {**site["comfyui_model_catalogue"], "fresh": fresh, "absent": absent},
        "comfyui_models": ["sd_xl_base_1.0", "fresh", "absent"],
        "comfyui_model_token": TOKEN,
    }
    with all_command_lines() as lines:
        done = play("model_store", typed, tmp_path, ANSIBLE_VERBOSITY="3", **HOW[how])
    assert done.returncode != 0, done.stdout
    assert "HTTP 404, the repository has no such commit" in " ".join(done.stdout.split())
    assert host.file(f"{STORE}/checkpoints/{how}.safetensors").sha256sum == published["sha256"]
    assert "module_args" in done.stdout
    assert TOKEN not in done.stdout
    assert any(f"{HUB}/answer.py" in line for line in lines)
    assert not any(TOKEN in line for line in lines)
    evidence = [path for path in (tmp_path / "evidence").rglob("*") if path.is_file()]
    assert evidence
    for path in evidence:
        assert TOKEN.encode() not in path.read_bytes(), path
    # Written so that this very search is not what it finds.
    pattern = f"[{TOKEN[0]}]{TOKEN[1:]}"
    kept = "/root /tmp /var/tmp /var/log /run /opt/dgx-comfyui /srv/comfyui /etc"
    search = f"grep -rl {pattern} {kept} 2>/dev/null"
    # Without Mitogen, Ansible looks every 5 s whether a job has ended, and removes then what started it: the search
    # may come upon it, and it goes on where a file went from under it, which grep's status would call an end.
    host.run(f"""timeout 20 sh -c 'while [ -n "$({search})" ]; do sleep 1; done'""")
    assert host.run(search).stdout == ""
    assert host.run(f"journalctl --no-pager --output=cat | grep {pattern}").stdout == ""


def test_an_audit_finds_what_the_record_hides(
    host: Any, published: dict[str, Any], site: dict[str, Any], tmp_path: Path
) -> None:
    path = f"{STORE}/checkpoints/sd_xl_base_1.0.safetensors"
    before = record(host, path)
    host.check_output(
        f"printf x | dd of={path} bs=1 seek=5000000 conv=notrunc status=none && touch --date=@%s {path}",
        f"{before['mtime_ns'] // 10**9}.{before['mtime_ns'] % 10**9:09}",
    )
    wrong = host.file(path).sha256sum
    assert wrong != published["sha256"]
    typed = {"comfyui_model_catalogue": site["comfyui_model_catalogue"], "model_store_audit": True}
    done = play("model_store", typed, tmp_path)
    assert done.returncode == 0, done.stdout
    assert f"It was moved to {path}.rejected-{wrong[:12]}" in " ".join(done.stdout.split())
    assert host.file(path).sha256sum == published["sha256"]
    assert host.file(f"{path}.rejected-{wrong[:12]}").sha256sum == wrong


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
    }
    images = host.check_output("docker image ls --quiet dgx-comfyui").split()
    done = play("model_store,comfyui_image", typed, tmp_path)
    assert done.returncode != 0, done.stdout
    built = done.stdout.index("TASK [comfyui_image : build | Build the image")
    failed = done.stdout.index("FAILED!")
    # Before the build it was begun, and not waited for: its failure is heard of behind the build.
    assert "TASK [model_store : fetch | Begin fetching and proving what no record speaks for]" in done.stdout[:built]
    assert "changed:" in done.stdout[built:failed]
    assert "TASK [model_store : finish | Wait until every file is proved]" in done.stdout[built:failed]
    assert "HTTP 404, the repository has no such commit: check commit in the catalogue" in done.stdout[failed:]
    assert "(item=" not in done.stdout[failed:]
    assert len(host.check_output("docker image ls --quiet dgx-comfyui").split()) == len(images) + 1
    assert not host.file(f"{STORE}/checkpoints/absent.safetensors").exists
