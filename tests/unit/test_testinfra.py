"""The Testinfra files themselves: what they ask of a host, and what they make of odd answers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
import yaml

import site_fixtures
import verdict
from programs import load_program

# The plugin that knows the marks is not loaded here.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnknownMarkWarning")

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tests" / "testinfra"
FAILURE = {"kind": "timeout", "msg": "no result within 300 s"}


def studio(answers: list[dict[str, Any]], gpus: str = "all") -> tuple[Any, list[dict[str, Any]]]:
    """A studio whose runs end as told, one after the other, and what it asked for."""
    asked: list[dict[str, Any]] = []

    def prompt(**parameters: Any) -> dict[str, Any]:
        asked.append(parameters)
        return answers[len(asked) - 1]

    site = {"comfyui_data_dir": "/srv/comfyui", "comfyui_gpus": gpus}
    record = verdict.Evidence(Path("/nonexistent"), "spark-1")
    return load_program(SUITE / "test_generation.py").Studio(prompt, site, record), asked


def test_a_generation_that_failed_is_not_tried_again() -> None:
    made, asked = studio([FAILURE])
    for run in (made.cold, made.warm, made.again, lambda: made.template("img2img_sdxl"), made.memory_gb):
        with pytest.raises(pytest.fail.Exception, match="model not loaded: no result within 300 s"):
            run()
    assert len(asked) == 1


def test_images_of_a_failed_generation_are_kept_as_evidence_and_taken_away(tmp_path: Path) -> None:
    image = {"filename": "a_00001_.png", "subfolder": "", "format": "PNG"}
    answer = {"kind": "expectation", "msg": "blank", "images": [image]}
    removed = []
    host = SimpleNamespace(
        backend=SimpleNamespace(run_ansible=lambda *_, **__: answer),
        file=lambda path: SimpleNamespace(content=path.encode()),
        check_output=lambda command, path: removed.append((command, path)),
    )
    record = verdict.Evidence(tmp_path, "spark-1")
    site = {"comfyui_data_dir": "/srv/comfyui", "comfyui_gpus": "all"}
    fixture = load_program(SUITE / "test_generation.py").studio.__wrapped__(host, "http://127.0.0.1:8188", site, record)
    with pytest.raises(pytest.fail.Exception, match="blank"):
        next(fixture).cold()
    assert next(fixture, None) is None
    assert removed == [("rm -f %s", "/srv/comfyui/output/a_00001_.png")]
    assert (tmp_path / "failed_a_00001_.png").read_text() == "/srv/comfyui/output/a_00001_.png"
    assert [one["file"] for one in record.images] == ["failed_a_00001_.png"]


@pytest.mark.parametrize(("gpus", "sampled"), [("all", []), ("none", []), ("1", ["1"]), ("0,GPU-5a", ["0", "GPU-5a"])])
def test_the_gpus_of_the_release_are_sampled(gpus: str, sampled: list[str]) -> None:
    made, asked = studio([{"prompt_id": "p", "samples": []}], gpus)
    made.cold()
    assert asked[0]["sample_gpus"] == sampled


@pytest.mark.parametrize(
    ("percents", "at_work"),
    [
        ([0, 0, 90, 0, 80, 0], [90, 0, 80]),
        ([None, 50, None, 0, 10], [50, 0, 10]),
        ([0, 0], []),
        ([], []),
    ],
)
def test_pauses_within_a_generation_count(percents: list[float | None], at_work: list[float]) -> None:
    samples = [{"gpu_percent": percent} for percent in percents]
    assert load_program(SUITE / "test_generation.py").percents_at_work(samples) == at_work


@pytest.mark.parametrize(
    ("address", "shown", "url"),
    [
        ("127.0.0.1", "127.0.0.1", "http://127.0.0.1:8188"),
        ("0.0.0.0", "0.0.0.0", "http://127.0.0.1:8188"),  # noqa: S104
        ("::1", "[::1]", "http://[::1]:8188"),
        ("::", "[::]", "http://[::1]:8188"),
    ],
)
def test_an_address_of_either_kind_is_understood(address: str, shown: str, url: str) -> None:
    site = {"comfyui_bind_address": address, "comfyui_port": 8188}
    host = SimpleNamespace(check_output=lambda _: f"LISTEN 0 4096 {shown}:8188 {shown}:*")
    service = load_program(SUITE / "test_comfyui_service.py")
    service.test_the_api_listens_where_it_was_asked_to_and_nowhere_else(host, site)
    assert site_fixtures.url.__wrapped__(site) == url  # type: ignore[attr-defined]
    wiring = yaml.safe_load((ROOT / "inventory/group_vars/all/comfyui_workflows.yml").read_text())
    rendered = jinja2.Template(wiring["comfyui_workflows_url"]).render(site)
    assert rendered == f"http://{shown}:8188"


def test_digests_of_models_come_from_the_host_and_not_from_the_inventory() -> None:
    entry = {"folder": "checkpoints", "path": "sd_xl.safetensors", "repo": "a/b", "commit": "c" * 40}
    site = {
        "comfyui_data_dir": "/srv/comfyui",
        "comfyui_models": ["sdxl"],
        "comfyui_model_catalogue": {"sdxl": entry},  # digest and size are left to the hub
    }

    def check_output(command: str, path: str) -> str:
        assert (command, path) == ("cat %s", "/srv/comfyui/models/checkpoints/sd_xl.safetensors.verified.json")
        return json.dumps({"sha256": "ab" * 32, "size_b": 7})

    record = verdict.Evidence(Path("/nonexistent"), "spark-1")
    deployment = load_program(SUITE / "test_deployment.py")
    deployment.test_models_are_known_by_their_digests(SimpleNamespace(check_output=check_output), site, record)
    assert record.facts == {"Models, SHA-256": {"sdxl": "ab" * 32, "sdxl, bytes": "7"}}


def test_a_graph_needs_no_form(tmp_path: Path) -> None:
    text = (SUITE / "test_api.py").read_text()
    for name in ("workflows/mine.json", "workflows/ui/other.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "tests/testinfra").mkdir(parents=True)
    (tmp_path / "tests/testinfra/test_api.py").write_text(text)
    assert load_program(tmp_path / "tests/testinfra/test_api.py").FORMS == ["other.json"]
