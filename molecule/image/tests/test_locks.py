"""Every lock installs on both architectures and both Pythons that hosts and tests have: there is a wheel for each line.

uv resolves for a platform that is not this machine's, without installing anything.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LOCKS = sorted((Path(__file__).parents[3] / "roles/comfyui_image/files/locks").glob("*.*.txt"))
PLATFORMS = ["aarch64-manylinux_2_39", "x86_64-manylinux_2_39"]
PYTHONS = ["3.12", "3.13"]  # NGC's and the stand-in's


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_has_a_wheel_for_every_line(lock: Path, platform: str, python: str, tmp_path: Path) -> None:
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--dry-run", "--quiet", "--only-binary", ":all:"]
    target = ["--target", str(tmp_path), "--python-platform", platform, "--python-version", python]
    done = subprocess.run(
        [*uv, *target, "--no-deps", "--require-hashes", "--requirement", str(lock)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
