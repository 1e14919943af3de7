"""Validation of a prompt, driven by the node classes as the server reports them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
# What the class checks itself, instead of range and choices: the text of the complaint, or None.
Checks = Mapping[tuple[str, str], Callable[[str], str | None]]

CASTS: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
LONG_LIST = 20


@dataclass
class Verdict:
    """Outcome: `error` is None where at least one output may run."""

    error: Json | None
    outputs: list[str] = field(default_factory=list)
    node_errors: Json = field(default_factory=dict)


def complaint(kind: str, message: str, details: str, **extra: Any) -> Json:
    """Return an error in the shape that all of them share."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def exception_name(error: BaseException) -> str:
    """Type of an exception with its module, without it for built-ins."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def stack() -> list[str]:
    """Traceback of the exception being handled."""
    return traceback.format_tb(sys.exc_info()[2])


def inputs_of(entry: Json) -> Iterator[tuple[str, Any, Json, bool]]:
    """Name, type (or list of choices), options and whether it is required, of each input that a prompt can give."""
    for group in ("required", "optional"):
        for name, spec in entry["input"].get(group, {}).items():
            yield name, spec[0], spec[1] if len(spec) > 1 else {}, group == "required"


def types_match(received: Any, wanted: Any) -> bool:
    """Whether an output may feed an input; types are comma-separated lists, `*` fits all."""
    if received == wanted or "*" in (received, wanted):
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    return bool({part.strip() for part in received.split(",")} & {part.strip() for part in wanted.split(",")})


def literal_error(name: str, kind: Any, options: Json, value: Any) -> Json | None:
    """Complain about a value outside its range or its choices."""
    extra: Json = {"input_name": name, "input_config": [kind, options], "received_value": value}
    if "min" in options and value < options["min"]:
        return complaint("value_smaller_than_min", f"Value {value} smaller than min of {options['min']}", name, **extra)
    if "max" in options and value > options["max"]:
        return complaint("value_bigger_than_max", f"Value {value} bigger than max of {options['max']}", name, **extra)
    if isinstance(kind, list) and value not in kind:
        known = str(kind)
        if len(kind) > LONG_LIST:
            known, extra["input_config"] = f"(list of length {len(kind)})", None
        return complaint("value_not_in_list", "Value not in list", f"{name}: {value!r} not in {known}", **extra)
    return None


@dataclass
class _Checker:
    prompt: Json
    classes: Json
    checks: Checks
    done: dict[str, tuple[bool, list[Json]]] = field(default_factory=dict)

    def check(self, node_id: str, path: tuple[str, ...] = ()) -> bool:
        if node_id in self.done:
            return self.done[node_id][0]
        if node_id in path:
            self._report_cycle((*path[path.index(node_id) :], node_id))
            return False
        node = self.prompt[node_id]
        inputs, class_type = node["inputs"], node["class_type"]
        errors: list[Json] = []
        upstream_valid = True
        for name, kind, options, required in inputs_of(self.classes[class_type]):
            if name not in inputs:
                if required:
                    errors.append(
                        complaint("required_input_missing", "Required input is missing", name, input_name=name)
                    )
            elif isinstance(inputs[name], list):
                error, valid = self._link(name, kind, options, inputs[name], (*path, node_id))
                upstream_valid = upstream_valid and valid
                errors += [error] if error else []
            else:
                errors += self._literal(class_type, name, kind, options, inputs)
        _, earlier = self.done.get(node_id, (True, []))
        errors = earlier + [error for error in errors if error not in earlier]
        self.done[node_id] = (upstream_valid and not errors, errors)
        return self.done[node_id][0]

    def _report_cycle(self, path: tuple[str, ...]) -> None:
        nodes = list(dict.fromkeys(path))
        text = " -> ".join(f"{node_id} ({self.prompt[node_id]['class_type']})" for node_id in path)
        for node_id in nodes:
            error = complaint("dependency_cycle", "Dependency cycle detected", text, node_id=node_id, cycle_nodes=nodes)
            self.done[node_id] = (False, [error])

    def _link(
        self, name: str, kind: Any, options: Json, value: list[Any], path: tuple[str, ...]
    ) -> tuple[Json | None, bool]:
        extra: Json = {"input_name": name, "input_config": [kind, options]}
        if len(value) != 2:
            text = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return complaint("bad_linked_input", text, name, **extra, received_value=value), True
        source, slot = value
        # A link to nowhere raises here; the caller turns that into an error of the node that it was checking.
        received = self.classes[self.prompt[source]["class_type"]]["output"][slot]
        if not types_match(received, kind):
            details = f"{name}, received_type({received}) mismatch input_type({kind})"
            text = "Return type mismatch between linked nodes"
            extra |= {"received_type": received, "linked_node": value}
            return complaint("return_type_mismatch", text, details, **extra), True
        try:
            return None, self.check(source, path)
        except Exception as error:
            extra |= {
                "exception_message": str(error),
                "exception_type": exception_name(error),
                "traceback": stack(),
                "linked_node": value,
            }
            text = "Exception when validating inner node"
            self.done[source] = (False, [complaint("exception_during_inner_validation", text, str(error), **extra)])
            return None, False

    def _literal(self, class_type: str, name: str, kind: Any, options: Json, inputs: Json) -> list[Json]:
        value = inputs[name]
        if isinstance(value, dict) and "__value__" in value:
            value = inputs[name] = value["__value__"]
        if isinstance(kind, str) and kind in CASTS:
            try:
                value = inputs[name] = CASTS[kind](value)
            except (TypeError, ValueError, OverflowError) as error:
                text = f"Failed to convert an input value to a {kind} value"
                extra = {"input_config": [kind, options], "received_value": value, "exception_message": str(error)}
                details = f"{name}, {value}, {error}"
                return [complaint("invalid_input_type", text, details, input_name=name, **extra)]
        own_check = self.checks.get((class_type, name))
        if own_check is None:
            error_found = literal_error(name, kind, options, value)
            return [error_found] if error_found else []
        objection = own_check(value)
        if objection is None:
            return []
        text = "Custom validation failed for node"
        return [complaint("custom_validation_failed", text, f"{name} - {objection}", input_name=name)]


def missing_node(prompt: Json, classes: Json) -> Json | None:
    """Complain about the first node without a class, or of a class that is not there."""
    for node_id, node in prompt.items():
        class_type = node.get("class_type")
        if class_type in classes:
            continue
        title = node.get("_meta", {}).get("title", class_type)
        if "class_type" in node:
            text = f"Node '{title}' not found. The custom node may not be installed."
        else:
            name = title or f"ID #{node_id}"
            text = f"Node '{name}' has no class_type. The workflow may be corrupted or a custom node is missing."
        extra = {"node_id": node_id, "class_type": class_type, "node_title": title}
        return complaint("missing_node_type", text, f"Node ID '#{node_id}'", **extra)
    return None


def validate(prompt: Json, classes: Json, checks: Checks, targets: list[str] | None = None) -> Verdict:
    """Check the nodes that lead to each output; values are converted to their types in place."""
    error = missing_node(prompt, classes)
    if error is not None:
        return Verdict(error)
    outputs = [
        node_id
        for node_id, node in prompt.items()
        if classes[node["class_type"]]["output_node"] and (targets is None or node_id in targets)
    ]
    if not outputs:
        return Verdict(complaint("prompt_no_outputs", "Prompt has no outputs", ""))
    checker = _Checker(prompt, classes, checks)
    good: list[str] = []
    summary: list[str] = []
    node_errors: Json = {}
    for output in outputs:
        try:
            valid = checker.check(output)
        except Exception as problem:
            extra = {"exception_type": exception_name(problem), "traceback": stack()}
            text = "Exception when validating node"
            checker.done[output] = (False, [complaint("exception_during_validation", text, str(problem), **extra)])
            valid = False
        if valid:
            good.append(output)
            continue
        summary += [f"{found['message']}: {found['details']}" for found in checker.done[output][1]]
        for node_id, (node_valid, errors) in checker.done.items():
            if not node_valid and errors:
                entry = node_errors.setdefault(
                    node_id,
                    {"errors": errors, "dependent_outputs": [], "class_type": prompt[node_id]["class_type"]},
                )
                entry["dependent_outputs"].append(output)
    if good:
        return Verdict(None, good, node_errors)
    text = "Prompt outputs failed validation"
    failed = complaint("prompt_outputs_failed_validation", text, "\n".join(summary))
    return Verdict(failed, [], node_errors)
