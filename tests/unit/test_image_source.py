"""What an image is made from: sources that its user can read, no login in any word, and a tag of the inputs alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import playbook_runs

ROOT = playbook_runs.ROOT
ROLE = ROOT / "roles" / "comfyui_image"
LOGIN = "someone:hunter22"
PLAYBOOK = ["ansible-playbook", "--inventory", "localhost,", "--connection", "local"]


def play(folder: Path, *, umask: int = -1, **typed: Any) -> subprocess.CompletedProcess[str]:
    """Fetch the sources as the role does, into a folder of this machine."""
    build = folder / "build"
    build.mkdir(mode=0o700, exist_ok=True)
    (folder / "play.yml").write_text(
        yaml.safe_dump(
            [
                {
                    "hosts": "localhost",
                    "gather_facts": False,
                    "tasks": [{"ansible.builtin.import_role": {"name": "comfyui_image", "tasks_from": "source"}}],
                }
            ]
        )
    )
    variables = {
        "__comfyui_image_probe": {"packages": {"git": {"version": "2"}}, "files": {str(build): {"mode": "0700"}}},
        "comfyui_image_build_dir": str(build),
        "ansible_python_interpreter": sys.executable,
        **typed,
    }
    return subprocess.run(
        [*PLAYBOOK, "play.yml", "--extra-vars", json.dumps(variables)],
        cwd=folder,
        env=playbook_runs.environment(ANSIBLE_STRATEGY="linear"),
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(name="source")
def repository(tmp_path: Path) -> dict[str, str]:
    """A repository of a program and a file in a folder; its address and commit."""
    folder = tmp_path / "upstream"
    (folder / "app").mkdir(parents=True)
    (folder / "app" / "nodes.py").write_text("NODES = []\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.com"]
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    return {"comfyui_image_source_repo": f"file://{folder}", "comfyui_image_source_commit": commit}


def test_modes_are_the_same_whatever_the_umask_and_a_dead_gits_lock_stands_in_nobodys_way(
    tmp_path: Path, source: dict[str, str]
) -> None:
    there = tmp_path / "build" / "source"
    for _ in range(2):  # made, and found with what a killed run left
        done = play(tmp_path, umask=0o027, **source)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Ignoring depth" not in done.stdout + done.stderr
        paths = (there, there / "app", there / "app" / "nodes.py", there / "run.sh")
        assert [oct(path.stat().st_mode & 0o777) for path in paths] == ["0o755", "0o755", "0o644", "0o755"]
        (there / ".git" / "index.lock").write_text("")
        (there / "app").chmod(0o750)


def test_a_fetch_that_fails_shows_no_login(tmp_path: Path) -> None:
    node = {"name": "gone", "repo": f"http://{LOGIN}@127.0.0.1:9/gone.git", "commit": "2" * 40}
    done = play(
        tmp_path,
        comfyui_image_source_repo=f"http://{LOGIN}@127.0.0.1:9/comfyui.git",
        comfyui_image_source_commit="1" * 40,
        comfyui_image_custom_nodes=[node],
    )
    assert done.returncode != 0
    assert "127.0.0.1" in done.stdout
    assert "hunter22" not in done.stdout + done.stderr


def tags(folder: Path, *inputs: dict[str, Any]) -> list[str]:
    """The tags that the role gives to these inputs, in one run."""
    role = [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")]
    base = {"role_path": str(ROLE), "comfyui_image_template_dir": str(ROOT / "templates")}
    show = {"ansible.builtin.debug": {"msg": "tag {{ __comfyui_image_tag }}"}}
    plays = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "vars_files": role,
            "tasks": [{**show, "vars": {**base, "comfyui_image_source_commit": "1" * 40, **one}}],
        }
        for one in inputs
    ]
    (folder / "tags.yml").write_text(yaml.safe_dump(plays, sort_keys=False))
    done = subprocess.run(
        [*PLAYBOOK, "tags.yml"],
        cwd=folder,
        env=playbook_runs.environment(ANSIBLE_STRATEGY="linear"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split()[-1].strip('"') for line in done.stdout.splitlines() if "msg: " in line and "tag " in line]


def test_the_tag_follows_from_the_inputs_and_from_nothing_else(tmp_path: Path) -> None:
    node = {"name": "some-node", "repo": "https://example.com/node.git", "commit": "2" * 40}
    backwards = dict(reversed(node.items()))
    login = {**node, "repo": f"https://{LOGIN}@example.com/node.git"}
    other = {**node, "commit": "3" * 40}
    first, *same, another, without = tags(
        tmp_path,
        {"comfyui_image_custom_nodes": [node]},
        {"comfyui_image_custom_nodes": [backwards]},
        {"comfyui_image_custom_nodes": [login]},
        {"comfyui_image_custom_nodes": [node], "ansible_managed": "made on another control node"},
        {"comfyui_image_custom_nodes": [other]},
        {},
    )
    assert same == [first] * 3
    assert len({first, another, without}) == 3
