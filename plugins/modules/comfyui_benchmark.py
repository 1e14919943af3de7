#!/usr/bin/python
"""Measure ComfyUI on a GPU host, and try other settings, without touching the service."""

from __future__ import annotations

DOCUMENTATION = r"""
module: comfyui_benchmark
short_description: Measure ComfyUI on this host's GPU, and try other settings
description:
  - Starts ComfyUI as the service's release would, beside the service, on a port and in a scratch folder of its own,
    and measures start-up, first image, latency, throughput, GPU utilisation, memory and energy.
  - Starts the same files without a container in the same run, so that the container's cost is a ratio of one machine.
  - With O(tune), tries a list of candidates in rounds, compares their images with those of the first one, and ranks
    them.
  - The service keeps running with its own settings; it is only asked to unload its models. An interrupted run leaves
    at most a container named C(comfyui-benchmark), which the next run removes.
  - In check mode nothing is measured.
options:
  guard:
    description: The service's guard, which knows how a release becomes a container.
    type: path
    default: /usr/local/lib/comfyui/comfyui_guard.py
  work_dir:
    description:
      - Scratch folder on the host, removed at the end. The results so far are beside it, with C(.json) appended.
    type: path
    required: true
  repeats:
    description: Warm images of each series.
    type: int
    default: 8
  queue_length:
    description: Prompts submitted at once for the throughput.
    type: int
    default: 10
  rounds:
    description: How often each candidate is started.
    type: int
    default: 2
  compared_seeds:
    description: Images of each round that are compared with the reference's.
    type: int
    default: 2
  tune:
    description: Whether to try the candidates.
    type: bool
    default: false
  candidates:
    description: Settings to try, the first of them the reference.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: A short name.
        type: str
        required: true
      flags:
        description: Flags of main.py.
        type: list
        elements: str
        default: []
      compile:
        description: Backend of a TorchCompileModel node before the sampler. Empty for none.
        type: str
        default: ""
      environment:
        description: Environment variables of ComfyUI's process.
        type: dict
        default: {}
      machines:
        description: V(discrete) for a GPU with its own memory, V(unified) for one that shares the host's.
        type: list
        elements: str
        choices: [discrete, unified]
        default: [discrete, unified]
      since:
        description: First ComfyUI version that takes it.
        type: str
        default: "0"
      until:
        description: First ComfyUI version that no longer takes it.
        type: str
        default: "9999"
  tolerance:
    description:
      - Largest difference of a candidate's images from the reference's that is accepted.
      - V(mean) in levels of 0 to 255, V(share) of the pixels that differ by more than 16 levels in a channel.
    type: dict
    required: true
  memory_limit_gb:
    description: Peak memory above which a candidate is rejected, in units of 10^9 bytes.
    type: float
    default: 30
  limits:
    description: Figures to hold, each with V(most) or V(least).
    type: dict
    default: {}
  start_limit_s:
    description: How long a server may take to answer.
    type: int
    default: 300
  image_limit_s:
    description: How long an image may take. The first one of a compiled graph takes minutes.
    type: int
    default: 900
  drop_caches:
    description: Empty the host's page cache before the first start, so that it is a cold one.
    type: bool
    default: true
  shared_gpu:
    description: Measure although others use the GPU.
    type: bool
    default: false
  gpu_required:
    description: Refuse a ComfyUI that computes on the processor. V(false) is for trying the benchmark itself.
    type: bool
    default: true
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Measure
  comfyui_benchmark:
    work_dir: /srv/comfyui/benchmark
    tolerance: {mean: 2, share: 0.02}
  register: measured
"""

RETURN = r"""
benchmark:
  description: All figures. docs/performance.md says what each means.
  returned: when something was measured
  type: dict
  sample: {"measured": {"txt2img": {"latency_s": {"count": 8, "median": 1.4, "min": 1.4, "max": 1.5, "spread": 0.1}}}}
"""

import json
import os
import signal
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.benchmark_run import Benchmark, RefusalError
from ansible.module_utils.benchmark_server import ServerError
from ansible.module_utils.comfyui_api import ComfyuiError
from ansible.module_utils.progress import Reporter

CANDIDATE_SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "flags": {"type": "list", "elements": "str", "default": []},
    "compile": {"type": "str", "default": ""},
    "environment": {"type": "dict", "default": {}},
    "machines": {
        "type": "list",
        "elements": "str",
        "choices": ["discrete", "unified"],
        "default": ["discrete", "unified"],
    },
    "since": {"type": "str", "default": "0"},
    "until": {"type": "str", "default": "9999"},
}


def keep(path: str, result: dict[str, Any]) -> None:
    """Write the results so far, whole or not at all."""
    with open(f"{path}.new", "w", encoding="utf-8") as handle:
        json.dump(result, handle, indent=1)
    os.replace(f"{path}.new", path)


def stop(number: int, _: object) -> None:
    """A signal ends the run through its `finally`, so that nothing is left on the GPU."""
    raise ServerError(f"interrupted by signal {number}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "guard": {"type": "path", "default": "/usr/local/lib/comfyui/comfyui_guard.py"},
            "work_dir": {"type": "path", "required": True},
            "repeats": {"type": "int", "default": 8},
            "queue_length": {"type": "int", "default": 10},
            "rounds": {"type": "int", "default": 2},
            "compared_seeds": {"type": "int", "default": 2},
            "tune": {"type": "bool", "default": False},
            "candidates": {"type": "list", "elements": "dict", "default": [], "options": CANDIDATE_SPEC},
            "tolerance": {"type": "dict", "required": True},
            "memory_limit_gb": {"type": "float", "default": 30},
            "limits": {"type": "dict", "default": {}},
            "start_limit_s": {"type": "int", "default": 300},
            "image_limit_s": {"type": "int", "default": 900},
            "drop_caches": {"type": "bool", "default": True},
            "shared_gpu": {"type": "bool", "default": False},
            "gpu_required": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, skipped=True, msg="not measured: this is a dry run")
    for name in ("repeats", "queue_length", "rounds", "compared_seeds"):
        if module.params[name] < 1:
            module.fail_json(msg=f"{name} is {module.params[name]}, expected 1 or more.")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    path = f"{module.params['work_dir'].rstrip('/')}.json"
    try:
        with Reporter.from_environment() as report:
            run = Benchmark(module.params, report, lambda result: keep(path, result))
            benchmark = run.run()
        keep(path, benchmark)
    except RefusalError as error:
        module.fail_json(msg=str(error))
    except (ServerError, ComfyuiError, OSError) as error:
        module.fail_json(
            msg=f"The benchmark ended early, and the service is as it was: {error}. Results so far: {path}"
        )
    module.exit_json(changed=False, benchmark=benchmark)


if __name__ == "__main__":
    main()
