"""The commands of README.md and docs/running.md hold; molecule/first_page types those of the first."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.cli.playbook import PlaybookCLI

from pages import README, SETUP, blocks, commands
from playbook_runs import ROOT, environment

RUNNING = (ROOT / "docs/running.md").read_text()


def shell(script: str, cwd: Path = ROOT, typed: str = "", **more: str) -> str:
    """What a script prints in bash; a make that may have started this is kept out of it."""
    done = subprocess.run(
        ["bash", "-c", f"set -eu -o pipefail\n{script}"],
        cwd=cwd,
        env={name: value for name, value in environment(**more).items() if not name.startswith("MAKE")},
        input=typed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("ansible-playbook")])
def test_the_playbook_takes_it(command: str) -> None:
    words = PlaybookCLI(shlex.split(command))
    words.parse()
    assert (ROOT / shlex.split(command)[1]).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([\w-]+)", README + RUNNING))))
def test_a_target_that_is_named_exists(target: str) -> None:
    assert shell(f"make --dry-run {target}")


def test_the_set_up_leads_to_this_tree() -> None:
    assert SETUP in RUNNING
    # `make check` has set up by now; to do it again would take the environment from under the other tests.
    script = SETUP.replace("make setup", "make --dry-run setup")
    bare = "unset ANSIBLE_CONFIG; PATH=/usr/bin:/bin"
    printed = shell(f"{bare}; {script}; cd /; command -v ansible-playbook; ansible-playbook --version")
    found = re.findall(r"^/.*/bin/ansible-playbook$", printed, re.MULTILINE)
    assert [Path(path).resolve() for path in found] == [(ROOT / ".venv/bin/ansible-playbook").resolve()]
    assert f"config file = {ROOT}/ansible.cfg" in printed


def test_the_tags_are_those_on_the_page() -> None:
    (tags,) = re.findall(r"TASK TAGS: \[(.*)\]", shell("ansible-playbook site.yml --list-tags"))
    (section,) = re.findall(r"^## Tags\n(.*?)^## ", RUNNING, re.MULTILINE | re.DOTALL)
    assert sorted(tags.split(", ")) == sorted(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_the_example_fleet_reads_as_on_the_page(tmp_path: Path) -> None:
    example = re.findall(r"^# ((?:dgx:| ).*)$", (ROOT / "inventory/hosts.yml").read_text(), re.MULTILINE)
    (tmp_path / "hosts.yml").write_text("---\n" + "\n".join(example) + "\n")
    assert shell(f"ansible-inventory --inventory {tmp_path} --graph") in blocks(RUNNING, "text")


def test_a_token_from_a_vault_reaches_the_site(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "inventory", tmp_path / "inventory")
    (script,) = (block for block in blocks(RUNNING, "sh") if "ansible-vault" in block)
    ask = (
        "ansible this-machine --inventory inventory --module-name ansible.builtin.debug --args var=comfyui_model_token"
    )
    printed = shell(f"{script}\n{ask}", tmp_path, "hf_planted\n", HOME=str(tmp_path))
    assert "comfyui_model_token: hf_planted" in printed
    kept = {path: path.read_text() for path in (tmp_path / "inventory").rglob("*.yml")}
    assert [path for path, text in kept.items() if "hf_planted" in text] == []
    assert (tmp_path / ".dgx-comfyui-vault").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["module", "callback"])
def test_ansible_doc_prints_our_pages(kind: str) -> None:
    names = sorted(path.stem for path in (ROOT / f"plugins/{'modules' if kind == 'module' else kind}").glob("*.py"))
    pages: dict[str, Any] = json.loads(shell(f"ansible-doc --json --type {kind} {' '.join(names)}"))
    assert sorted(pages) == names
    assert all(page["doc"]["short_description"] for page in pages.values())
