"""Offline judgement of graphs, against the node classes that two real servers reported."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import comfyui_graph as cg

DATA = Path(__file__).resolve().parents[1] / "data"
CLASSES = {
    version: json.loads((DATA / f"object_info-{version}.json").read_text())["classes"]
    for version in ("0.28.1", "0.3.68")
}
NEW = CLASSES["0.28.1"]
MODELS = ["checkpoints/sd_xl_base_1.0.safetensors", "loras/pixel-art-xl.safetensors"]


def render() -> cg.Graph:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 2, "color": 255}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }


def diffusion() -> cg.Graph:
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a {red|blue} hat", "clip": ["1", 1]}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 1}},
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 18446744073709551615,
                "steps": 20,
                "cfg": 8,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["3", 0],
            },
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "x"}},
    }


def found(graph: Any, **options: Any) -> list[tuple[str, str, str]]:
    options.setdefault("models", MODELS)
    classes = options.pop("classes", NEW)
    return [(item.node, item.field, item.message) for item in cg.check_graph(graph, classes, **options)]


@pytest.mark.parametrize("version", CLASSES)
def test_good_graphs_pass(version: str) -> None:
    assert found(render(), classes=CLASSES[version]) == []
    assert found(diffusion(), classes=CLASSES[version]) == []


@pytest.mark.parametrize(
    ("node", "field", "value", "message"),
    [
        ("4", "steps", 0, "0 is below the smallest value, 1"),
        ("4", "steps", 10001, "10001 is above the largest value, 10000"),
        ("4", "steps", "20", "'20' is no INT"),
        ("4", "steps", True, "True is no INT"),
        ("4", "steps", 20.5, "20.5 is no INT"),
        ("4", "cfg", "8", "'8' is no FLOAT"),
        ("4", "denoise", 1.5, "1.5 is above the largest value, 1.0"),
        ("4", "seed", -1, "-1 is below the smallest value, 0"),
        ("4", "sampler_name", "eulr", "'eulr' is not one of its 44 choices; nearest: euler"),
        ("2", "text", 5, "5 is no STRING"),
        ("2", "text", "a {{ subject }}", "a placeholder was left in: 'a {{ subject }}'"),
        ("2", "text", "a ${SUBJECT}", "a placeholder was left in: 'a ${SUBJECT}'"),
        ("2", "text", "<your prompt here>", "a placeholder was left in: '<your prompt here>'"),
        ("2", "text", "YOUR_PROMPT_HERE", "a placeholder was left in: 'YOUR_PROMPT_HERE'"),
        ("2", "text", "{% if x %}", "a placeholder was left in: '{% if x %}'"),
        ("1", "ckpt_name", 5, "5 is not among the models of checkpoints: sd_xl_base_1.0.safetensors"),
        ("4", "model", ["9", 0], "link to node '9', which is not in the graph"),
        ("4", "model", [1, 0], "link to node 1: write the id as a string"),
        ("4", "model", ["1"], "['1'] is no link; a link is [node id, output slot]"),
        ("4", "model", ["1", "0"], "['1', '0'] is no link; a link is [node id, output slot]"),
        ("4", "model", ["1", 3], "node 1 has 3 outputs, slot 3 is none of them"),
        ("4", "model", ["1", -1], "node 1 has 3 outputs, slot -1 is none of them"),
        ("4", "model", ["1", 1], "node 1 gives CLIP at slot 1, MODEL is wanted"),
        ("4", "sampler_name", ["2", 0], "node 2 gives CONDITIONING at slot 0, COMBO is wanted"),
        ("4", "stepz", 20, "the class has no such input; nearest: steps"),
        (
            "1",
            "ckpt_name",
            "sd_xl_base_1.safetensors",
            "'sd_xl_base_1.safetensors' is not among the models of checkpoints: sd_xl_base_1.0.safetensors",
        ),
    ],
)
def test_each_fault_names_node_and_field(node: str, field: str, value: Any, message: str) -> None:
    graph = diffusion()
    graph[node]["inputs"][field] = value
    assert (node, field, message) in found(graph)
    assert len(found(graph)) == 1


@pytest.mark.parametrize(
    "text",
    ["a {red|{dark|light}} hat", "{{red|blue}|{dark|light}}", "<lora:pixel:1>", "5 %", "$5 {a|b}", "<3", "your {a}"],
)
def test_what_only_looks_like_a_placeholder_is_none(text: str) -> None:
    graph = diffusion()
    graph["2"]["inputs"]["text"] = text
    graph["6"]["inputs"]["filename_prefix"] = "%date:yyyy-MM-dd%/%KSampler.seed%"
    assert found(graph) == []


@pytest.mark.parametrize("wrong", [{}, {"inputs": []}, {"inputs": None}])
def test_inputs_that_are_no_object_are_told_with_their_node(wrong: dict[str, Any]) -> None:
    graph = {**render(), "3": {"class_type": "EmptyImage", **wrong}}
    (finding, *sizes) = cg.check_text(json.dumps(graph), NEW, file="a.json")
    assert finding.describe() == "a.json: node 3 (EmptyImage), inputs: the inputs are missing, or no object"
    assert {size.node for size in sizes} == {"1"}
    with pytest.raises(ValueError, match="node 3: the inputs are missing, or no object"):
        cg.set_inputs(graph, {"3": {"width": 8}})


def test_missing_input_and_unknown_class() -> None:
    graph = render()
    del graph["2"]["inputs"]["images"]
    graph["1"]["class_type"] = "EmptyImag"
    assert found(graph) == [
        ("1", "class_type", "no such node class; nearest: EmptyImage"),
        ("2", "images", "required input is missing"),
    ]


def test_optional_input_may_be_missing_but_not_wrong() -> None:
    classes = {"Out": {"input": {"optional": {"n": ["INT", {"max": 3}]}}, "output": [], "output_node": True}}
    assert found({"1": {"class_type": "Out", "inputs": {}}}, classes=classes) == []
    graph = {"1": {"class_type": "Out", "inputs": {"n": 4}}}
    assert found(graph, classes=classes) == [("1", "n", "4 is above the largest value, 3")]


def test_no_output_node() -> None:
    graph = render()
    del graph["2"]
    assert found(graph) == [("", "", "no output node (such as SaveImage), so there is nothing to run")]


def test_cycle_is_named() -> None:
    graph: cg.Graph = {
        "1": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }
    assert found(graph) == [("1", "", "links form a cycle: 1 <- 2 <- 1")]


def test_two_paths_to_one_node_are_no_cycle() -> None:
    assert cg.find_cycle(diffusion()) == []


def test_a_long_chain_is_no_problem_for_the_stack() -> None:
    graph: cg.Graph = {str(i): {"class_type": "ImageInvert", "inputs": {"image": [str(i + 1), 0]}} for i in range(5000)}
    assert cg.find_cycle(graph) == []
    graph["4999"]["inputs"]["image"] = ["0", 0]
    assert len(cg.find_cycle(graph)) == 5001


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"nodes": [], "links": []}, "ui"),
        ({"prompt": render(), "client_id": "x"}, "wrapped"),
        (render(), "api"),
        ({"prompt": {"class_type": "EmptyImage", "inputs": {}}}, "api"),
        ({}, "unknown"),
        ([], "unknown"),
        ("x", "unknown"),
        ({"1": {"inputs": {}}}, "unknown"),
    ],
)
def test_format_is_told(document: Any, kind: str) -> None:
    assert cg.detect_format(document) == kind
    assert (kind == "api") == (not cg.check_graph(document) or cg.check_graph(document)[0].node != "")


def test_format_messages_say_what_to_do() -> None:
    assert found({"nodes": []})[0][2] == "this is the browser's format (nodes and links); save it with Export (API)"
    assert "inside its `prompt`" in found({"prompt": render()})[0][2]
    assert found({**render(), "9": {"inputs": {}}}) == [("", "", "no class_type in: 9")]


def test_live_classes_decide_about_models_by_themselves() -> None:
    live = copy.deepcopy(NEW)
    live["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = ["other.safetensors"]
    assert found(diffusion(), classes=live, models=None) == [
        ("1", "ckpt_name", "'sd_xl_base_1.0.safetensors' is not one of: other.safetensors")
    ]


def test_the_files_of_a_recording_are_not_those_of_the_host() -> None:
    recorded = copy.deepcopy(NEW)
    recorded["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = ["other.safetensors"]
    assert found(diffusion(), classes=recorded) == []
    graph = diffusion()
    graph["1"]["inputs"]["ckpt_name"] = "other.safetensors"
    assert [one[:2] for one in found(graph, classes=recorded)] == [("1", "ckpt_name")]
    graph = render()
    graph["2"]["inputs"]["images"] = ["3", 0]
    graph["3"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}  # this server's own example
    assert found(graph, input_files=["a.png"]) == [("3", "image", "'example.png' is not one of: a.png")]
    graph = diffusion()
    graph["7"] = {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}}  # no file
    assert found(graph) == []


def test_without_classes_structure_and_models_are_judged() -> None:
    graph = diffusion()
    graph["1"]["inputs"]["ckpt_name"] = "absent.safetensors"
    graph["4"]["inputs"]["steps"] = -5
    assert [item[:2] for item in found(graph, classes=None)] == [("1", "ckpt_name")]


def test_lora_name_comes_from_the_catalogue() -> None:
    graph = diffusion()
    inputs = {"model": ["1", 0], "clip": ["1", 1], "lora_name": "pixel-art-xl.safetensors"}
    graph["8"] = {"class_type": "LoraLoader", "inputs": {**inputs, "strength_model": 1.0, "strength_clip": 1.0}}
    assert found(graph) == []
    assert found(graph, models=MODELS[:1]) == [
        ("8", "lora_name", "'pixel-art-xl.safetensors' is not among the models of loras: (none)")
    ]


def test_a_list_that_a_recording_cannot_hold_is_left_to_the_running_server() -> None:
    graph = render()
    graph["3"] = {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "4x.pth"}}
    assert found(graph) == []
    assert found(graph, models=None) == [("3", "model_name", "'4x.pth' is not one of: (none)")]


def test_input_image_must_be_there() -> None:
    graph = render()
    graph["2"]["inputs"]["images"] = ["3", 0]
    graph["3"] = {"class_type": "LoadImage", "inputs": {"image": "a.png", "upload": "image"}}
    assert found(graph, input_files=["a.png"]) == []
    assert found(graph, input_files=["b.png"]) == [("3", "image", "'a.png' is not one of: b.png")]


def test_members_of_dynamic_inputs_are_left_to_the_server() -> None:
    graph = render()
    graph["3"] = {"class_type": "BatchImagesNode", "inputs": {"images.image0": ["1", 0]}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    assert found(graph) == []


def test_wrapped_values_are_literals() -> None:
    graph = render()
    graph["1"]["inputs"]["width"] = {"__value__": 0}
    assert found(graph) == [("1", "width", "0 is below the smallest value, 1")]


@pytest.mark.parametrize(
    ("given_type", "wanted", "match"),
    [
        ("IMAGE", "IMAGE", True),
        ("IMAGE", "MASK", False),
        ("INT,FLOAT", "FLOAT", True),
        ("STRING", "INT, FLOAT", False),
        ("*", "MASK", True),
        ("IMAGE", "*", True),
        (["a"], "COMBO", True),
        (["a"], ["b"], True),
        ("COMFY_MATCHTYPE_V3", "IMAGE", True),
    ],
)
def test_types_match(given_type: Any, wanted: Any, match: bool) -> None:
    assert cg.types_match(given_type, wanted) is match


@pytest.mark.parametrize("value", [511, 504, 2056, 1025, 4000.0, 1020.0])
def test_sizes_outside_what_sdxl_takes(value: float) -> None:
    graph = diffusion()
    graph["3"]["inputs"]["height"] = value
    (finding,) = cg.check_sizes(graph, NEW, file="a.json")
    assert finding.describe() == (
        f"a.json: node 3 (EmptyLatentImage), height: {value} is no multiple of 8 from 512 to 2048"
    )


@pytest.mark.parametrize("value", [1.0, 0.25, 1])
def test_a_share_of_the_picture_is_no_size(value: float) -> None:
    graph: cg.Graph = {"1": {"class_type": "ConditioningSetAreaPercentage", "inputs": {"width": value}}}
    assert cg.check_sizes(graph, NEW) == []


@pytest.mark.parametrize("value", [512, 2048, 1016, 1024.0, ["1", 0]])
def test_sizes_that_sdxl_takes(value: Any) -> None:
    graph = diffusion()
    graph["3"]["inputs"]["height"] = value
    assert cg.check_sizes(graph, NEW) == cg.check_sizes(graph) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ('{"1": {}, "1": {}}', "the key '1' is there twice"),
        ('{"1": {"class_type": "EmptyImage", "inputs": {"width": NaN}}}', "NaN is no JSON value"),
    ],
)
def test_text_that_is_no_json(text: str, words: str) -> None:
    (finding,) = cg.check_text(text, NEW, file="a.json")
    assert finding.file == "a.json"
    assert words in finding.message


def test_text_gets_its_sizes_checked() -> None:
    assert [item.field for item in cg.check_text(json.dumps(render()), NEW)] == ["width", "height"]


def test_set_inputs_copies_and_refuses_unknown_names() -> None:
    graph = render()
    assert cg.set_inputs(graph, {"1": {"color": 7}})["1"]["inputs"]["color"] == 7
    assert graph["1"]["inputs"]["color"] == 255
    with pytest.raises(ValueError, match="no node '9'; it has 1, 2"):
        cg.set_inputs(graph, {"9": {"color": 7}})
    with pytest.raises(ValueError, match="no input 'colour'; it has width"):
        cg.set_inputs(graph, {"1": {"colour": 7}})


def test_used_classes_once_each() -> None:
    assert cg.used_classes(diffusion())[:3] == ["CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage"]
    assert cg.used_classes({**render(), "3": render()["1"]}) == ["EmptyImage", "SaveImage"]


def default_for(kind: Any, options: dict[str, Any]) -> Any:
    """A literal that an input of this kind takes, or None where only a link does."""
    choices = cg.choices_of(kind, options)
    if choices is not None:
        return choices[0] if choices else None
    if kind in ("INT", "FLOAT", "STRING", "BOOLEAN"):
        return options.get("default", {"INT": 1, "FLOAT": 1.0, "STRING": "", "BOOLEAN": False}[kind])
    return None


@pytest.mark.parametrize("version", CLASSES)
def test_the_servers_own_defaults_are_accepted_for_every_class(version: str) -> None:
    judged = 0
    for name, info in CLASSES[version].items():
        for field, (kind, options, _) in cg.input_specs(info).items():
            value = default_for(kind, options)
            if value is not None:
                assert cg.judge_literal(value, kind, options) == "", (name, field)
                judged += 1
    assert judged > 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(
    document=JSON
    | st.dictionaries(st.text(max_size=3), st.fixed_dictionaries({"class_type": JSON}, optional={"inputs": JSON}))
)
def test_any_json_gets_an_answer(document: Any) -> None:
    for finding in cg.check_text(json.dumps(document), NEW, file="a.json", models=MODELS, input_files=[]):
        assert finding.describe().startswith("a.json: ")


FIELDS = [(node, field) for node, body in diffusion().items() for field in body["inputs"]]


@settings(max_examples=300)
@given(where=st.sampled_from(FIELDS), value=JSON)
def test_whatever_stands_in_an_input_the_answer_points_there(where: tuple[str, str], value: Any) -> None:
    node, field = where
    graph = diffusion()
    graph[node]["inputs"][field] = value
    for finding in cg.check_graph(graph, NEW, models=MODELS):
        assert (finding.node, finding.field) == (node, field) or "cycle" in finding.message


@given(where=st.sampled_from(FIELDS))
def test_a_missing_required_input_is_always_found(where: tuple[str, str]) -> None:
    node, field = where
    graph = diffusion()
    del graph[node]["inputs"][field]
    assert found(graph) == [(node, field, "required input is missing")]


@given(order=st.permutations(list(diffusion())))
def test_the_order_of_nodes_does_not_matter(order: list[str]) -> None:
    graph = diffusion()
    assert found({node: graph[node] for node in order}) == []


@given(edges=st.dictionaries(st.integers(0, 7), st.lists(st.integers(0, 7), max_size=3), max_size=8))
def test_cycles_are_found_exactly_where_no_order_of_execution_exists(edges: dict[int, list[int]]) -> None:
    graph: cg.Graph = {
        str(node): {"class_type": "X", "inputs": {f"in{i}": [str(source), 0] for i, source in enumerate(sources)}}
        for node, sources in edges.items()
    }
    waiting = {node: {source for source in sources if source in edges} for node, sources in edges.items()}
    while ready := [node for node, sources in waiting.items() if not sources]:
        for node in ready:
            del waiting[node]
        for sources in waiting.values():
            sources.difference_update(ready)
    cycle = cg.find_cycle(graph)
    assert bool(cycle) == bool(waiting)
    if cycle:
        assert cycle[0] == cycle[-1]
        for user, source in itertools.pairwise(cycle):
            assert [source, 0] in graph[user]["inputs"].values()
