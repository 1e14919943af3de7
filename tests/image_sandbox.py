"""A host that serves, for tests of the image: runs of site.yml for the image alone, and what they are given."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from docker import DockerClient

from playbook_runs import ROOT, environment, last_words
from sandbox import containers, images
from sandbox.engine import ensure_engine

PLAY_LIMIT_S = 900


@dataclass(frozen=True)
class Outcome:
    """How one run ended."""

    status: int
    output: str

    @cached_property
    def message(self) -> str:
        """The last words of a run that failed, as a person reads them."""
        return last_words(self.output)


class Sandbox:
    """The host under test, its engine's images, and the upstreams beside it."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.scratch = scratch
        self.inventory = ROOT / ".cache" / "sandbox" / name
        self.cost = scratch / "cost.json"
        self.engine: DockerClient = ensure_engine()
        variables = yaml.safe_load((self.inventory / "hosts.yml").read_text())["dgx"]["hosts"][name]
        self.variables: dict[str, Any] = variables
        self.host = self.engine.containers.get(variables["ansible_host"])
        upstreams = containers.find(self.engine, "upstreams")
        assert upstreams
        self.upstreams = upstreams
        self.wanted = (
            self.shell("docker container inspect --format '{{.Config.Image}}' comfyui").strip().partition(":")[2]
        )
        self.kept = self.images()

    def shell(self, script: str) -> str:
        """Run a script on the host; it must succeed."""
        status, said = self.ask("bash", "-euo", "pipefail", "-c", script)
        assert status == 0, f"{script}: {said}"
        return said

    def ask(self, *command: str) -> tuple[int, str]:
        """Run a command on the host: its status, and all that it said."""
        answer = subprocess.run(
            ["docker", "exec", str(self.host.name), *command], capture_output=True, text=True, check=False
        )
        return answer.returncode, answer.stdout + answer.stderr

    def images(self) -> set[str]:
        """Tags of ComfyUI's images."""
        return set(self.shell("docker image ls --format '{{.Tag}}' dgx-comfyui").split())

    def made(self) -> str:
        """The tag of the image that a test has added."""
        (tag,) = self.images() - self.kept
        return tag

    def service(self) -> str:
        """The container that serves, since when, and of which image; it answers."""
        self.shell(
            "curl --silent --show-error --fail --max-time 20 --output /dev/null http://127.0.0.1:8188/system_stats"
        )
        return self.shell("docker container inspect --format '{{.Id}} {{.State.StartedAt}} {{.Image}}' comfyui")

    def begin(self, *options: str, **variables: Any) -> subprocess.Popen[str]:
        """Start site.yml for the image alone."""
        typed = self.scratch / "typed.yml"
        typed.write_text(yaml.safe_dump({"evidence_dir": str(self.scratch / "evidence"), **variables}))
        command = ["ansible-playbook", "--inventory", str(self.inventory), "--tags", "comfyui_image", *options]
        return subprocess.Popen(
            [*command, "--extra-vars", f"@{typed}", str(ROOT / "site.yml")],
            cwd=ROOT,
            env=environment(TASK_BUDGET_FILE=str(self.cost)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> Outcome:
        """Wait for the end of a run."""
        with process:
            output, _ = process.communicate(timeout=PLAY_LIMIT_S)
        return Outcome(process.returncode, output)

    def play(self, *options: str, **variables: Any) -> Outcome:
        """Run site.yml for the image alone."""
        return self.finish(self.begin(*options, **variables))

    def in_image(self, *command: str, user: str = "990") -> tuple[int, str]:
        """Run a command in a container of the image that the host has had from the start."""
        image = f"dgx-comfyui:{self.wanted}"
        return self.ask("docker", "run", "--rm", "--network", "none", "--user", user, image, *command)

    def serve(self, name: str, files: dict[str, bytes]) -> dict[str, str]:
        """Put a git repository with these files beside the upstreams' own; its address and commit."""
        folder = self.scratch / name
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.com"]
        for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", name]):
            subprocess.run([*git, *arguments], check=True)
        subprocess.run([*git, "config", "uploadpack.allowAnySHA1InWant", "true"], check=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        packed = {
            str(path.relative_to(folder / ".git")): path.read_bytes()
            for path in (folder / ".git").rglob("*")
            if path.is_file()
        }
        self.upstreams.exec_run(["mkdir", "-p", f"/srv/upstreams/git/{name}.git/refs"])
        self.upstreams.put_archive(f"/srv/upstreams/git/{name}.git", images.as_tar(packed))
        return {"repo": f"http://{containers.UPSTREAMS_NAME}/git/{name}.git", "commit": commit}

    def push_base(self, name: str, instructions: str) -> str:
        """A base image made from the stand-in's, in its registry; as comfyui_base_image names it."""
        dockerfile = f"FROM {images.ensure_base_image(self.engine)}\n{instructions}\n"
        port = containers.published_port(self.upstreams, containers.REGISTRY_PORT)
        repository = f"127.0.0.1:{port}/standin/{name}"
        self.engine.images.build(
            fileobj=images.as_tar({"Dockerfile": dockerfile.encode()}),
            custom_context=True,
            tag=f"{repository}:1",
            rm=True,
        )
        for event in self.engine.images.push(repository, "1", stream=True, decode=True):
            assert "error" not in event
        digest = str(self.engine.images.get_registry_data(f"{repository}:1").id)
        self.engine.images.remove(f"{repository}:1")
        return f"{containers.REGISTRY}/standin/{name}:1@{digest}"

    def tasks(self) -> list[dict[str, Any]]:
        """The role's tasks that the last run executed on the host: name, runs, seconds and status of each."""
        (cost,) = json.loads(self.cost.read_text())["hosts"].values()
        return [task for task in cost["tasks"] if task["name"].startswith("comfyui_image :")]

    def older(self) -> dict[str, Any]:
        """The stand-in as a ComfyUI 0.3.68 with its real requirements, at an address with a login."""
        requirements = (ROOT / "roles/comfyui_image/files/locks/0.3.68.in").read_bytes()
        files = images.context_files(ROOT / "tests/upstreams/comfyui") | {"requirements.txt": requirements}
        served = self.serve("older", files)
        return {
            "comfyui_version": "0.3.68",
            "comfyui_source_repo": served["repo"].replace("http://", "http://someone:hunter22@"),
            "comfyui_source_commit": served["commit"],
        }
