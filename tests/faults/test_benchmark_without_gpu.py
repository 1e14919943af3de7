"""The playbook benchmark.yml on a host without a GPU: one sentence, and nothing touched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_host_without_a_gpu_is_refused_in_one_sentence(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("dgx:\n  hosts:\n    plain:\n      ansible_connection: local\n")
    (tmp_path / "group_vars").symlink_to(ROOT / "inventory/group_vars")
    options = ["--extra-vars", "comfyui_device=cpu", "--extra-vars", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run(
        ["ansible-playbook", "--inventory", str(inventory), "playbooks/benchmark.yml", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0", "COLUMNS": "2000"},
    )
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode == 2, said
    assert "is to compute on the cpu, expected an NVIDIA GPU, since that is what the benchmark measures" in said
    assert "Run it for a host that has one: --limit HOST" in said
    assert re.search(r"plain : ok=\d+ changed=0 unreachable=0 failed=1", said)
    assert "Traceback" not in said
