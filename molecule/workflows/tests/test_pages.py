"""The pages on API and workflows say what is so: their commands run on the host, their answers look as shown."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
API_PAGE = (ROOT / "docs" / "api.md").read_text()
BLOCK = re.compile(r"^```(sh|json|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "=== next block"
# With -sS curl is content with every status, so each is written down.
CURL = "curl() { command curl --write-out '%{stderr}=== %{http_code} %{url_effective}\\n' \"$@\"; }\n"


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall(API_PAGE) if found == kind]


def answered() -> list[tuple[int, Any]]:
    """The number of each command that an answer stands behind, and the answer."""
    found = []
    commands = -1
    for kind, text in BLOCK.findall(API_PAGE):
        commands += kind == "sh"
        if kind == "json":
            found.append((commands, json.loads(text)))
    return found


def has_shape(found: Any, shown: Any) -> bool:
    """Whether an answer has everything that the page shows of it; of texts and numbers only the kind counts."""
    if isinstance(shown, dict):
        return isinstance(found, dict) and all(has_shape(found.get(key), value) for key, value in shown.items())
    if isinstance(shown, list):
        return isinstance(found, list) and len(found) >= len(shown) and all(map(has_shape, found, shown))
    return isinstance(found, type(shown))


@pytest.fixture(scope="module")
def done(host: Any) -> Any:
    """The commands of the page, run one after the other in one shell."""
    script = f"set -euo pipefail\n{CURL}" + "".join(f"echo '{MARK}'\n{text}\necho\n" for text in blocks("sh"))
    ended = host.run("bash -c %s", script)
    assert ended.rc == 0, ended.stdout + ended.stderr
    return ended


@pytest.fixture(scope="module")
def printed(done: Any) -> list[str]:
    """What each command of the page prints."""
    return [text.strip() for text in str(done.stdout).split(MARK)[1:]]


def test_the_server_knows_what_every_command_asks_for(done: Any) -> None:
    answers = re.findall(r"^=== (\d+) http://[^/]+(/\w+)", str(done.stderr), re.MULTILINE)
    assert {path for _, path in answers} >= {"/queue", "/interrupt", "/history", "/free", "/upload", "/userdata"}
    # The page shows one graph that is refused.
    assert [answer for answer in answers if not answer[0].startswith("2")] == [("400", "/prompt")]


def test_the_page_has_commands_and_answers() -> None:
    assert len(blocks("sh")) > 10
    assert len(answered()) > 8


@pytest.mark.parametrize(("number", "shown"), answered())
def test_a_command_prints_what_the_page_shows(printed: list[str], number: int, shown: Any) -> None:
    # The shortened answers of the page stand for longer ones, and their ids for others.
    assert has_shape(json.loads(printed[number]), shown), printed[number]


def test_the_image_that_was_fetched_is_a_png(printed: list[str]) -> None:
    (shown,) = [text for command, text in zip(blocks("sh"), printed, strict=True) if "od -An -c" in command]
    assert shown.split()[1:4] == ["P", "N", "G"]


def test_the_program_saves_the_images_of_a_graph(host: Any) -> None:
    (program,) = blocks("python")
    done = host.run(
        "mkdir -p /tmp/generate && cd /tmp/generate && python3 -c %s %s",
        program,
        "/srv/comfyui/workflows/batch_generation.json",
    )
    assert done.rc == 0, done.stderr
    names = done.stdout.split()
    assert len(names) == 4
    for name in names:
        assert host.file(f"/tmp/generate/{name}").content.startswith(b"\x89PNG")  # noqa: S108 - on the sandbox host


def test_the_program_says_what_comfyui_says(host: Any) -> None:
    (program,) = blocks("python")
    edited = "sed s/sd_xl_base_1.0/other/ /srv/comfyui/workflows/txt2img_sdxl.json > /tmp/other.json"
    done = host.run(edited + " && python3 -c %s /tmp/other.json", program)
    assert done.rc == 1
    assert "value_not_in_list" in done.stderr


def test_the_first_pages_command_submits_a_graph(host: Any) -> None:
    blocks_of_it = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (command,) = (text for text in blocks_of_it if "curl" in text)
    answer = json.loads(host.check_output("bash -c %s", command))
    assert answer["prompt_id"]
    assert answer["node_errors"] == {}


def first_looks() -> list[str]:
    """What docs/troubleshooting.md has typed first."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    (table,) = re.findall(r"^\| command \| what it tells \|\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    return re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)


@pytest.mark.parametrize("command", first_looks())
def test_where_to_look_first_there_is_something_to_see(host: Any, command: str) -> None:
    assert host.check_output("bash -c %s", command)


def test_the_settings_on_the_page_are_valid() -> None:
    page = (ROOT / "docs" / "workflows.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    filters = importlib.import_module("filter.comfyui_workflows")
    settings = yaml.safe_load(text)["comfyui_template_settings"]
    recording = ROOT / "roles/comfyui_workflows/files/object_info-0.28.1.json"
    models = ["checkpoints/sd_xl_base_1.0.safetensors"]
    assert filters.workflow_findings(str(ROOT / "workflows"), str(recording), models, settings) == []
