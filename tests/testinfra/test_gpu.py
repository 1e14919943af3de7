"""The GPUs that were asked for reach the container, and compute there with code of their own architecture."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

import cdi_spec
from site_fixtures import Ask

pytestmark = pytest.mark.level(3)

# A GPU runs code of its own architecture, of an older minor one of the same major, and PTX of an older one.
CUDA_PROGRAM = """
import re, torch
x = torch.ones(1024, 1024, device="cuda")
assert (x @ x).sum().item() == 1024.0**3
own = torch.cuda.get_device_capability()
listed = [(kind, int(digits[:-1]), int(digits[-1])) for kind, digits in
          (re.fullmatch(r"(sm|compute)_([0-9]+)[a-z]*", name).groups() for name in torch.cuda.get_arch_list())]
fits = [entry for entry in listed if entry[1:] <= own and (entry[0] == "compute" or entry[1] == own[0])]
assert fits, f"sm_{own[0]}{own[1]} is not among {torch.cuda.get_arch_list()}"
"""


def test_the_container_got_the_gpus_that_were_asked_for(host: Any, site: dict[str, Any]) -> None:
    inside = set(host.check_output("docker exec comfyui find /dev -name 'nvidia*' -type c").split())
    if site["comfyui_gpus"] == "none":
        assert inside == set()
        return
    spec = yaml.safe_load(host.file("/var/run/cdi/nvidia.yaml").content_string)
    wanted = set(cdi_spec.device_nodes(spec, site["comfyui_gpus"].split(",")))
    assert any(re.fullmatch(r"/dev/nvidia\d+", path) for path in wanted)
    assert inside == wanted


@pytest.mark.usefixtures("gpu")
def test_cuda_computes_in_the_running_container_with_code_for_this_gpu(host: Any) -> None:
    done = host.run("docker exec comfyui python -c %s", CUDA_PROGRAM)
    assert done.rc == 0, done.stderr


@pytest.mark.usefixtures("gpu")
def test_criterion_05_comfyui_computes_on_the_gpu(ask: Ask) -> None:
    _, stats = ask({"stats": ("/system_stats", None)})["stats"]
    assert [device["type"] for device in stats["devices"]] == ["cuda"], json.dumps(stats["devices"])
