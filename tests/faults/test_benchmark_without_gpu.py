"""The playbook benchmark.yml where it has nothing to measure: one sentence, and nothing touched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("variables", "sentences"),
    [
        (
            "{}",
            [
                "is to compute on the cpu, expected an NVIDIA GPU, since that is what the benchmark measures",
                "Run it for a host that has one: --limit HOST",
            ],
        ),
        (
            '{"comfyui_benchmark_candidates": ["gpu-only", "faster"]}',
            ["comfyui_benchmark_candidates has faster, expected names out of defaults, compiled, ", "Correct it."],
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    tmp_path: Path, variables: str, sentences: list[str]
) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("dgx:\n  hosts:\n    plain:\n      ansible_connection: local\n")
    (tmp_path / "group_vars").symlink_to(ROOT / "inventory/group_vars")
    options = ["--extra-vars", "comfyui_device=cpu", "--extra-vars", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run(
        ["ansible-playbook", "--inventory", str(inventory), "playbooks/benchmark.yml", *options, "-e", variables],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0", "COLUMNS": "2000"},
    )
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode == 2, said
    for sentence in sentences:
        assert sentence in said
    assert re.search(r"plain : ok=\d+ changed=0 unreachable=0 failed=1", said)
    assert "Traceback" not in said
