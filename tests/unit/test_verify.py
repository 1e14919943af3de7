"""playbooks/verify.yml on the control node: what it writes down of a site, and how it ends where it cannot know."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from playbook_runs import ROOT, environment

(JUDGE,) = yaml.safe_load((ROOT / "playbooks/tasks/verify.yml").read_text())


def run(folder: Path, playbook: Path, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run a playbook with this machine as the host `judged-here`, and these site variables."""
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **variables}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"dgx": {"hosts": {"judged-here": host}}}))
    if not (folder / "group_vars").exists():
        (folder / "group_vars").symlink_to(ROOT / "inventory/group_vars")
    command = [sys.executable, "-m", "ansible", "playbook", "--inventory", str(folder / "hosts.yml"), str(playbook)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def test_no_login_of_an_address_is_written_down(tmp_path: Path) -> None:
    write = next(task for one in JUDGE["block"] for task in one.get("block", [one]) if "ansible.builtin.copy" in task)
    play = {
        "hosts": "dgx",
        "gather_facts": False,
        "vars": {
            **JUDGE["vars"],
            "evidence_dir": str(tmp_path),
            "preflight_found_device": "cpu",
            "preflight_found_gpus": "none",
            "preflight_found_machine": {},
            "site": JUDGE["vars"]["site"].replace("playbook_dir ~ '/..", f"'{ROOT}"),
        },
        "tasks": [write],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    with_login = "https://me:pw-1@git.example.com/a.git"
    done = run(
        tmp_path,
        tmp_path / "play.yml",
        comfyui_source_repo=with_login,
        comfyui_custom_nodes=[{"repo": with_login.replace("pw-1", "pw@2"), "commit": "a" * 40}],
        comfyui_docker_repository=with_login,
        comfyui_toolkit_key_url=with_login,
        comfyui_model_token="pw-3",  # noqa: S106
        comfyui_base_image="registry.example.com/base:1@sha256:" + "b" * 64,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "site.json").read_text()
    assert "pw" not in text
    site = json.loads(text)
    assert site["comfyui_source_repo"] == site["comfyui_custom_nodes"][0]["repo"] == "https://git.example.com/a.git"
    assert "/base:1@sha256:" in site["comfyui_base_image"]


def test_a_site_that_cannot_be_read_is_not_called_broken(tmp_path: Path) -> None:
    folder = ROOT / "artifacts" / "judged-here"
    try:
        done = run(tmp_path, ROOT / "playbooks/verify.yml", comfyui_version="{{ no_such_variable }}")
        document = json.loads((folder / "verify.json").read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert (done.returncode, document["verdict"]) == (4, "could not tell"), done.stdout


def test_a_vault_that_cannot_be_opened_leaves_a_host_unjudged(tmp_path: Path) -> None:
    name, word = "hosts.yml", tmp_path / "word"
    word.write_text("of another vault\n")
    command = ["ansible-vault", "encrypt_string", "--vault-password-file", str(word), "secret"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    sealed = "\n".join(line.strip() for line in done.stdout.splitlines()[1:])
    host = f"ansible_host: 127.0.0.1\n      ansible_port: 1\n      ansible_password: !vault |\n{indented(sealed)}"
    (tmp_path / name).write_text(f"dgx:\n  hosts:\n    judged-here:\n      {host}\n")
    (tmp_path / "group_vars").symlink_to(ROOT / "inventory/group_vars")
    play = ["ansible-playbook", "--inventory", str(tmp_path / name), str(ROOT / "playbooks/verify.yml")]
    try:
        done = subprocess.run(play, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(ROOT / "artifacts" / "judged-here", ignore_errors=True)
    assert done.returncode == 4, done.stdout + done.stderr


def indented(text: str) -> str:
    return "\n".join(f"        {line}" for line in text.splitlines())
