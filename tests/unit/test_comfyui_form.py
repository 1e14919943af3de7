"""Forms of the browser: drawn from graphs, read back to the same graphs, and set like them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import comfyui_form as cf
import comfyui_graph as cg

ROOT = Path(__file__).resolve().parents[2]
CLASSES = json.loads((ROOT / "tests/data/object_info-0.28.1.json").read_text())["classes"]
# The same classes with their inputs in the server's order, which is the order of the widgets.
ORDERED = json.loads((ROOT / "tests/upstreams/comfyui/object_info.json").read_text())
GRAPHS = sorted((ROOT / "workflows").glob("*.json"))
TEMPLATES = ("txt2img_sdxl", "img2img_sdxl", "batch_generation")


def load(name: str) -> cg.Graph:
    graph: cg.Graph = cg.parse_json((ROOT / f"workflows/{name}.json").read_text())
    return graph


def form_of(name: str) -> dict[str, Any]:
    form: dict[str, Any] = cg.parse_json((ROOT / f"workflows/ui/{name}.json").read_text())
    return form


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_every_graph_has_its_form_and_both_say_the_same(path: Path) -> None:
    assert cf.form_differences(load(path.stem), form_of(path.stem)) == []
    assert cf.read_form(form_of(path.stem)) == load(path.stem)


def test_no_form_is_without_a_graph() -> None:
    assert {path.name for path in (ROOT / "workflows/ui").iterdir()} == {path.name for path in GRAPHS}


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_the_forms_are_what_make_forms_draws(path: Path) -> None:
    assert cf.build_form(load(path.stem), CLASSES) == form_of(path.stem)


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_widgets_stand_in_the_servers_order(path: Path) -> None:
    for node in form_of(path.stem)["nodes"]:
        order = [*ORDERED[node["type"]]["input"]["required"]]
        widgets = [entry["name"] for entry in node["inputs"] if "widget" in entry and entry["name"] != "upload"]
        assert widgets == [name for name in order if name in widgets]


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_no_two_nodes_are_drawn_over_each_other(path: Path) -> None:
    boxes = [(node["pos"], node["size"]) for node in form_of(path.stem)["nodes"]]
    for number, ((x, y), (width, height)) in enumerate(boxes):
        for (other_x, other_y), (other_width, other_height) in boxes[number + 1 :]:
            apart = x + width <= other_x or other_x + other_width <= x
            assert apart or y + height <= other_y or other_y + other_height <= y


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_links_and_slots_name_each_other(path: Path) -> None:
    form = form_of(path.stem)
    nodes = {node["id"]: node for node in form["nodes"]}
    for number, source, slot, target, place, kind in form["links"]:
        assert number in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][place]["link"] == number
        assert cg.types_match(nodes[source]["outputs"][slot]["type"], kind)
    assert form["last_link_id"] == len(form["links"])
    assert form["last_node_id"] == max(nodes)


def test_a_form_is_told_from_a_graph() -> None:
    assert cg.detect_format(form_of("txt2img_sdxl")) == "ui"
    assert "browser's format" in cg.check_graph(form_of("txt2img_sdxl"))[0].message


VALUES = {
    "seed": st.integers(0, 2**64 - 1),
    "steps": st.integers(1, 10_000),
    "cfg": st.floats(0, 100),
    "denoise": st.floats(0, 1),
    "prompt": st.text(max_size=40),
    "negative_prompt": st.text(max_size=40),
    "width": st.integers(64, 256).map(lambda eighths: 8 * eighths),
    "height": st.integers(64, 256).map(lambda eighths: 8 * eighths),
    "batch_size": st.integers(1, 4096),
    "checkpoint": st.text(min_size=1, max_size=20),
}


@given(name=st.sampled_from(TEMPLATES), chosen=st.fixed_dictionaries({}, optional=VALUES))
def test_settings_arrive_in_both_formats_alike(name: str, chosen: dict[str, Any]) -> None:
    graph, form = load(name), form_of(name)
    settings = {key: value for key, value in chosen.items() if key in cf.setting_places(graph)}
    inputs = cf.setting_inputs(graph, settings)
    tuned = cg.set_inputs(graph, inputs)
    assert cf.setting_problems(graph, settings, name) == []
    assert cf.read_form(cf.set_form_inputs(form, inputs)) == tuned
    for setting, value in settings.items():
        assert all(tuned[node]["inputs"][field] == value for node, field in cf.setting_places(graph)[setting])
    assert cf.form_differences(graph, form) == []  # neither was changed in place


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_setting_has_its_place(name: str) -> None:
    graph = load(name)
    missing = {"batch_size"} if name == "img2img_sdxl" else set()
    places = cf.setting_places(graph)
    assert set(places) == set(cf.SETTINGS) - missing
    for setting, title in {"prompt": "Prompt", "negative_prompt": "Negative prompt"}.items():
        assert [graph[node]["_meta"]["title"] for node, _ in places[setting]] == [title]


def test_a_graph_without_a_sampler_has_no_settings() -> None:
    assert cf.setting_places(load("render_check")) == {}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"promt": "x"}, "there is no setting 'promt'; there are prompt, negative_prompt"),
        ({"batch_size": 4}, "batch_size has no place in this graph; it has seed, steps"),
        ({"prompt": 7}, "prompt is 7, expected text."),
        ({"steps": "30"}, "steps is '30', expected a number."),
        ({"denoise": True}, "denoise is True, expected a number."),
        (["steps"], "found ['steps'], expected settings by name: prompt,"),
    ],
)
def test_bad_settings_are_told_in_a_sentence(settings: Any, problem: str) -> None:
    (found,) = cf.setting_problems(load("img2img_sdxl"), settings, "img2img_sdxl")
    assert problem in found


@pytest.mark.parametrize(
    ("change", "node", "field", "message"),
    [
        (lambda form: form["nodes"].pop(0), "1", "", "the form has no such node"),
        (lambda form: form["nodes"][0].update(mode=4), "1", "", "the form has no such node"),
        (lambda form: form["nodes"][0].update(title="x"), "1", "title", "the form has 'x' where the graph has"),
        (lambda form: form["nodes"][0].update(id=99), "99", "", "the graph has no such node"),
        (lambda form: form["nodes"][0]["widgets_values"].append(1), "", "", "node 1 has 2 widget values where 1"),
        (lambda form: form.update(links=[{"id": 1}]), "", "", "links are written as objects"),
        (lambda form: form.pop("links"), "", "", "the form cannot be read: 'links'"),
    ],
)
def test_a_form_that_shows_something_else_is_found(change: Any, node: str, field: str, message: str) -> None:
    form = copy.deepcopy(form_of("txt2img_sdxl"))
    change(form)
    found = cf.form_differences(load("txt2img_sdxl"), form)
    assert any((one[0], one[1]) == (node, field) and message in one[2] for one in found), found


def test_a_changed_widget_is_found_by_node_and_field() -> None:
    form = cf.set_form_inputs(form_of("txt2img_sdxl"), {"5": {"steps": 25}})
    assert cf.form_differences(load("txt2img_sdxl"), form) == [("5", "steps", "the form has 25 where the graph has 20")]
