#!/usr/bin/python
"""Run a workflow graph on a ComfyUI server and measure what comes back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: comfyui_prompt
short_description: Run a workflow graph on ComfyUI and measure its images
description:
  - Submits a graph in API format, waits for its end, fetches the images and measures them. Meanwhile its progress
    says whether it runs, or how many others are before it in the queue.
  - What ComfyUI says about a failure is in the message, with the node it is about.
  - After O(timeout_s) the prompt is cancelled; other prompts in the queue are left alone.
  - In check mode, and with O(validate_only), the graph is only held against the server's node classes,
    with the models and input files that it has now. Nothing is queued. Where no server answers in check mode,
    or a file is missing, the task is skipped, since the run may be about to create them.
options:
  url:
    description: Address of the server, as the target sees it.
    type: str
    default: http://127.0.0.1:8188
  graph:
    description: The graph.
    type: dict
  graph_file:
    description: Path on the target of a file with the graph.
    type: path
  graph_files:
    description: Paths on the target of several files, to be checked together, with O(validate_only) or O(accept_only).
    type: list
    elements: path
  inputs:
    description:
      - Inputs to replace before the graph is submitted, by node id and input name. Only inputs that the graph names.
      - A server answers an unchanged graph from its cache and writes no new image; another seed prevents that.
    type: dict
    default: {}
  validate_only:
    description: Check the graph against the running server, and queue nothing.
    type: bool
    default: false
  accept_only:
    description:
      - As O(validate_only), and then submit the graph, see that the server takes all of it, and cancel it at once.
      - A server may answer 200 and still leave a part of the graph out; that is a rejection here.
    type: bool
    default: false
  unload_first:
    description: Let the server unload its models before, so that the run's time includes loading them.
    type: bool
    default: false
  sample:
    description: Sample GPU and memory of the target while the graph runs, four times a second.
    type: bool
    default: false
  sample_gpus:
    description: The GPUs to sample, by index or UUID. Without one all are sampled, also those that others use.
    type: list
    elements: str
    default: []
  front:
    description: Put the graph before all that wait in the queue. What runs is not interrupted.
    type: bool
    default: false
  wait_s:
    description: How long to wait for the server to answer at all before anything else.
    type: float
    default: 0
  timeout_s:
    description: How long the graph may wait in the queue and run.
    type: float
    default: 300
  expect:
    description: What the images must hold; anything else is a failure.
    type: dict
    default: {}
    suboptions:
      count:
        description: Number of images.
        type: int
      width_px:
        description: Width of each.
        type: int
      height_px:
        description: Height of each.
        type: int
      format:
        description: Format of each.
        type: str
        choices: [PNG, JPEG, WEBP]
      not_blank:
        description: Whether an image whose pixels all have one colour is a failure.
        type: bool
        default: false
author:
  - dgx-comfyui (@dgx-comfyui)
"""

EXAMPLES = r"""
- name: Render without a model
  comfyui_prompt:
    graph_file: /srv/comfyui/workflows/render_check.json
    wait_s: 60
    timeout_s: 30
    expect:
      count: 1
      width_px: 512
      height_px: 512

- name: Generate an image with another seed
  comfyui_prompt:
    graph_file: /srv/comfyui/workflows/txt2img_sdxl.json
    inputs:
      "5":
        seed: 7
    expect:
      width_px: 1024
      height_px: 1024
      not_blank: true
  register: generated

- name: Hold the deployed graphs against the running server
  comfyui_prompt:
    graph_files:
      - /srv/comfyui/workflows/txt2img_sdxl.json
      - /srv/comfyui/workflows/img2img_sdxl.json
    validate_only: true
"""

RETURN = r"""
prompt_id:
  description: ComfyUI's id of the run; empty where nothing was queued.
  returned: always
  type: str
seconds:
  description: From the submission to the end of the run, the time in the queue included.
  returned: when the graph ran
  type: float
seconds_per_image:
  description: The same, divided by the number of images; null where none came back.
  returned: when the graph ran
  type: float
images:
  description:
    - Each image of the run. Size, blankness and digest of the pixels are null for other formats than PNG.
    - V(blank) is true where all pixels have one colour.
  returned: when the graph ran
  type: list
  elements: dict
  sample:
    - {"filename": "dgx_pixels_txt2img_00001_.png", "subfolder": "", "type": "output", "node": "7", "format": "PNG",
       "width_px": 1024, "height_px": 1024, "size_b": 1482203, "blank": false, "pixels_sha256": "5d3c..."}
cached_nodes:
  description: Nodes that the server answered from its cache. A cached SaveImage wrote no new file.
  returned: when the graph ran
  type: list
  elements: str
written:
  description: Files in the output folder, of graphs that ended before they were cancelled.
  returned: with O(accept_only)
  type: list
  elements: str
samples:
  description:
    - Seconds since the start, utilisation and memory of the busiest of the GPUs, and the host's memory that is in use.
    - The first is taken before the submission. What nvidia-smi does not report is null, such as memory on a GB10.
  returned: when the graph ran and O(sample)
  type: list
  elements: dict
  sample:
    - {"at_s": 1.25, "gpu_percent": 96.0, "gpu_memory_mib": 8120.0, "memory_used_mib": 10240}
findings:
  description: What is wrong with the graph, one line each.
  returned: when it was only checked
  type: list
  elements: str
kind:
  description:
    - V(input) and V(rejected) speak of the graph, V(execution), V(image), V(expectation) and V(timeout) of the run,
      V(lost) of a server that stopped or forgot it.
    - V(unreachable) and V(not_comfyui) mean that nothing is known about the graph.
  returned: on failure
  type: str
node_errors:
  description: ComfyUI's own account of a rejected graph, by node id.
  returned: on failure
  type: dict
"""

import contextlib
import functools
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.comfyui_api import Client, ComfyuiError, unmet
from ansible.module_utils.comfyui_graph import (
    FORMAT_MESSAGES,
    check_graph,
    detect_format,
    parse_json,
    set_inputs,
    used_classes,
)
from ansible.module_utils.host_load import Sampler, ask_gpus
from ansible.module_utils.progress import Reporter

EXPECT_SPEC: dict[str, Any] = {
    "count": {"type": "int"},
    "width_px": {"type": "int"},
    "height_px": {"type": "int"},
    "format": {"type": "str", "choices": ["PNG", "JPEG", "WEBP"]},
    "not_blank": {"type": "bool", "default": False},
}


def read_graph(path: str) -> Any:
    """The document in a file; other errors than a missing file become ValueError with its name."""
    try:
        with open(path, encoding="utf-8") as handle:
            return parse_json(handle.read())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_graphs(params: dict[str, Any]) -> dict[str, Any]:
    """The graphs asked for, by path, or by V(graph)."""
    if params["graph"] is not None:
        return {"graph": params["graph"]}
    return {path: read_graph(path) for path in params["graph_files"] or [params["graph_file"]]}


def wrote_files(result: dict[str, Any]) -> bool:
    """Whether the run left new files in the output folder: previews go away, and a cached node writes nothing."""
    return any(image["type"] == "output" and image["node"] not in result["cached_nodes"] for image in result["images"])


def validate(client: Client, graphs: dict[str, Any]) -> list[str]:
    """Everything that the running server would object to."""
    names = sorted({name for graph in graphs.values() if detect_format(graph) == "api" for name in used_classes(graph)})
    classes = client.node_classes(names)
    return [found.describe() for file, graph in graphs.items() for found in check_graph(graph, classes, file=file)]


def check(client: Client, graphs: dict[str, Any], result: dict[str, Any]) -> str:
    """Hold the graphs against the server; ComfyuiError(V(rejected)) with the findings."""
    result["findings"] = validate(client, graphs)
    if result["findings"]:
        raise ComfyuiError("rejected", "The running ComfyUI would not take this: " + "; ".join(result["findings"]))
    return "checked against the running server, nothing was queued"


def accept(client: Client, graphs: dict[str, Any], result: dict[str, Any]) -> str:
    """Have the server take the graphs, and cancel them."""
    result["written"] = [file for name, graph in graphs.items() for file in client.accept(graph, name)]
    result["changed"] = bool(result["written"])
    return "the server takes it; it was cancelled at once"


def render(client: Client, graph: Any, params: dict[str, Any], result: dict[str, Any]) -> str:
    """Run one graph to its end; ComfyuiError(V(expectation)) where the images are not what was expected."""
    if params["unload_first"]:
        client.unload()
    sampler = Sampler(functools.partial(ask_gpus, params["sample_gpus"])) if params["sample"] else None
    with Reporter.from_environment() as report, sampler or contextlib.nullcontext():
        report("submitted")
        result.update(client.run(graph, params["timeout_s"], front=params["front"], tell=report))
    if sampler:
        result["samples"] = sampler.result()
    result["changed"] = wrote_files(result)
    failures = unmet(params["expect"], result["images"])
    if failures:
        error = ComfyuiError("expectation", "; ".join(failures))
        error.prompt_id = result["prompt_id"]
        raise error
    return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8188"},
            "graph": {"type": "dict"},
            "graph_file": {"type": "path"},
            "graph_files": {"type": "list", "elements": "path"},
            "inputs": {"type": "dict", "default": {}},
            "validate_only": {"type": "bool", "default": False},
            "accept_only": {"type": "bool", "default": False},
            "unload_first": {"type": "bool", "default": False},
            "sample": {"type": "bool", "default": False},
            "sample_gpus": {"type": "list", "elements": "str", "default": []},
            "front": {"type": "bool", "default": False},
            "wait_s": {"type": "float", "default": 0},
            "timeout_s": {"type": "float", "default": 300},
            "expect": {"type": "dict", "default": {}, "options": EXPECT_SPEC},
        },
        mutually_exclusive=[("graph", "graph_file", "graph_files"), ("validate_only", "accept_only")],
        required_one_of=[("graph", "graph_file", "graph_files")],
        supports_check_mode=True,
    )
    params = module.params
    only_check = params["validate_only"] or module.check_mode
    if params["graph_files"] and not (params["validate_only"] or params["accept_only"]):
        words = "graph_files is for validate_only or accept_only; run one graph_file at a time"
        module.fail_json(msg=words, kind="input")
    result: dict[str, Any] = {"changed": False, "prompt_id": ""}
    try:
        client = Client(params["url"], request_timeout_s=min(30.0, max(1.0, params["timeout_s"])))
        graphs = read_graphs(params)
        for name, graph in graphs.items():
            if detect_format(graph) == "api":
                graphs[name] = set_inputs(graph, params["inputs"])
            elif not only_check:
                raise ValueError(f"{name}: {FORMAT_MESSAGES[detect_format(graph)]}")
        with Reporter.from_environment() as report:
            report("its API does not answer yet")
            client.wait(0 if module.check_mode else params["wait_s"])
        if only_check or params["accept_only"]:
            words = check(client, graphs, result)
        if params["accept_only"] and not only_check:
            words = accept(client, graphs, result)
        elif not only_check:
            words = render(client, next(iter(graphs.values())), params, result)
    except FileNotFoundError as error:
        if module.check_mode:  # in a dry run the file may be what the run would put there
            module.exit_json(skipped=True, msg=f"not checked: {error.filename} is not there yet", **result)
        module.fail_json(msg=f"{error.filename} is not there", kind="input", node_errors={}, **result)
    except ValueError as error:
        module.fail_json(msg=str(error), kind="input", node_errors={}, **result)
    except ComfyuiError as error:
        if module.check_mode and error.kind == "unreachable":
            module.exit_json(skipped=True, msg=f"not checked: {error}", **result)
        result["prompt_id"] = error.prompt_id
        module.fail_json(msg=str(error), kind=error.kind, node_errors=error.node_errors, **result)
    module.exit_json(**({"msg": words} if words else {}), **result)


if __name__ == "__main__":
    main()
