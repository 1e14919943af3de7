"""Failure evidence: what is masked, what is told, and that a failure stays one, in real runs of ansible-playbook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from action import keep_evidence
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
EVIDENCE = yaml.safe_load((ROOT / "playbooks/tasks/evidence.yml").read_text())[0]["keep_evidence"]
SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=6, max_size=40)
NAMES = st.sampled_from(
    ["HF_TOKEN", "DB_PASSWORD", "apiKey", "aws_secret_access_key", "token", "MY_SECRET_2", "_authToken"]
)


@given(name=NAMES, secret=SECRETS, more=st.sampled_from(["", " two words"]))
def test_no_secret_of_an_environment_survives(name: str, secret: str, more: str) -> None:
    text = json.dumps([{"Env": [f"{name}={secret}{more}", "PATH=/usr/bin"]}], indent=4)
    masked = json.loads(keep_evidence.mask(text))
    assert masked == [{"Env": [f"{name}={keep_evidence.MASK}", "PATH=/usr/bin"]}]


@given(name=NAMES, secret=SECRETS)
def test_no_secret_of_a_json_key_survives(name: str, secret: str) -> None:
    masked = json.loads(keep_evidence.mask(json.dumps({"keep": "1", name: secret})))
    assert masked == {"keep": "1", name: keep_evidence.MASK}


@given(secret=SECRETS, before=st.text(), after=st.text())
def test_no_value_of_a_secret_variable_survives(secret: str, before: str, after: str) -> None:
    masked = keep_evidence.mask(before + secret + after, {secret})
    assert secret not in masked.replace(keep_evidence.MASK, "")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("HTTP Proxy: http://me:word@proxy.example.com:3128/", "HTTP Proxy: http://********@proxy.example.com:3128/"),
        ("git+https://ghp@example.com/a.git", "git+https://********@example.com/a.git"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ********"),
        ('"Authorization": "Basic bWU6d29yZA=="', '"Authorization": "Basic ********"'),
        ("GET https://cdn.example.com/x?Policy=abc&Signature=d~e&n=1", "GET https://cdn.example.com/x?Policy=********&Signature=********&n=1"),
        ("curl -H 'X: Bearer abc'", "curl -H 'X: Bearer ********"),
        ("HF_TOKEN=abc other", "HF_TOKEN=******** other"),
        ("error: hf_abcdefghijklmnopqrst is not valid", "error: ******** is not valid"),
    ],
)  # fmt: skip
def test_secrets_of_logs_are_masked(text: str, masked: str) -> None:
    assert keep_evidence.mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "tokenizers==0.22.1",
        "pull dgx-comfyui:0.28.1-5009a9fd067f@sha256:31e35c80",
        "ssh me@host.example.com",
        "unix:///var/run/docker.sock",
        "unauthorized: incorrect username or password",
        '"CapDrop": ["ALL"], "Privileged": false',
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert keep_evidence.mask(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ('"say \\"hi\\""', '"********"'),
        ("https://example.com/a%2Fb%40c", "https://example.com/********"),
        ("a/b@c and a/b@c-longer", "******** and ********"),
    ],
)
def test_a_secret_is_masked_in_every_spelling(text: str, masked: str) -> None:
    assert keep_evidence.mask(text, {'say "hi"', "a/b@c", "a/b@c-longer"}) == masked


def test_secrets_come_from_the_names_of_variables_and_from_logins() -> None:
    variables = {
        "comfyui_model_token": "hub-word",
        "ansible_become_password": "abc",
        "comfyui_proxy": "http://me:proxy-word@proxy.example.com",
        "comfyui_port": "8188",
    }
    assert keep_evidence.secrets_of(variables) == {"hub-word", "proxy-word"}


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ({"msg": "no disk"}, "no disk"),
        ({"msg": "non-zero return code", "stderr": "E: lock\n", "stdout": "x"}, "non-zero return code\nE: lock"),
        ({"msg": "failed: E: lock", "stderr": "E: lock"}, "failed: E: lock"),
        ({"msg": "MODULE FAILURE", "module_stderr": "Traceback"}, "MODULE FAILURE\nTraceback"),
        ({"msg": ["one", "two"]}, '["one", "two"]'),
        ({"censored": "hidden"}, "hidden"),
        ({}, "The task failed without a word."),
        (
            {
                "msg": "One or more items failed",
                "results": [
                    {"item": "a", "failed": False, "msg": "fine"},
                    {"item": "b", "failed": True, "msg": "no such package", "ansible_loop_var": "item"},
                    {"x": {"k": 1}, "failed": True, "msg": "nor this", "ansible_loop_var": "x"},
                ],
            },
            'b: no such package\n{"k": 1}: nor this',
        ),
    ],
)  # fmt: skip
def test_the_words_of_a_failure(failure: dict[str, Any], said: str) -> None:
    assert keep_evidence.words(failure) == said


def test_a_long_output_keeps_its_end() -> None:
    lines = keep_evidence.words({"msg": "built", "stderr": "\n".join(f"line {n}" for n in range(500))}).splitlines()
    assert lines[:2] == ["built", "..."]
    assert lines[-1] == "line 499"
    assert len(lines) == 2 + keep_evidence.OUTPUT_LINES


def test_a_command_is_kept_with_what_was_typed_and_its_status() -> None:
    answer = {"rc": 127, "stdout": "", "stderr": "No such file or directory: 'docker'"}
    text = keep_evidence.command_text(["docker", "info"], answer)
    assert text == "$ docker info\nNo such file or directory: 'docker'\nexit status 127\n"


def test_an_earlier_failure_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "failure"
    keep_evidence.write(folder, {keep_evidence.SUMMARY: "1", "old.txt": ""})
    keep_evidence.write(folder, {keep_evidence.SUMMARY: "2", "files/etc/new": ""})
    assert (folder / keep_evidence.SUMMARY).read_text() == "2"
    assert not (folder / "old.txt").exists()
    assert (folder / "files/etc/new").exists()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OSError, match="was not made by an earlier failure"):
        keep_evidence.write(tmp_path, {keep_evidence.SUMMARY: ""})
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_the_list_names_what_the_roles_write() -> None:
    service = yaml.safe_load((ROOT / "roles/comfyui_service/vars/main.yml").read_text())
    image = yaml.safe_load((ROOT / "roles/comfyui_image/defaults/main.yml").read_text())
    toolkit = yaml.safe_load((ROOT / "roles/nvidia_container_toolkit/vars/main.yml").read_text())
    written = {
        "/etc/systemd/system/comfyui.service",
        f"{service['__comfyui_service_lib_dir']}/comfyui_guard.py",
        f"{service['__comfyui_service_etc_dir']}/current",
        f"{service['__comfyui_service_etc_dir']}/state.json",
        f"{image['comfyui_image_build_dir']}/Dockerfile",
        toolkit["__nvidia_container_toolkit_cdi_path"],
        toolkit["__nvidia_container_toolkit_sources"],
    }
    assert written <= set(EVIDENCE["contents"])
    assert {
        "df",
        "docker-info",
        "docker-inspect",
        "docker-version",
        "journal-comfyui",
        "journal-container",
        "journal-docker",
        "journal-nvidia-cdi-refresh",
        "nvidia-smi",
    } <= set(EVIDENCE["commands"])
    assert f"{service['__comfyui_service_etc_dir']}/releases" in EVIDENCE["commands"]["releases"]


def play(
    folder: Path, tasks: list[dict[str, Any]], hosts: dict[str, dict[str, Any]]
) -> subprocess.CompletedProcess[str]:
    """Run tasks as site.yml runs its own: in a block with its last task and its rescue."""
    site = yaml.safe_load((ROOT / "playbooks/tasks/provision.yml").read_text())[-1]
    (rescue,) = site["rescue"]
    rescue["ansible.builtin.import_tasks"] = str(ROOT / "playbooks/tasks" / rescue["ansible.builtin.import_tasks"])
    rescue["vars"]["evidence_dir"] = "{{ playbook_dir }}/artifacts/{{ inventory_hostname }}"
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = {"all": {"hosts": {name: {**local, **variables} for name, variables in hosts.items()}}}
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [{"block": [*tasks, site["block"][-1]], "rescue": [rescue]}],
        "handlers": [{"name": "broken", "ansible.builtin.command": "ls /nowhere", "changed_when": False}],
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
    (folder / "play.yml").write_text(yaml.safe_dump([play]))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-v", "-i", "hosts.yml", "play.yml", "--tags", "part"],
        cwd=folder,
        env={**clean, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )


def last_words(output: str) -> list[str]:
    """The lines of the play before the recap."""
    return [line.strip() for line in output.partition("PLAY RECAP")[0].splitlines() if line.strip()]


def test_each_host_that_fails_keeps_its_own_and_the_run_fails(tmp_path: Path) -> None:
    release = Path("/etc/os-release").read_text()
    system = next(line.partition("=")[2].strip('"') for line in release.splitlines() if line.startswith("PRETTY_NAME="))
    done = play(
        tmp_path,
        [
            {"ansible.builtin.fail": {"msg": "{{ reason }} {{ site_token }}"}, "when": "reason != ''", "tags": "part"},
            {"ansible.builtin.command": "echo went on", "tags": "part"},
        ],
        {
            "a": {"reason": "no disk", "site_token": "{{ 'hub-' ~ 'word' }}", "other_token": system},
            "b": {"reason": "no memory", "site_token": "other-word", "other_token": "{{ undefined_here }}"},
            "c": {"reason": ""},
        },
    )
    assert done.returncode == 2, done.stdout + done.stderr
    folders = {name: tmp_path / "artifacts" / name / "failure" for name in ("a", "b", "c")}
    assert "no disk ********" in (folders["a"] / "failure.txt").read_text()
    assert "no memory ********" in (folders["b"] / "failure.txt").read_text()
    assert not folders["c"].exists()
    assert (folders["b"] / "files/etc/os-release").read_text() == release
    assert (folders["a"] / "files/etc/os-release").read_text() == release.replace(system, keep_evidence.MASK)
    kept = {path.name for path in folders["a"].iterdir()}
    assert {f"{name}.txt" for name in EVIDENCE["commands"]} <= kept
    assert last_words(done.stdout)[-2:] in [
        ["no disk ********", "Evidence: artifacts/a/failure/"],
        ["no memory ********", "Evidence: artifacts/b/failure/"],
    ]
    assert "hub-word" not in "".join(path.read_text() for path in folders["a"].rglob("*") if path.is_file())


def test_a_handler_that_fails_is_a_failure_like_another(tmp_path: Path) -> None:
    done = play(
        tmp_path,
        [{"ansible.builtin.command": "true", "notify": "broken", "tags": "part"}],
        {"a": {}},
    )
    assert done.returncode == 2, done.stdout + done.stderr
    summary = (tmp_path / "artifacts/a/failure/failure.txt").read_text()
    assert "task: broken" in summary
    assert "/nowhere" in summary
    assert "/nowhere" in last_words(done.stdout)[-2]


def test_evidence_that_cannot_be_written_does_not_hide_the_failure(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file where the folder should be")
    done = play(tmp_path, [{"ansible.builtin.fail": {"msg": "no disk"}, "tags": "part"}], {"a": {}})
    assert done.returncode == 2
    assert last_words(done.stdout)[-2] == "no disk"
    assert last_words(done.stdout)[-1].startswith("No evidence could be written: ")


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param({"ansible_python_interpreter": "/nowhere/python"}, id="no Python"),
        pytest.param({"ansible_connection": "ssh", "ansible_ssh_executable": "./ssh"}, id="no connection"),
    ],
)
def test_a_host_that_cannot_be_read_does_not_hide_the_failure(tmp_path: Path, broken: dict[str, str]) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\nexit 255\n")  # what ssh says of a host that is away
    (tmp_path / "ssh").chmod(0o755)
    done = play(tmp_path, [{"ansible.builtin.fail": {"msg": "no disk"}, "tags": "part"}], {"a": broken})
    assert done.returncode == 2
    assert "no disk" in last_words(done.stdout)
    assert last_words(done.stdout)[-1].startswith("Evidence: artifacts/a/failure/ (without the host's: ")
    assert "no disk" in (tmp_path / "artifacts/a/failure/failure.txt").read_text()


def test_nothing_is_kept_of_a_run_that_succeeds(tmp_path: Path) -> None:
    done = play(tmp_path, [{"ansible.builtin.command": "true", "tags": "part"}], {"a": {}})
    assert done.returncode == 0
    assert not (tmp_path / "artifacts").exists()
    assert "TASK [evidence" not in done.stdout
