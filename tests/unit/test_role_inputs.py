"""The judge of inputs: what is unknown, missing or of another kind, and what to type instead."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

role_inputs = importlib.import_module("filter.role_inputs")
docker_engine = importlib.import_module("filter.docker_engine")

OPTIONS: dict[str, dict[str, Any]] = {
    "r_dir": {"type": "path", "required": True, "description": "Where it all goes."},
    "r_cache": {"type": "path", "default": "/srv/cache"},
    "r_audit": {"type": "bool", "default": False},
    "r_port": {"type": "int", "default": 8188},
    "r_rate": {"type": "float", "default": 1.5},
    "r_url": {"type": "str", "default": "https://example.com"},
    "r_proxy": {"type": "str", "default": ""},
    "r_token": {"type": "str", "default": "", "no_log": True},
    "r_state": {"type": "str", "default": "on", "choices": ["on", "away"]},
    "r_names": {"type": "list", "elements": "str", "default": []},
    "r_keys": {"type": "dict", "default": {}},
}
GOOD = {"r_dir": "/srv"}


def problems(**values: Any) -> str:
    return " ".join(role_inputs.role_input_problems(OPTIONS, {**GOOD, **values}))


def test_defaults_are_taken() -> None:
    defaults = {name: option["default"] for name, option in OPTIONS.items() if "default" in option}
    assert problems(**defaults) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r_audit", "yes"), ("r_audit", "False"), ("r_audit", 1), ("r_port", "8190"), ("r_port", -1), ("r_rate", "2"),
        ("r_url", 3), ("r_proxy", ""), ("r_state", "away"), ("r_names", ["a", 1]), ("r_keys", {"a": {}}),
    ],
)  # fmt: skip
def test_what_the_command_line_makes_of_a_good_value_is_taken(name: str, value: Any) -> None:
    assert problems(**{name: value}) == ""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("r_audit", "maybe", "true or false"),
        ("r_audit", 2, "true or false"),
        ("r_audit", None, "true or false"),
        ("r_port", "http", "a whole number"),
        ("r_port", True, "a whole number"),
        ("r_port", "81 88", "a whole number"),
        ("r_rate", "fast", "a number"),
        ("r_url", "", "text, not nothing"),
        ("r_url", None, "text"),
        ("r_url", ["https://example.com"], "text"),
        ("r_cache", "cache", "a path from the root on"),
        ("r_cache", " ", "a path, not nothing"),
        ("r_state", "off", "one of on, away"),
        ("r_names", "a", "a list"),
        ("r_names", ["a", {}], "a list, each of its items text"),
        ("r_keys", ["a"], "a mapping of names to values"),
    ],
)
def test_another_kind_is_refused_with_found_expected_and_what_to_type(name: str, value: Any, expected: str) -> None:
    found = problems(**{name: value})
    assert found.startswith(f"{name} is ")
    assert f", expected {expected}. Set {name} to that, or leave it out for the default" in found


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_required_input_is_more_than_nothing(value: str | None) -> None:
    found = problems(r_dir=value)
    assert "it is required: Where it all goes. Set r_dir." in found


def test_a_required_input_that_is_not_there() -> None:
    assert role_inputs.role_input_problems(OPTIONS, {}) == [
        "r_dir is not set, and it is required: Where it all goes. Set r_dir."
    ]


def test_an_unknown_name_comes_with_the_nearest() -> None:
    assert problems(r_prot=1) == "Unknown variable r_prot: did you mean r_port? Correct it or take it out."
    # Their prefix alone makes no two names alike.
    options = {f"comfyui_workflows_{name}": {"type": "str", "default": ""} for name in ("state", "url")}
    (problem,) = role_inputs.role_input_problems(options, {"comfyui_workflows_frobnicate": 1})
    assert "no name here is like it" in problem


def test_what_a_role_sets_itself_is_known() -> None:
    assert role_inputs.role_input_problems(OPTIONS, {**GOOD, "r_found": 1}, outputs=["r_found"]) == []


def test_a_secret_is_not_shown() -> None:
    assert "s3cret" not in problems(r_token={"is": "s3cret"})


@given(st.dictionaries(st.sampled_from(sorted(OPTIONS)), st.none() | st.booleans() | st.integers() | st.text()))
def test_any_value_gets_an_answer(values: dict[str, Any]) -> None:
    for problem in role_inputs.role_input_problems(OPTIONS, values):
        assert problem.endswith(".")


def test_a_site_is_judged_by_its_defaults() -> None:
    defaults = {"s_dir": "/srv", "s_port": 1, "s_models": ["a"], "s_map": {}, "s_token": "", "s_on": True}
    assert role_inputs.site_input_problems(defaults, dict(defaults)) == []
    values = {"s_dir": "", "s_port": "x", "s_models": "a", "s_map": [], "s_token": ["t"], "s_on": "maybe", "s_prot": 1}
    found = role_inputs.site_input_problems(defaults, values)
    assert [problem.split()[0] for problem in found[1:]] == list(defaults)
    assert "did you mean s_port?" in found[0]
    assert "kept secret" in found[5]


@pytest.mark.parametrize("text", [None, "", "{}", '\ufeff{"a": 1}'])
def test_a_sound_daemon_file_has_no_problem(text: str | None) -> None:
    assert docker_engine.daemon_json_problem(text) == ""


def test_a_broken_daemon_file_is_named_by_line_and_column() -> None:
    assert docker_engine.daemon_json_problem('{\n  "a": 1,\n}').startswith("line 3 column 1")
