"""What is held against ComfyUI's own requirements, and what the record says of each package."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from programs import load_program

PATH = Path(__file__).parents[2] / "roles/comfyui_image/files/contents.py"


@pytest.fixture(name="contents", scope="module")
def load_contents() -> ModuleType:
    return load_program(PATH)


REQUIREMENTS = """
torch
torchaudio
Pillow
av>=16.0.0  # as upstream writes it

#non essential dependencies:
pydantic-settings~=2.0
colorama ; sys_platform == 'win32'
--extra-index-url https://example.com/simple
"""


@pytest.mark.parametrize(
    ("installed", "problems"),
    [
        ({"torch": "2.14.0a0+b2c75dd062.nv26.9", "pillow": "12.0", "av": "16.1.0", "pydantic-settings": "2.9"}, []),
        (
            {"torch": "2.6.0", "pillow": "12.0", "av": "15.0.0", "pydantic-settings": "2.9"},
            ["ComfyUI asks for av>=16.0.0, the lock has 15.0.0"],
        ),
        (
            {"torch": "2.6.0", "av": "16.0.0", "pydantic-settings": "3.0"},
            ["ComfyUI asks for Pillow, the lock has none", "ComfyUI asks for pydantic-settings~=2.0, the lock has 3.0"],
        ),
    ],
)
def test_each_requirement_that_is_not_met_is_named(
    contents: ModuleType, installed: dict[str, str], problems: list[str]
) -> None:
    assert contents.unmet(contents.requirements(REQUIREMENTS), installed) == problems


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ("License-Expression: MIT", "MIT"),
        ("License: BSD 3-Clause\n        and more text", "BSD 3-Clause"),
        ("Classifier: License :: OSI Approved :: MIT License\nClassifier: Topic :: Other", "MIT License"),
        ("Summary: nothing stated", ""),
    ],
)
def test_a_licence_is_found_where_a_package_states_it(
    contents: ModuleType, tmp_path: Path, fields: str, licence: str
) -> None:
    (tmp_path / "METADATA").write_text(f"Metadata-Version: 2.4\nName: some\nVersion: 1\n{fields}\n")
    assert contents.licence(metadata.Distribution.at(tmp_path)) == licence


def test_the_command_names_what_is_missing(
    contents: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("pytest\nno-such-package>=1\n")
    assert contents.main(["check", str(path)]) == 1
    assert capsys.readouterr().err == "requirements: ComfyUI asks for no-such-package>=1, the lock has none\n"
    path.write_text("pytest\n")
    assert contents.main(["check", str(path)]) == 0
    assert contents.main(["list"]) == 0
    assert '"name": "pytest"' in capsys.readouterr().out
