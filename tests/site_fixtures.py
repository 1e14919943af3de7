"""What every Testinfra file gets: the site's variables as they came out for this host, its API, and the evidence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verdict import Evidence

# On the host: the API listens on its loopback only, and one round trip serves many questions.
ASKER = """
import json, sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
answers = {}
for name, (path, body) in json.loads(sys.argv[2]).items():
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(sys.argv[1] + path, data, {"Content-Type": "application/json"} if data else {})
    try:
        with opener.open(request, timeout=30) as answer:
            status, content = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    except OSError as error:
        sys.exit(f"{sys.argv[1]} does not answer: {error}. Type on the host: systemctl status comfyui")
    try:
        answers[name] = [status, json.loads(content)]
    except ValueError:
        sys.exit(f"{sys.argv[1]}{path} answered {status} without JSON: {content[:200]!r}")
print(json.dumps(answers))
"""

Ask = Callable[[dict[str, tuple[str, Any]]], dict[str, Any]]
Prompt = Callable[..., dict[str, Any]]


def host_part(address: str) -> str:
    """An address as it stands before a port."""
    return f"[{address}]" if ":" in address else address


def run_prompt(host: Any, url: str, **parameters: Any) -> dict[str, Any]:
    """What the module comfyui_prompt says, also where it failed."""
    result: dict[str, Any] = host.backend.run_ansible(
        "comfyui_prompt", json.dumps({"url": url, **parameters}), check=False
    )
    return result


def failure_of(result: dict[str, Any]) -> str:
    """The words of a failure, ComfyUI's own and nothing else; empty where there is none."""
    # Not every ansible-core writes `failed` into what Testinfra reads; the module itself says `kind` on failure.
    failed = "kind" in result or "prompt_id" not in result
    return str(result.get("msg", result)) if failed else ""


@pytest.fixture(scope="session")
def evidence() -> Path:
    """Folder on the control node that keeps what a test saw; playbooks/verify.yml names it."""
    return Path(os.environ["EVIDENCE_DIR"])


@pytest.fixture(scope="session")
def record(pytestconfig: pytest.Config) -> Evidence:
    """Takes what belongs into the verdict: images, figures against their limits, versions and digests."""
    found = pytestconfig.pluginmanager.get_plugin("verdict-evidence")
    assert isinstance(found, Evidence)
    return found


@pytest.fixture(scope="session")
def site(evidence: Path) -> dict[str, Any]:
    """The site variables, rendered for the host under test."""
    variables: dict[str, Any] = json.loads((evidence / "site.json").read_text())
    return variables


@pytest.fixture(scope="session")
def url(site: dict[str, Any]) -> str:
    """Where the host itself reaches the API."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask, nothing is bound here
    address = everywhere.get(site["comfyui_bind_address"], site["comfyui_bind_address"])
    return f"http://{host_part(address)}:{site['comfyui_port']}"


@pytest.fixture(scope="module")
def ask(host: Any, url: str) -> Ask:
    """Put questions to the API: path and body by name; status and document by name come back."""

    def questions(requests: dict[str, tuple[str, Any]]) -> dict[str, Any]:
        done = host.run("python3 -c %s %s %s", ASKER, url, json.dumps(requests))
        if done.rc != 0:
            pytest.fail(done.stderr.strip(), pytrace=False)
        answers: dict[str, Any] = json.loads(done.stdout)
        return answers

    return questions


@pytest.fixture(scope="module")
def prompt(host: Any, url: str) -> Prompt:
    """Run the module comfyui_prompt on the host; where it fails, so does the test, in its words."""

    def run(**parameters: Any) -> dict[str, Any]:
        result = run_prompt(host, url, **parameters)
        failure = failure_of(result)
        if failure:
            pytest.fail(failure, pytrace=False)
        return result

    return run


@pytest.fixture(scope="module")
def gpu(host: Any, site: dict[str, Any], ask: Ask) -> None:
    """Skip where no GPU is meant to compute; fail where one is and the server runs without it."""
    if os.environ.get("VERIFY_PRETEND_GPU"):  # a scenario sees by this that these tests run, and which of them fail
        return
    if site["comfyui_device"] == "cpu":
        pytest.skip("no GPU")
    _, stats = ask({"stats": ("/system_stats", None)})["stats"]
    if any(device["type"] == "cuda" for device in stats["devices"]):
        return
    # The sandbox's stand-in driver brings a script in the place of NVIDIA's program.
    real = host.run('p=$(command -v nvidia-smi) && head -c 4 "$p" | od -An -c | grep -q \'E *L *F\' && "$p" -L')
    if site["comfyui_device"] == "auto" and real.rc != 0:
        pytest.skip("no GPU")
    pytest.fail(f"ComfyUI computes on {stats['devices']}, and this host is to compute on its GPU: {real.stdout}")
