"""ComfyUI's API answers in the right shapes, takes every deployed graph, and refuses a bad one."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from site_fixtures import Ask, Prompt
from verdict import Evidence

pytestmark = pytest.mark.level(1)

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
FORMS = sorted(path.name for path in WORKFLOWS.glob("ui/*.json"))  # a graph of one's own may have none
TEMPLATES = ("batch_generation", "img2img_sdxl", "txt2img_sdxl")
START_LIMIT_S = 30

BAD_GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}}
LONE_OUTPUT = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}
REQUESTS: dict[str, tuple[str, Any]] = {
    "system_stats": ("/system_stats", None),
    "prompt": ("/prompt", None),
    "queue": ("/queue", None),
    "history": ("/history", None),
    "object_info": ("/object_info/EmptyImage", None),
    "sidebar": ("/userdata?dir=workflows", None),
    "no output": ("/prompt", {"prompt": BAD_GRAPH}),
    "missing input": ("/prompt", {"prompt": LONE_OUTPUT}),
    "not wrapped": ("/prompt", LONE_OUTPUT),
}


@pytest.fixture(scope="module")
def answers(ask: Ask) -> dict[str, Any]:
    return ask(REQUESTS)


def test_criterion_01_comfyui_is_installed_and_answers(answers: dict[str, Any], site: dict[str, Any]) -> None:
    status, stats = answers["system_stats"]
    assert status == 200
    assert stats["system"]["comfyui_version"] == site["comfyui_version"]
    assert stats["system"]["pytorch_version"]
    assert [device["type"] for device in stats["devices"]]


def test_criterion_01_comfyui_starts_within_its_limit(host: Any, record: Evidence) -> None:
    (container,) = json.loads(host.check_output("docker container inspect comfyui"))
    started = container["State"]["StartedAt"]
    log = host.run("docker logs --timestamps --since %s comfyui 2>&1 | grep -m 1 'To see the GUI go to'", started)
    if log.rc != 0:
        pytest.skip("the journal no longer holds the start")
    times = [datetime.datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00") for text in (started, log.stdout)]
    record.figure("Start of ComfyUI", (times[1] - times[0]).total_seconds(), "s", at_most=START_LIMIT_S)


def test_criterion_04_queue_and_history_are_listed(answers: dict[str, Any]) -> None:
    assert answers["queue"][0] == 200
    assert {"queue_running", "queue_pending"} <= answers["queue"][1].keys()
    assert answers["history"][0] == 200
    assert isinstance(answers["history"][1], dict)
    assert answers["prompt"] == [
        200,
        {"exec_info": {"queue_remaining": answers["prompt"][1]["exec_info"]["queue_remaining"]}},
    ]


def test_criterion_04_node_classes_are_described(answers: dict[str, Any]) -> None:
    status, info = answers["object_info"]
    assert status == 200
    assert info["EmptyImage"]["input"]["required"]["width"][0] == "INT"
    assert info["EmptyImage"]["output"] == ["IMAGE"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("no output", "prompt_no_outputs"),
        ("missing input", "prompt_outputs_failed_validation"),
        ("not wrapped", "no_prompt"),
    ],
)
def test_criterion_04_a_bad_graph_is_refused_with_400(answers: dict[str, Any], name: str, kind: str) -> None:
    status, answer = answers[name]
    assert (status, answer["error"]["type"]) == (400, kind)
    assert ("1" in answer["node_errors"]) == (name == "missing input")


@pytest.mark.parametrize("name", TEMPLATES)
def test_criterion_04_template_suits_the_server_and_is_accepted_without_node_errors(
    host: Any, prompt: Prompt, site: dict[str, Any], name: str
) -> None:
    result = prompt(graph_file=f"{site['comfyui_data_dir']}/workflows/{name}.json", accept_only=True)
    for file in result["written"]:
        host.check_output("rm -f %s", f"{site['comfyui_data_dir']}/output/{file}")


def test_the_sidebar_lists_the_forms(answers: dict[str, Any]) -> None:
    status, names = answers["sidebar"]
    assert status == 200
    assert set(FORMS) <= set(names)
