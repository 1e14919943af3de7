"""Every module's page can be read by ansible-doc: an unquoted colon in a sentence is enough to lose it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

MODULES = sorted((Path(__file__).parents[2] / "plugins" / "modules").glob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_a_page_parses_and_is_the_modules_own(module: Path) -> None:
    pages = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(module.read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    page = yaml.safe_load(pages["DOCUMENTATION"])
    assert page["module"] == module.stem
    assert all({"type", "description"} <= set(option) for option in page["options"].values())
    assert yaml.safe_load(pages["EXAMPLES"])
    assert isinstance(yaml.safe_load(pages["RETURN"]), dict)
