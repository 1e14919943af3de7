"""The verdict on a run of the Testinfra suite, and the page that shows it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import verdict
import verdict_page

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tests" / "testinfra"
LOCAL = f"[dgx]\nlocalhost ansible_connection=local ansible_python_interpreter={sys.executable}\n"

SUITE_OF_FOUR = '''
"""A promise. And more words."""
import pytest

@pytest.mark.last
def test_criterion_12_enough(pytestconfig):
    assert pytestconfig.pluginmanager.get_plugin("verdict-evidence").count("passed") == {passed}

@pytest.mark.level(1)
def test_criterion_04_holds():
    {body}

@pytest.mark.level(4)
def test_criterion_07_fast():
    pytest.skip("no GPU")

def test_plain():
    pass
'''


@pytest.mark.parametrize(
    ("status", "passed", "failed", "reachable", "expected"),
    [
        (0, 5, 0, True, verdict.VERIFIED),
        (1, 5, 1, True, verdict.BROKEN),
        (1, 0, 9, True, verdict.BROKEN),
        (1, 5, 1, False, verdict.COULD_NOT_TELL),
        (0, 0, 0, True, verdict.COULD_NOT_TELL),  # every test was skipped
        (5, 0, 0, True, verdict.COULD_NOT_TELL),
        (2, 5, 0, True, verdict.COULD_NOT_TELL),
        (3, 5, 1, True, verdict.COULD_NOT_TELL),
    ],
)
def test_the_three_verdicts(status: int, passed: int, failed: int, reachable: bool, expected: str) -> None:
    found, reason = verdict.judge(status, passed, failed, reachable=reachable)
    assert found == expected
    assert bool(reason) == (expected == verdict.COULD_NOT_TELL)
    assert ("belongs there" in reason) == (not reachable)  # most often the command line said what only it can know


def run_suite(folder: Path, body: str, passed: int = 2) -> tuple[int, dict[str, Any], str]:
    """Status, verify.json and output of a small suite against this machine."""
    (folder / "test_small.py").write_text(SUITE_OF_FOUR.format(body=body, passed=passed))
    (folder / "hosts").write_text(LOCAL)
    options = ["--hosts=ansible://localhost", f"--ansible-inventory={folder / 'hosts'}", "-pverdict"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(folder), *options, "-pno:cacheprovider"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "tests"),
            "EVIDENCE_DIR": str(folder),
            "EVIDENCE_HOST": "spark-1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads((folder / "verify.json").read_text()), done.stdout + done.stderr


def test_a_run_that_passes_is_verified_and_its_skips_are_named_and_counted(tmp_path: Path) -> None:
    status, document, output = run_suite(tmp_path, "pass")
    assert (status, document["verdict"]) == (0, "verified"), output
    assert document["counts"] == {"passed": 3, "failed": 0, "skipped": 1}
    assert document["skipped"] == {"no GPU": 1}
    assert [level["outcome"] for level in document["levels"]] == ["passed", "passed", "not run", "not run", "skipped"]
    outcomes = {criterion["number"]: criterion["outcome"] for criterion in document["criteria"]}
    assert {number for number, outcome in outcomes.items() if outcome != "not run"} == {4, 7, 12}
    assert (outcomes[4], outcomes[7]) == ("passed", "skipped")
    assert document["tests"][-1]["name"].startswith("test_criterion_12")
    assert {test["promise"] for test in document["tests"]} == {"A promise. And more words."}


def test_a_promise_that_does_not_hold_is_broken_in_its_own_words(tmp_path: Path) -> None:
    status, document, output = run_suite(tmp_path, "assert 1 == 2, 'found 1, expected 2'", passed=1)
    assert (status, document["verdict"]) == (1, "broken"), output
    (failed,) = [test for test in document["tests"] if test["outcome"] == "failed"]
    assert failed["reason"] == "found 1, expected 2"


def test_a_suite_that_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    status, document, _ = run_suite(tmp_path, "this is no Python")
    assert (status, document["verdict"]) == (6, "could not tell")


def test_a_figure_outside_of_its_limits_fails_the_test(tmp_path: Path) -> None:
    evidence = verdict.Evidence(tmp_path, "spark-1")
    evidence.figure("An image", 9.5, "s", at_most=10)
    with pytest.raises(pytest.fail.Exception, match="An image: 11 s, expected at most 10 s"):
        evidence.figure("An image", 11, "s", at_most=10)
    with pytest.raises(pytest.fail.Exception, match=r"GPU: 49\.5 %, expected at least 50 %"):
        evidence.figure("GPU", 49.5, "%", at_least=50)
    assert [figure.held for figure in evidence.figures] == [True, False, False]


def test_a_run_begins_without_the_evidence_of_the_last(tmp_path: Path) -> None:
    for name in ("verify.xml", "site.json", "txt2img_sdxl_1.png", "cost.json"):
        (tmp_path / name).write_text("old")
    verdict.begin(tmp_path, "spark-1")
    assert {path.name for path in tmp_path.iterdir()} == {"cost.json", "verify.json", "verify.html"}
    document = json.loads((tmp_path / "verify.json").read_text())
    assert (document["verdict"], document["counts"]["passed"]) == ("could not tell", 0)
    assert "does not reach the host" in (tmp_path / "verify.html").read_text()


@pytest.mark.parametrize("colours", [1, 256])
def test_the_page_needs_nothing_beside_it(tmp_path: Path, colours: int) -> None:
    evidence = verdict.Evidence(tmp_path, "spark-1")
    picture = Image.new("RGB", (64, 64)) if colours == 1 else Image.effect_noise((512, 512), 90).convert("RGB")
    with io.BytesIO() as out:
        picture.save(out, "PNG")
        evidence.image("a.png", out.getvalue(), "<a castle>")
    evidence.figure("An image", 9.5, "s", at_most=10)
    evidence.figure("Memory", 9.5, "GB")
    evidence.fact("Host", "system", "Debian & Co")
    evidence.samples["a run"] = [
        {"at_s": second, "gpu_percent": None, "gpu_memory_mib": None, "memory_used_mib": 100} for second in range(3)
    ]
    evidence.tests["t"] = verdict.Test("test_x[a]", "test_a.py", "A promise.", 1, 4, "failed", "<script>alert()")
    evidence.write(verdict.BROKEN)
    page = (tmp_path / "verify.html").read_text()
    assert not re.search('(src|href)=(?!"data:)', page)
    assert not re.search(r"url\(|@import|https?://", page)
    assert "<script" not in page
    assert "&lt;script&gt;alert()" in page
    assert "&lt;a castle&gt;" in page
    assert f"data:image/{'png' if colours == 1 else 'jpeg'};base64," in page
    assert "GPU utilisation: not reported" in page


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("test_plain", "plain"),
        ("test_criterion_04_it_answers[ansible://spark-1]", "04. it answers"),
        ("test_file_is_there[ansible://spark-1-ui/a.json]", "file is there (ui/a.json)"),
        ("test_page[preflight]", "page (preflight)"),
    ],
)
def test_names_are_shown_as_sentences(name: str, title: str) -> None:
    assert verdict_page.title(verdict.plain_name(name, "spark-1")) == title


@pytest.mark.parametrize(
    ("samples", "points"),
    [
        ([(0, 0), (1, 50), (2, 100)], "0.0,90.0 300.0,45.0 600.0,0.0"),
        ([(0, None), (1, 50), (2, 200)], "300.0,45.0 600.0,0.0"),
        ([(0, 50)], ""),
    ],
)
def test_a_line_stays_in_its_chart(samples: list[tuple[float, Any]], points: str) -> None:
    taken = [{"at_s": at_s, "gpu_percent": percent} for at_s, percent in samples]
    assert verdict_page.line(taken, "gpu_percent", 100) == points


def test_every_criterion_has_its_tests() -> None:
    names = re.findall(r"def (test_criterion_\d\d_\w+)", "".join(path.read_text() for path in SUITE.glob("*.py")))
    assert {int(name[15:17]) for name in names} == set(verdict.CRITERIA) == set(range(1, 14))


def test_every_level_has_its_tests() -> None:
    used = {
        int(number) for path in SUITE.glob("*.py") for number in re.findall(r"mark\.level\((\d)\)", path.read_text())
    }
    assert used | {0} == set(verdict.LEVELS)


@pytest.mark.parametrize(
    ("outcomes", "reason", "outcome"),
    [
        (["passed", "passed"], "", "passed"),
        (["passed", "failed", "skipped"], "no GPU", "failed"),
        (["passed", "skipped"], "no GPU", "partly"),
        (["passed", "skipped"], "no foreign keys were planted on this host", "passed"),
        (["skipped"], "no GPU", "skipped"),
        ([], "", "not run"),
    ],
)
def test_what_passed_as_far_as_it_ran_is_not_called_passed(outcomes: list[str], reason: str, outcome: str) -> None:
    tests = [verdict.Test("t", "f", "p", 1, None, one, reason if one == "skipped" else "") for one in outcomes]
    assert verdict.summary(tests)["outcome"] == outcome
