"""What pack.yml refuses before it fetches anything, and that no login comes into the folder."""

from __future__ import annotations

import base64
import functools
import json
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from playbook_runs import ROOT, environment, last_words

PACK = ROOT / "playbooks" / "pack.yml"


def run(playbook: Path, **typed: Any) -> subprocess.CompletedProcess[str]:
    command = ["ansible-playbook", str(playbook), "--extra-vars", json.dumps(typed)]
    settings = environment(ANSIBLE_STRATEGY="linear")
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)


MISTAKES = [
    (
        {"pack_architecture": "arm64", "comfyui_version": "9.9", "comfyui_base_image": "nvcr.io/x/y:1"},
        [
            "pack_architecture is arm64, expected aarch64 or x86_64, as uname -m says on the host. Type it: "
            "-e pack_architecture=aarch64",
            "ComfyUI 9.9 has no lock of its requirements; expected one of 0.3.68, ",
            'The base image is "nvcr.io/x/y:1", expected NAME:TAG@sha256:',
        ],
    ),
    ({"comfyui_modls": []}, ["Unknown variable comfyui_modls: did you mean comfyui_models?"]),
]


@pytest.mark.parametrize(("typed", "words"), MISTAKES)
def test_what_cannot_be_packed_is_refused_before_anything_comes(
    tmp_path: Path, typed: dict[str, Any], words: list[str]
) -> None:
    done = run(PACK, pack_dir=f"{tmp_path}/packed", **typed)
    said = last_words(done.stdout)
    assert [one for one in words if one not in said] == [], done.stdout + done.stderr
    assert "changed=0" in done.stdout
    assert not (tmp_path / "packed").exists()


class Repository(SimpleHTTPRequestHandler):
    """Hands out the files of a folder to who logs in."""

    login = f"Basic {base64.b64encode(b'someone:hunter22').decode()}"

    def do_GET(self) -> None:
        if self.headers.get("Authorization") == self.login:
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_the_login_of_the_source_comes_into_no_file(tmp_path: Path) -> None:
    upstream = tmp_path / "upstream"
    git = ["git", "-C", str(upstream), "-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", "init", "--quiet", str(upstream)], check=True)
    for arguments in (["commit", "--quiet", "--allow-empty", "--message", "all"], ["update-server-info"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (play,) = yaml.safe_load(PACK.read_text())
    play["tasks"] = [task for task in play["tasks"] if "ansible.builtin.git" in task]
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play | {"hosts": "localhost"}], sort_keys=False))
    handler = functools.partial(Repository, directory=str(upstream / ".git"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        done = run(
            tmp_path / "play.yml",
            pack_dir=str(tmp_path / "packed"),
            ansible_playbook_python=sys.executable,
            comfyui_source_repo=f"http://someone:hunter22@127.0.0.1:{server.server_address[1]}/",
            comfyui_source_commit=commit,
        )
        server.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    there = tmp_path / "packed" / "comfyui.git"
    subprocess.run(["git", "-C", str(there), "cat-file", "-e", commit], check=True)
    kept = [Path(top, name).read_bytes() for top, _, names in os.walk(there) for name in names]
    assert not [data for data in kept if b"hunter22" in data]
