"""Where each outside source is taken from: the real one, or its stand-in in the sandbox's network."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from docker import DockerClient

from sandbox.containers import UPSTREAMS_NAME, ensure_base, ensure_upstreams, serve_repository, standin_facts
from sandbox.stages import RefusalError, stage

PROBE_LIMIT_S = 5
GROUP_VARS = Path(__file__).parents[2] / "inventory" / "group_vars" / "all"
MODES = ("auto", "standin", "real")


@dataclass(frozen=True)
class Source:
    """One outside source of the product, and an address that answers where it can be reached."""

    name: str
    probe_url: str


SOURCES = [
    Source("base image", "https://nvcr.io/v2/"),
    Source("ComfyUI", "https://github.com/Comfy-Org/ComfyUI.git/info/refs?service=git-upload-pack"),
    Source("models", "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/README.md"),
    Source("toolkit", "https://nvidia.github.io/libnvidia-container/gpgkey"),
    Source("Docker", "https://download.docker.com/linux/debian/gpg"),
]


def answers(url: str) -> bool:
    """Whether a server answers at all; 401 is nvcr.io's way of saying that it is there."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_LIMIT_S):  # noqa: S310 - addresses of SOURCES only
            return True
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False


def choose(mode: str) -> dict[str, bool]:
    """For each source whether the real one is used; prints the table."""
    if mode not in MODES:
        raise RefusalError(f"UPSTREAMS={mode} is unknown. Choose one of: {', '.join(MODES)}")
    real = {source.name: mode == "real" or (mode == "auto" and answers(source.probe_url)) for source in SOURCES}
    print("Upstreams:")
    for name, is_real in real.items():
        print(f"    {name:12} {'real' if is_real else 'stand-in'}")
    return real


def site_defaults() -> dict[str, Any]:
    """The site variables as delivered."""
    defaults: dict[str, Any] = yaml.safe_load((GROUP_VARS / "comfyui.yml").read_text())
    return defaults


def upstream_variables(client: DockerClient, mode: str) -> dict[str, Any]:
    """Site variables that point a sandbox at its sources; starts the stand-ins where one is needed.

    COMFYUI_SOURCE_REPO (a URL, or a folder of this machine), COMFYUI_VERSION and COMFYUI_SOURCE_COMMIT
    of the environment choose another ComfyUI.
    """
    defaults = site_defaults()
    real = choose(mode)
    version = os.environ.get("COMFYUI_VERSION") or str(defaults["comfyui_version"])
    repository = os.environ.get("COMFYUI_SOURCE_REPO", "")
    variables: dict[str, Any] = {"comfyui_version": version}
    if all(real.values()) and not Path(repository or "-").is_dir():
        standins = facts = None
        base_url = ""
    else:
        standins = ensure_upstreams(client)
        facts = standin_facts(standins)
        base_url = f"http://{UPSTREAMS_NAME}"
    if repository:
        variables.update(
            comfyui_source_repo=repository, comfyui_source_commit=os.environ.get("COMFYUI_SOURCE_COMMIT", "")
        )
        if standins and Path(repository).is_dir():
            with stage(f"Serving {repository} in the sandbox's network"):
                url, commit = serve_repository(standins, Path(repository), f"v{version}")
            variables.update(comfyui_source_repo=url, comfyui_source_commit=commit)
    elif not real["ComfyUI"] and facts:
        variables.update(
            comfyui_source_repo=f"{base_url}/git/comfyui.git", comfyui_source_commit=facts["comfyui_commit"]
        )
    if not real["base image"] and standins:
        variables["comfyui_base_image"] = ensure_base(client, standins)
    if not real["models"] and facts:
        catalogue = yaml.safe_load((GROUP_VARS / "model_catalogue.yml").read_text())["comfyui_model_catalogue"]
        catalogue["sd_xl_base_1.0"].update(size_b=facts["model"]["size_b"], sha256=facts["model"]["sha256"])
        variables.update(comfyui_model_endpoint=f"{base_url}:8001", comfyui_model_catalogue=catalogue)
    if not real["toolkit"] and facts:
        variables.update(
            comfyui_toolkit_repository=f"{base_url}/apt/stable/deb",
            comfyui_toolkit_key_url=f"{base_url}/apt/gpgkey",
            comfyui_toolkit_key_fingerprint=facts["toolkit"]["fingerprint"],
        )
    if not real["Docker"]:
        variables["comfyui_docker_source"] = "distribution"
    if not real["Docker"] and facts:
        # For a scenario that sets the source to docker-ce.
        variables.update(
            comfyui_docker_repository=f"{base_url}/docker",
            docker_engine_key_fingerprint=facts["docker"]["fingerprint"],
            docker_engine_version=facts["docker"]["version"],
        )
    return variables
