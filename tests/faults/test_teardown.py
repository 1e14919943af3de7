"""The removal of the service against folders that are shared, and against an engine that does not answer."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from playbook_runs import ROOT, environment, last_words

PLAY = """\
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.import_role:
        name: "{{ role }}"
        tasks_from: absent
"""
# A program that answers nothing, with a status; systemctl knows no unit, and there is no account.
PROGRAMS = {"docker": 0, "systemctl": 0, "getent": 2}


class Host:
    """The machine of the test, with folders of its own in place of the service's and programs that answer as told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, status in PROGRAMS.items():
            self.program(name, status)
        (folder / "play.yml").write_text(PLAY)
        for name in ("data/cache", "data/models", "data/user", "backups", "etc"):
            (folder / name).mkdir(parents=True)

    def program(self, name: str, status: int, words: str = "") -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit {status}\n")
        path.chmod(0o755)

    def remove(self, role: str = "comfyui_service", *, data: bool = False) -> subprocess.CompletedProcess[str]:
        variables = {
            "ansible_python_interpreter": sys.executable,
            "role": role,
            "comfyui_service_data_dir": f"{self.folder}/data",
            "comfyui_service_backup_dir": f"{self.folder}/backups",
            "comfyui_service_remove_data": data,
            "__comfyui_service_remains": [f"{self.folder}/etc", f"{self.folder}/data/cache"],
            "comfyui_image_build_dir": f"{self.folder}/etc/build",
        }
        command = ["ansible-playbook", "--inventory", "localhost,", "--connection", "local"]
        command += [str(self.folder / "play.yml"), "--extra-vars", json.dumps(variables)]
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        settings = environment(ANSIBLE_STRATEGY="linear")
        return subprocess.run(
            command, cwd=ROOT, env=settings | {"PATH": path}, capture_output=True, text=True, check=False
        )

    @property
    def left(self) -> set[str]:
        """The files below the folders, and the folders that hold none."""
        return {
            str(path.relative_to(self.folder))
            for name in ("data", "backups", "etc")
            for path in self.folder.glob(f"{name}/**/*")
            if path.is_file() or not any(path.iterdir())
        }


@pytest.fixture(name="host")
def make_host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_what_others_keep_in_the_same_folders_stays(host: Host) -> None:
    own = f"user-{platform.node()}-20260101T000000Z-aaaaaaaaaaaa.tar.gz"
    strangers = {
        "data/theirs",
        "backups/mine",
        f"backups/user-{platform.node()}-2-20260101T000000Z-aaaaaaaaaaaa.tar.gz",
        "backups/user-another-20260101T000000Z-aaaaaaaaaaaa.tar.gz",
    }
    for name in (*strangers, "data/models/model", f"backups/{own}", f"backups/.user-{platform.node()}-new"):
        (host.folder / name).touch()
    kept = host.left - {"etc", "data/cache"}
    done = host.remove()
    assert done.returncode == 0, done.stdout
    assert host.left == kept
    done = host.remove(data=True)
    assert done.returncode == 0, done.stdout
    assert host.left == strangers
    for name in strangers:
        (host.folder / name).unlink()
    assert host.remove(data=True).returncode == 0
    assert not (host.folder / "data").exists()
    assert not (host.folder / "backups").exists()


@pytest.mark.parametrize("role", ["comfyui_service", "comfyui_image"])
def test_an_engine_that_does_not_answer_is_refused_before_anything_is_removed(host: Host, role: str) -> None:
    host.program("docker", 1, "Cannot connect to the Docker daemon")
    before = host.left
    done = host.remove(role)
    assert done.returncode == 2, done.stdout
    assert "Docker does not answer: Cannot connect to the Docker daemon" in last_words(done.stdout)
    assert host.left == before


@pytest.mark.parametrize(("shell", "ends"), [("/bin/bash", False), ("/usr/sbin/nologin", True)])
def test_an_account_that_is_somebodys_login_stays(host: Host, shell: str, ends: bool) -> None:
    (host.folder / "bin" / "getent").write_text(f"#!/bin/sh\necho 'comfyui:x:1001:1001::/home/comfyui:{shell}'\n")
    done = host.remove(data=True)
    assert done.returncode == 0, done.stdout
    assert "Remove the account]" in done.stdout
    task = done.stdout.partition("Remove the account]")[2].partition("PLAY RECAP")[0]
    assert ("skipping: " not in task) is ends, done.stdout
