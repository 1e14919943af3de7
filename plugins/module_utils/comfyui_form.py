"""Turn graphs in API format into the browser's form, read forms back, and set in both what people change.

ComfyUI's browser opens only its own format, a drawing: nodes with places and widgets in order, links in a list. The
server runs only the API format. One of each is kept per workflow, and `form_differences` says where they disagree.
Source of the format: forms that frontend 1.45.21 (of ComfyUI 0.28.1) saved and loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Graph = dict[str, dict[str, Any]]
Form = dict[str, Any]

# Widgets that the browser adds to an input, as a value behind it: the API format has none of them.
SEEDS = ("seed", "noise_seed")
KEEP_SEED = "fixed"
UPLOAD = {"name": "upload", "type": "IMAGEUPLOAD", "widget": {"name": "upload"}, "link": None}
UPLOAD_VALUE = "image"

# Drawing, in the editor's units.
COLUMN = 460
ROW_GAP = 60
ROW_HEIGHT = 26
WIDTH = 400
TEXT_HEIGHT = 160
PICTURE_HEIGHT = 360

ALWAYS = 0  # a node's mode: others are muted or bypassed, which the API format says by leaving the node out

# What people set without knowing a graph: the setting, and the sampler's input that leads to the node with it.
SAMPLER_INPUTS = ("seed", "steps", "cfg", "denoise")
PROMPT_INPUTS = {"prompt": "positive", "negative_prompt": "negative"}
SIZE_INPUTS = ("width", "height", "batch_size")
SETTINGS = {
    "prompt": str,
    "negative_prompt": str,
    "seed": int,
    "steps": int,
    "cfg": float,
    "width": int,
    "height": int,
    "batch_size": int,
    "denoise": float,
    "checkpoint": str,
}


def _kind_name(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else str(kind)


def _spec(info: Mapping[str, Any], name: str) -> tuple[Any, Mapping[str, Any]]:
    for group in ("required", "optional"):
        spec = info["input"].get(group, {}).get(name)
        if spec:
            return spec[0], spec[1] if len(spec) > 1 else {}
    raise ValueError(f"{info.get('name', 'the class')} has no input {name!r}")


def depths(graph: Graph) -> dict[str, int]:
    """How many links lie behind each node at most. The graph has no cycle."""
    found: dict[str, int] = {}

    def depth(node_id: str) -> int:
        if node_id not in found:
            sources = [value[0] for value in graph[node_id]["inputs"].values() if isinstance(value, list)]
            found[node_id] = max((depth(source) + 1 for source in sources), default=0)
        return found[node_id]

    for node_id in graph:
        depth(node_id)
    return found


def build_form(graph: Graph, classes: Mapping[str, Mapping[str, Any]]) -> Form:
    """The form of a graph that was found to be valid: nodes in columns by depth, in the graph's order.

    Node ids are numbers in the browser. An input's place among the graph's literals is the widget's place, so a graph
    names its literals in the order of the class, as Export (API) does. Seeds stay as they are after a run.
    """
    depth = depths(graph)
    links: list[list[Any]] = []
    nodes: list[dict[str, Any]] = []
    next_y: dict[int, int] = {}
    for order, (node_id, node) in enumerate(sorted(graph.items(), key=lambda item: (depth[item[0]], int(item[0])))):
        info = classes[node["class_type"]]
        sockets = [(name, value) for name, value in node["inputs"].items() if isinstance(value, list)]
        inputs: list[dict[str, Any]] = []
        for name, (source, slot) in sockets:
            kind = _kind_name(_spec(info, name)[0])
            links.append([len(links) + 1, int(source), slot, int(node_id), len(inputs), kind])
            inputs.append({"name": name, "type": kind, "link": len(links)})
        values: list[Any] = []
        height = ROW_HEIGHT * max(len(sockets), len(info["output"]))
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                continue
            kind, options = _spec(info, name)
            inputs.append({"name": name, "type": _kind_name(kind), "widget": {"name": name}, "link": None})
            values.append(value)
            height += TEXT_HEIGHT if options.get("multiline") else ROW_HEIGHT
            if name in SEEDS:
                values.append(KEEP_SEED)
                height += ROW_HEIGHT
            if options.get("image_upload"):
                inputs.append(copy.deepcopy(UPLOAD))
                values.append(UPLOAD_VALUE)
                height += ROW_HEIGHT
        if node["class_type"] in ("LoadImage", "SaveImage", "PreviewImage"):
            height += PICTURE_HEIGHT
        column = depth[node_id]
        y = next_y.get(column, 0)
        next_y[column] = y + height + ROW_GAP
        nodes.append(
            {
                "id": int(node_id),
                "type": node["class_type"],
                "title": node["_meta"]["title"],
                "pos": [column * COLUMN, y],
                "size": [WIDTH, height],
                "flags": {},
                "order": order,
                "mode": ALWAYS,
                "inputs": inputs,
                "outputs": [
                    {"name": name, "type": _kind_name(kind), "links": []}
                    for name, kind in zip(info["output_name"], info["output"], strict=True)
                ],
                "properties": {"Node name for S&R": node["class_type"]},
                "widgets_values": values,
            }
        )
    by_id = {node["id"]: node for node in nodes}
    for number, source, slot, *_ in links:
        by_id[source]["outputs"][slot]["links"].append(number)
    return {
        "last_node_id": max(by_id),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _widgets(node: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Each input with a widget, and where its value stands in `widgets_values`."""
    index = 0
    for entry in node.get("inputs", []):
        if "widget" in entry:
            if entry.get("type") != UPLOAD["type"]:
                yield entry["name"], index
            index += 2 if entry["name"] in SEEDS else 1
    if index != len(node.get("widgets_values", [])):
        raise ValueError(
            f"node {node['id']} has {len(node.get('widgets_values', []))} widget values where {index} are expected"
        )


def read_form(form: Mapping[str, Any]) -> Graph:
    """The graph that a form shows, as Export (API) would write it.

    ValueError for what this reader does not know: subgraphs, and forms of a frontend before 1.16.
    """
    links = {}
    for link in form["links"]:
        if not isinstance(link, list):
            raise ValueError("links are written as objects; save the form in version 0.4")
        links[link[0]] = [str(link[1]), link[2]]
    graph: Graph = {}
    for node in form["nodes"]:
        if node.get("mode", ALWAYS) != ALWAYS:
            continue
        inputs: dict[str, Any] = {name: node["widgets_values"][index] for name, index in _widgets(node)}
        for entry in node.get("inputs", []):
            if entry.get("link") is not None:
                inputs[entry["name"]] = links[entry["link"]]
        graph[str(node["id"])] = {
            "class_type": node["type"],
            "_meta": {"title": node.get("title", node["type"])},
            "inputs": inputs,
        }
    return graph


def set_form_inputs(form: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> Form:
    """A copy of the form with widgets set, by node id and input name."""
    changed = copy.deepcopy(dict(form))
    nodes = {str(node["id"]): node for node in changed["nodes"]}
    for node_id, inputs in values.items():
        places = dict(_widgets(nodes[node_id]))
        for name, value in inputs.items():
            nodes[node_id]["widgets_values"][places[name]] = value
    return changed


def form_differences(graph: Graph, form: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Where a form shows something else than the graph: node, field, and what differs. Titles count, places do not."""
    try:
        shown = read_form(form)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return [("", "", f"the form cannot be read: {error}")]
    found = [(node_id, "", "the form has no such node") for node_id in graph if node_id not in shown]
    found += [(node_id, "", "the graph has no such node") for node_id in shown if node_id not in graph]
    for node_id in graph:
        if node_id not in shown:
            continue
        left, right = graph[node_id], shown[node_id]
        pairs = [("class_type", left["class_type"], right["class_type"])]
        pairs += [("title", left.get("_meta", {}).get("title", left["class_type"]), right["_meta"]["title"])]
        names = dict.fromkeys([*left["inputs"], *right["inputs"]])
        pairs += [(name, left["inputs"].get(name), right["inputs"].get(name)) for name in names]
        found += [
            (node_id, name, f"the form has {there!r} where the graph has {here!r}")
            for name, here, there in pairs
            if here != there
        ]
    return found


def _behind(graph: Graph, node_id: str, name: str) -> str | None:
    """The node that feeds an input."""
    value = graph[node_id]["inputs"].get(name)
    source = value[0] if isinstance(value, list) and value else None
    return source if isinstance(source, str) and source in graph else None


def _upstream(graph: Graph, start: str | None) -> Iterator[str]:
    """A node and everything that leads to it, nearest first."""
    waiting, seen = [start], set()
    while waiting:
        node_id = waiting.pop(0)
        if node_id is None or node_id in seen:
            continue
        seen.add(node_id)
        yield node_id
        waiting += [_behind(graph, node_id, name) for name in graph[node_id]["inputs"]]


def setting_places(graph: Graph) -> dict[str, list[tuple[str, str]]]:
    """For each setting that this graph has, the inputs that it goes to, as (node id, input name).

    Found from the samplers (nodes with a seed and two prompts): the nearest text behind `positive` and `negative`, the
    nearest size behind `latent_image`, and every loader of a checkpoint.
    """
    places: dict[str, list[tuple[str, str]]] = {}

    def note(setting: str, nodes: Iterable[str], name: str) -> None:
        for node_id in nodes:
            if not isinstance(graph[node_id]["inputs"].get(name, []), list):
                places.setdefault(setting, []).append((node_id, name))
                return

    samplers = [node_id for node_id, node in graph.items() if {"positive", "negative", "seed"} <= node["inputs"].keys()]
    for sampler in samplers:
        for name in SAMPLER_INPUTS:
            note(name, [sampler], name)
        for setting, name in PROMPT_INPUTS.items():
            note(setting, _upstream(graph, _behind(graph, sampler, name)), "text")
        for name in SIZE_INPUTS:
            note(name, _upstream(graph, _behind(graph, sampler, "latent_image")), name)
    for node_id in graph:
        note("checkpoint", [node_id], "ckpt_name")
    return places


def setting_problems(graph: Graph, settings: Any, file: str) -> list[str]:
    """What is wrong with the settings for one graph, one sentence each."""
    if not isinstance(settings, Mapping):
        return [f"{file}: found {settings!r}, expected settings by name: {', '.join(SETTINGS)}."]
    places = setting_places(graph)
    problems = []
    for name, value in settings.items():
        if name not in SETTINGS:
            problems.append(f"{file}: there is no setting {name!r}; there are {', '.join(SETTINGS)}.")
        elif name not in places:
            problems.append(f"{file}: {name} has no place in this graph; it has {', '.join(places) or 'none'}.")
        elif SETTINGS[name] is str and not isinstance(value, str):
            problems.append(f"{file}: {name} is {value!r}, expected text.")
        elif SETTINGS[name] is not str and (isinstance(value, bool) or not isinstance(value, (int, float))):
            problems.append(f"{file}: {name} is {value!r}, expected a number.")
    return problems


def setting_inputs(graph: Graph, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings as inputs by node id, for graph and form alike. The settings have no problems."""
    values: dict[str, dict[str, Any]] = {}
    places = setting_places(graph)
    for name, value in settings.items():
        for node_id, field in places[name]:
            values.setdefault(node_id, {})[field] = value
    return values
