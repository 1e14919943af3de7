"""Judge ComfyUI workflow graphs without a server.

A graph in API format is one JSON object: node id to `{"class_type": ..., "inputs": {...}}`, where an input is a literal
or a link `[node id, output slot]`. The browser saves another format (`nodes` and `links`); the API answers 500 to it.
What a node class takes and gives comes from the server's own `/object_info`, live or recorded.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

Graph = dict[str, dict[str, Any]]
Classes = Mapping[str, Mapping[str, Any]]

SIZE_MIN_PX = 512
SIZE_MAX_PX = 2048
SIZE_STEP_PX = 8  # a latent cell covers 8 by 8 pixels

# The folder below models/ that fills an input's choices. A recorded /object_info comes from a server without models,
# so these are held against the catalogue instead.
MODEL_FOLDERS = {
    "ckpt_name": "checkpoints",
    "lora_name": "loras",
    "vae_name": "vae",
    "unet_name": "diffusion_models",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
}

# What stands in such a list though no file does.
NO_MODELS = {"vae_name": ("pixel_space",)}

# Types whose members the server makes up while it reads the graph ("name.member"), or that take whatever comes.
DYNAMIC_TYPES = frozenset({"COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3"})
ANY_TYPES = frozenset({"*", "COMFY_MATCHTYPE_V3"}) | DYNAMIC_TYPES

# {a|{b|c}} is a choice of the browser's, and ComfyUI itself fills in %date% and %node.widget% of a file's name.
PLACEHOLDER = re.compile(r"\{\{[^{}]*\}\}|\{%[^{}]*%\}|\$\{\w+\}|<your\b[^<>]*>|\bYOUR_[A-Z0-9_]+\b")
CHOICES_SHOWN = 8
INPUTS_MESSAGE = "the inputs are missing, or no object"


class Finding(NamedTuple):
    """One thing wrong with a graph; `node` and `field` are empty where the whole file is meant."""

    file: str
    node: str
    class_type: str
    field: str
    message: str

    def describe(self) -> str:
        """One line for a person."""
        where = f"node {self.node}" if self.node else ""
        if self.class_type:
            where += f" ({self.class_type})"
        return ": ".join(
            part for part in (self.file, ", ".join(p for p in (where, self.field) if p), self.message) if part
        )


class _DuplicateKeyError(ValueError):
    pass


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise _DuplicateKeyError(f"the key {key!r} is there twice in one object, and only the last would count")
        seen[key] = value
    return seen


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def parse_json(text: str) -> Any:
    """Read JSON; ValueError also for what Python would let pass: a key given twice, NaN and Infinity."""
    return json.loads(text, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)


def detect_format(document: Any) -> str:
    """Tell V(api), V(ui) (saved by the browser), V(wrapped) (the body of POST /prompt) and V(unknown) apart."""
    if not isinstance(document, dict):
        return "unknown"
    if isinstance(document.get("nodes"), list):
        return "ui"
    if isinstance(document.get("prompt"), dict) and "class_type" not in document["prompt"]:
        return "wrapped"
    if document and all(isinstance(node, dict) and "class_type" in node for node in document.values()):
        return "api"
    return "unknown"


def literal(value: Any) -> Any:
    """The value behind `{"__value__": ...}`, which is how a list is given that is not a link."""
    return value["__value__"] if isinstance(value, dict) and set(value) == {"__value__"} else value


def inputs_of(node: Mapping[str, Any]) -> dict[str, Any] | None:
    """The inputs of a node, or None where there is no object of them, which the server answers with 500."""
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, dict) else None


def is_link(value: Any) -> bool:
    """Every bare list is read as a link by the server."""
    return isinstance(value, list)


def used_classes(graph: Graph) -> list[str]:
    """Node classes in the order in which the graph names them, each once."""
    return list(dict.fromkeys(str(node["class_type"]) for node in graph.values()))


def set_inputs(graph: Graph, values: Mapping[str, Mapping[str, Any]]) -> Graph:
    """A copy of `graph` with inputs replaced; ValueError for a node or an input that the graph does not name."""
    changed = copy.deepcopy(graph)
    for node_id, inputs in values.items():
        if node_id not in changed:
            raise ValueError(f"the graph has no node {node_id!r}; it has {', '.join(changed)}")
        known = changed[node_id].get("inputs")
        if not isinstance(known, dict):
            raise ValueError(f"node {node_id}: {INPUTS_MESSAGE}")
        for name, value in inputs.items():
            if name not in known:
                raise ValueError(f"node {node_id} has no input {name!r}; it has {', '.join(known)}")
            known[name] = value
    return changed


def input_specs(info: Mapping[str, Any]) -> dict[str, tuple[Any, dict[str, Any], bool]]:
    """Type, options and whether it is required, of each input that a graph can give."""
    specs: dict[str, tuple[Any, dict[str, Any], bool]] = {}
    for group in ("required", "optional"):
        for name, spec in info.get("input", {}).get(group, {}).items():
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            specs[name] = (spec[0], options, group == "required")
    return specs


def choices_of(kind: Any, options: Mapping[str, Any]) -> list[Any] | None:
    """The closed set of values, or None where there is none or only the running server knows it."""
    if isinstance(kind, list):
        return kind
    return options.get("options") if kind == "COMBO" else None


def types_match(given: Any, wanted: Any) -> bool:
    """Whether an output of type `given` may feed an input of type `wanted`; both may be unions with commas."""
    names = ["COMBO" if isinstance(kind, list) else str(kind) for kind in (given, wanted)]
    left, right = ({part.strip() for part in name.split(",")} for name in names)
    return bool(left & right or (left | right) & ANY_TYPES)


def _name_choices(value: Any, choices: list[Any]) -> str:
    if len(choices) <= CHOICES_SHOWN:
        return f"{value!r} is not one of: {', '.join(map(str, choices)) or '(none)'}"
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=3)
    return f"{value!r} is not one of its {len(choices)} choices" + (f"; nearest: {', '.join(near)}" if near else "")


def _judge_number(value: Any, kind: str, options: Mapping[str, Any]) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{value!r} is no {kind}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r} is no finite number"
    if kind == "INT" and value != int(value):
        return f"{value!r} is no {kind}"
    if options.get("min") is not None and value < options["min"]:
        return f"{value} is below the smallest value, {options['min']}"
    if options.get("max") is not None and value > options["max"]:
        return f"{value} is above the largest value, {options['max']}"
    return ""


def judge_literal(value: Any, kind: Any, options: Mapping[str, Any]) -> str:
    """What is wrong with a literal for this input, or nothing.

    Stricter than the server, which turns "20" into 20: a template says what it means.
    """
    choices = choices_of(kind, options)
    if choices is not None:
        values = value if options.get("multiselect") and isinstance(value, list) else [value]
        return next((_name_choices(one, choices) for one in values if one not in choices), "")
    if kind in ("INT", "FLOAT"):
        return _judge_number(value, kind, options)
    if kind == "STRING" and not isinstance(value, str):
        return f"{value!r} is no STRING"
    if kind == "BOOLEAN" and not isinstance(value, bool):
        return f"{value!r} is no BOOLEAN"
    return ""


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def find_cycle(graph: Graph) -> list[str]:
    """Node ids along one cycle, the first repeated at the end; empty where links lead nowhere twice."""

    def sources(node_id: str) -> Iterator[str]:
        for value in (inputs_of(graph[node_id]) or {}).values():
            if is_link(value) and value and isinstance(value[0], str) and value[0] in graph:
                yield value[0]

    done: set[str] = set()
    for start in graph:
        if start in done:
            continue
        path = [start]
        pending = [sources(start)]
        while path:
            source = next(pending[-1], None)
            if source is None:
                done.add(path.pop())
                pending.pop()
            elif source in path:
                return [*path[path.index(source) :], source]
            elif source not in done:
                path.append(source)
                pending.append(sources(source))
    return []


class _Judge:
    """Collects the findings of one graph."""

    def __init__(
        self,
        graph: Graph,
        classes: Classes | None,
        file: str,
        models: Collection[str] | None,
        input_files: Collection[str] | None,
    ) -> None:
        self.graph = graph
        self.classes = classes
        self.file = file
        self.models = models
        self.input_files = input_files
        self.findings: list[Finding] = []

    def add(self, message: str, node: str = "", field: str = "") -> None:
        class_type = str(self.graph[node].get("class_type", "")) if node else ""
        self.findings.append(Finding(self.file, node, class_type, field, message))

    def judge(self) -> list[Finding]:
        for node_id, node in self.graph.items():
            inputs = inputs_of(node)
            if inputs is None:
                self.add(INPUTS_MESSAGE, node_id, "inputs")
                continue
            for name, value in inputs.items():
                self.judge_input(node_id, name, value)
            self.judge_class(node_id, inputs)
        cycle = find_cycle(self.graph)
        if cycle:
            self.add(f"links form a cycle: {' <- '.join(cycle)}", cycle[0])
        if self.classes is not None and not any(self.info(node).get("output_node") for node in self.graph):
            self.add("no output node (such as SaveImage), so there is nothing to run")
        return self.findings

    def info(self, node_id: str) -> Mapping[str, Any]:
        return (self.classes or {}).get(str(self.graph[node_id].get("class_type")), {})

    def judge_input(self, node_id: str, name: str, value: Any) -> None:
        """What needs no knowledge of the class: links resolve, nothing is left to fill in."""
        for text in _strings(value):
            if PLACEHOLDER.search(text):
                self.add(f"a placeholder was left in: {text!r}", node_id, name)
                return
        if not is_link(value):
            return
        if len(value) != 2 or isinstance(value[1], bool) or not isinstance(value[1], int):
            self.add(f"{value!r} is no link; a link is [node id, output slot]", node_id, name)
        elif not isinstance(value[0], str):
            self.add(f"link to node {value[0]!r}: write the id as a string", node_id, name)
        elif value[0] not in self.graph:
            self.add(f"link to node {value[0]!r}, which is not in the graph", node_id, name)

    def judge_class(self, node_id: str, inputs: Mapping[str, Any]) -> None:
        if self.classes is None:
            for name, value in inputs.items():
                if name in MODEL_FOLDERS and self.models is not None and not is_link(value):
                    self.judge_model(node_id, name, literal(value), self.models)
            return
        info = self.info(node_id)
        if not info:
            near = difflib.get_close_matches(str(self.graph[node_id]["class_type"]), self.classes, n=1)
            self.add("no such node class" + (f"; nearest: {', '.join(near)}" if near else ""), node_id, "class_type")
            return
        specs = input_specs(info)
        for name, (kind, options, required) in specs.items():
            if name in inputs:
                self.judge_typed(node_id, name, inputs[name], kind, options)
            elif required and not (isinstance(kind, str) and kind in DYNAMIC_TYPES):
                self.add("required input is missing", node_id, name)
        for name in inputs:
            dynamic = name.split(".", 1)[0] in specs and "." in name
            upload = name == "upload" and any(options.get("image_upload") for _, options, _ in specs.values())
            if name not in specs and not dynamic and not upload:
                near = difflib.get_close_matches(name, specs, n=1)
                self.add("the class has no such input" + (f"; nearest: {near[0]}" if near else ""), node_id, name)

    def judge_typed(self, node_id: str, name: str, value: Any, kind: Any, options: Mapping[str, Any]) -> None:
        if is_link(value):
            self.judge_link(node_id, name, value, kind)
            return
        plain = literal(value)
        choices = choices_of(kind, options)
        # A recording lists the files of the server that it was made on, if any.
        if choices is not None and name in MODEL_FOLDERS and self.models is not None:
            self.judge_model(node_id, name, plain, self.models)
            return
        if choices is not None and options.get("image_upload") and self.input_files is not None:
            if plain not in self.input_files:
                self.add(_name_choices(plain, sorted(self.input_files)), node_id, name)
            return
        if choices == [] and self.models is not None and isinstance(plain, str):
            return  # only the running server can tell
        message = judge_literal(plain, kind, options)
        if message:
            self.add(message, node_id, name)

    def judge_link(self, node_id: str, name: str, value: list[Any], kind: Any) -> None:
        source = value[0] if len(value) == 2 else None
        if not isinstance(source, str) or source not in self.graph or not self.info(source):
            return
        outputs = self.info(source).get("output", [])
        slot = value[1]
        if isinstance(slot, bool) or not isinstance(slot, int):
            return
        if not 0 <= slot < len(outputs):
            self.add(f"node {source} has {len(outputs)} outputs, slot {slot} is none of them", node_id, name)
        elif not types_match(outputs[slot], kind):
            wanted = "COMBO" if isinstance(kind, list) else kind
            self.add(f"node {source} gives {outputs[slot]} at slot {slot}, {wanted} is wanted", node_id, name)

    def judge_model(self, node_id: str, name: str, value: Any, models: Collection[str]) -> None:
        folder = MODEL_FOLDERS[name]
        held = sorted(model.split("/", 1)[1] for model in models if model.startswith(f"{folder}/"))
        if value not in (*held, *NO_MODELS.get(name, ())):
            self.add(f"{value!r} is not among the models of {folder}: {', '.join(held) or '(none)'}", node_id, name)


FORMAT_MESSAGES = {
    "ui": "this is the browser's format (nodes and links); save it with Export (API)",
    "wrapped": "the graph is wrapped as a request body; keep only what is inside its `prompt`",
    "unknown": "no graph: one object of nodes is expected, each with a class_type",
}


def check_graph(
    document: Any,
    classes: Classes | None = None,
    *,
    file: str = "",
    models: Collection[str] | None = None,
    input_files: Collection[str] | None = None,
) -> list[Finding]:
    """Everything that is wrong with a graph in API format, in the order of its nodes.

    `classes` is what `/object_info` answers; without it only the structure and the model names are judged.
    `models` ("folder/file") and `input_files` stand for the lists that a recorded `/object_info` cannot hold.
    Leave both out where `classes` comes from the running server.
    """
    if detect_format(document) != "api":
        message = FORMAT_MESSAGES[detect_format(document)]
        broken = [str(key) for key, node in document.items()] if isinstance(document, dict) else []
        if detect_format(document) == "unknown" and broken:
            broken = [key for key in broken if not (isinstance(document[key], dict) and "class_type" in document[key])]
            message = f"no class_type in: {', '.join(broken)}"
        return [Finding(file, "", "", "", message)]
    return _Judge(document, classes, file, models, input_files).judge()


def check_sizes(
    graph: Graph,
    classes: Classes | None = None,
    *,
    file: str = "",
    low_px: int = SIZE_MIN_PX,
    high_px: int = SIZE_MAX_PX,
    step_px: int = SIZE_STEP_PX,
) -> list[Finding]:
    """Hold every literal width and height to the sizes that SDXL is asked for.

    Where `classes` says so, 4000.0 is a size too, and a share of the picture (FLOAT) is none.
    """
    findings = []
    for node_id, node in graph.items():
        specs = input_specs((classes or {}).get(str(node["class_type"]), {}))
        for name in ("width", "height"):
            value = literal((inputs_of(node) or {}).get(name))
            kind = specs[name][0] if name in specs else None
            number = isinstance(value, int) or (isinstance(value, float) and kind == "INT")
            if isinstance(value, bool) or not number or kind == "FLOAT":
                continue
            if not low_px <= value <= high_px or value % step_px:
                message = f"{value} is no multiple of {step_px} from {low_px} to {high_px}"
                findings.append(Finding(file, node_id, str(node["class_type"]), name, message))
    return findings


def check_text(
    text: str,
    classes: Classes | None = None,
    *,
    file: str = "",
    models: Collection[str] | None = None,
    input_files: Collection[str] | None = None,
) -> list[Finding]:
    """The findings of a whole workflow file: JSON, format, graph and sizes."""
    try:
        document = parse_json(text)
    except ValueError as error:
        return [Finding(file, "", "", "", f"not valid JSON: {error}")]
    findings = check_graph(document, classes, file=file, models=models, input_files=input_files)
    if detect_format(document) == "api":
        findings += check_sizes(document, classes, file=file)
    return findings
