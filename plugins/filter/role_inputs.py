"""Filters that refuse bad input: a role's variables against its specification, a site's against its defaults."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

# What Ansible itself takes for a boolean, as text.
BOOLEANS = {"1", "0", "y", "n", "yes", "no", "t", "f", "true", "false", "on", "off"}
SHOWN_LIMIT = 120
# Site variables that take a list as well as text; the role that they are for says what may stand in it.
TEXT_OR_LIST = {"comfyui_gpus"}
EXPECTED = {
    "bool": "true or false",
    "dict": "a mapping of names to values",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "path": "a path",
    "raw": "text or a list",
    "str": "text",
}


def _fits(kind: str, value: Any) -> bool:
    if kind == "bool":
        return isinstance(value, bool) or str(value).lower() in BOOLEANS
    if kind in ("int", "float"):
        pattern = r"-?\d+" if kind == "int" else r"-?\d+(\.\d+)?"
        return not isinstance(value, bool) and re.fullmatch(pattern, str(value)) is not None
    if kind == "list":
        return isinstance(value, list)
    if kind == "dict":
        return isinstance(value, Mapping)
    if kind == "raw" and isinstance(value, list):
        return True
    return isinstance(value, (str, int, float))


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= SHOWN_LIMIT else f"{text[:SHOWN_LIMIT]} ..."


def _expectation(option: Mapping[str, Any], value: Any) -> str:
    """What was expected instead of `value`; empty where it will do."""
    kind = option.get("type", "str")
    default = option.get("default")
    if "choices" in option:
        choices = [str(choice) for choice in option["choices"]]
        return "" if str(value) in choices else f"one of {', '.join(choice or 'empty' for choice in choices)}"
    elements = option.get("elements")
    if kind == "list" and isinstance(value, list) and elements:
        return "" if all(_fits(elements, item) for item in value) else f"a list, each of its items {EXPECTED[elements]}"
    if value is None or not _fits(kind, value):
        return EXPECTED[kind]
    if kind in ("str", "path") and default:
        if str(value).strip() == "":
            return f"{EXPECTED[kind]}, not nothing"
        if str(default).startswith("/") and not str(value).startswith("/"):
            return "a path from the root on"
    return ""


def _suggestion(name: str, options: Mapping[str, Any]) -> str:
    # The prefix that all have would make any two of them alike.
    prefix = os.path.commonprefix([name, *options])  # noqa: RUF071 - names, not paths
    rests = {option.removeprefix(prefix): option for option in options}
    near = difflib.get_close_matches(name.removeprefix(prefix), rests, n=1)
    return f"did you mean {rests[near[0]]}?" if near else "no name here is like it."


def role_input_problems(
    options: Mapping[str, Any], values: Mapping[str, Any], outputs: tuple[str, ...] = ()
) -> list[str]:
    """What is wrong with the variables of a role, one sentence or two for each: found, expected, what to type.

    `options` are those of the role's argument_specs.yml, `values` all variables with its prefix, `outputs` the names
    that it sets itself. An empty text is taken only where the default is one.
    """
    problems = [
        f"Unknown variable {name}: {_suggestion(name, options)} Correct it or take it out."
        for name in sorted(set(values) - set(options) - set(outputs))
    ]
    for name, option in options.items():
        value = values.get(name)
        if option.get("required") and (value is None or str(value).strip() == ""):
            what = str(option.get("description") or "").rstrip(".")
            problems.append(
                f"{name} is {_shown(value) if name in values else 'not set'}, and it is required: {what}. Set {name}."
            )
        elif name in values and (expected := _expectation(option, value)):
            found = "a value that is kept secret" if option.get("no_log") else _shown(value)
            default = option.get("default")
            advice = f", or leave it out for the default {_shown(default)}" if not option.get("required") else ""
            problems.append(f"{name} is {found}, expected {expected}. Set {name} to that{advice}.")
    return problems


def _kind(value: Any) -> str:
    kinds = {bool: "bool", int: "int", float: "float", list: "list", dict: "dict"}
    return next((kind for python, kind in kinds.items() if isinstance(value, python)), "str")


def site_input_problems(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """The same for site variables, whose defaults say of which kind they are."""
    options: dict[str, dict[str, Any]] = {}
    for name, default in defaults.items():
        kind = "raw" if name in TEXT_OR_LIST else _kind(default)
        options[name] = {"type": kind, "default": default, "no_log": name.endswith("_token")}
        if kind == "list" and default:  # an empty one does not say
            options[name]["elements"] = _kind(default[0])
    return role_input_problems(options, values)


class FilterModule:
    """The filters, by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"role_input_problems": role_input_problems, "site_input_problems": site_input_problems}
