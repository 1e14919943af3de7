"""Filters about ComfyUI's versions and its image: what is known of a version, what fits it, why a build failed."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

COMMIT = re.compile(r"[0-9a-f]{40}")
BASE = re.compile(r"[^\s@]+:[^\s@/]+@sha256:[0-9a-f]{64}")
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NGC_TAG = re.compile(r"/pytorch:(\d\d\.\d\d)-py3@")

Versions = Mapping[str, Mapping[str, Any]]


def numbers(version: str) -> tuple[int, ...]:
    """A version of digits and points, as it compares."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def without_login(repository: str) -> str:
    """A repository's address, or a text with some, as it may be shown and recorded: no user and no password."""
    return re.sub(r"(\w+://)[^/\s\"']*@", r"\1", repository)


def version_warnings(version: str, versions: Versions, advisories: Sequence[Mapping[str, str]]) -> list[str]:
    """What one should know before running a version: published advisories, and that nobody here ran it."""
    warnings = []
    open_ones = [one for one in advisories if numbers(version) < numbers(one["fixed_in"])]
    if open_ones:
        listed = "; ".join(
            f"{one['id']} ({one['severity']}, {one['what']}, fixed in {one['fixed_in']})" for one in open_ones
        )
        newest = max((one["fixed_in"] for one in open_ones), key=numbers)
        sound = [one for one in versions if numbers(one) >= numbers(newest)]
        warnings.append(
            f"ComfyUI {version} has published advisories: {listed}. Set comfyui_version to "
            f"{' or '.join(sorted(sound, key=numbers))}."
        )
    if version not in versions:
        warnings.append(
            f"ComfyUI {version} IS NOT KNOWN HERE: neither its flags, nor the torch and the Python that it needs, "
            f"nor its advisories were looked at. Known are {', '.join(sorted(versions, key=numbers))}."
        )
    return warnings


def flag_problems(flags: Sequence[Any], version: str, versions: Versions) -> list[str]:
    """What is wrong with the launch flags for a version; nothing is known of a version that is not listed."""
    if version not in versions:
        return []
    groups: list[list[str]] = versions[version]["exclusive_flags"]
    known = {*versions[version]["flags"], *(flag for group in groups for flag in group)}
    given = [str(word).partition("=")[0] for word in flags if str(word).startswith("--")]
    problems = []
    for flag in dict.fromkeys(given):
        if flag in known:
            continue
        others = [
            other
            for other, entry in sorted(versions.items(), key=lambda item: numbers(item[0]))
            if flag in [*entry["flags"], *(name for group in entry["exclusive_flags"] for name in group)]
        ]
        near = difflib.get_close_matches(flag, sorted(known), n=1)
        if others:
            told = f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'} it."
            advice = f"Take it out of comfyui_extra_flags, or set comfyui_version to {' or '.join(others)}."
        else:
            told = f"did you mean {near[0]}?" if near else "no flag is like it."
            advice = "Correct comfyui_extra_flags."
        problems.append(f"ComfyUI {version} has no flag {flag}, expected one that it takes; {told} {advice}")
    for group in groups:
        both = [flag for flag in dict.fromkeys(given) if flag in group]
        if len(both) > 1:
            problems.append(
                f"The flags {' and '.join(both)} are given together, expected one of them at most. Correct "
                "comfyui_extra_flags" + (", or comfyui_device, which gives --cpu." if "--cpu" in both else ".")
            )
    return problems


def input_problems(image: Mapping[str, Any]) -> list[str]:
    """What is wrong with what an image is to be made from, before a host is asked.

    `image` has version, commit, repository, base, locks (the versions that have one), versions, nodes, capabilities
    (of the GPUs that it is for), and first_bases (the first NGC tag with code for a capability).
    """
    version, repository = str(image["version"]), without_login(image["repository"])
    problems = []
    if version not in image["locks"]:
        problems.append(
            f"ComfyUI {version} has no lock of its requirements; expected one of "
            f"{', '.join(sorted(image['locks'], key=numbers))}. Set comfyui_version to one of them, or write "
            f"roles/comfyui_image/files/locks/{version}.in and type: make lock."
        )
    elif not COMMIT.fullmatch(str(image["commit"])):
        problems.append(
            f'The commit to build is "{image["commit"]}", expected 40 lower-case hex digits: a branch or a tag can '
            f"move. Set comfyui_source_commit to what this prints: git ls-remote {repository} v{version}"
        )
    if not BASE.fullmatch(image["base"]):
        problems.append(
            f'The base image is "{image["base"]}", expected NAME:TAG@sha256: and 64 lower-case hex digits, since a '
            "tag alone can move. Set comfyui_base_image to that; this prints the digest: "
            f"docker buildx imagetools inspect {image['base'].partition('@')[0]}"
        )
    elif too_old := base_problem(image["base"], image["capabilities"], image["first_bases"]):
        problems.append(too_old)
    return problems + node_problems(image["nodes"])


def base_problem(base: str, capabilities: Sequence[str], first_bases: Mapping[str, str]) -> str:
    """Why an NGC base cannot serve these GPUs, as far as its tag tells; empty where it may."""
    found = NGC_TAG.search(base)
    for capability in capabilities:
        first = first_bases.get(str(capability), "")
        if found and first and numbers(found[1]) < numbers(first):
            return (
                f"The base image's tag is {found[1]}, and a GPU here has the compute capability {capability}: the "
                f"torch of that tag has no code for it. Expected {first} or newer, the first that has. Set "
                f"comfyui_base_image to the default, or to NAME:{first}-py3@DIGEST; this prints the digest: docker "
                f"buildx imagetools inspect nvcr.io/nvidia/pytorch:{first}-py3"
            )
    return ""


def first_base(capabilities: Sequence[str], first_bases: Mapping[str, str]) -> str:
    """The first NGC tag with code for all of these GPUs; empty where none of them needs a new one."""
    return max((first_bases[str(one)] for one in capabilities if str(one) in first_bases), key=numbers, default="")


def node_problems(nodes: Sequence[Any]) -> list[str]:
    """What is wrong with the list of custom nodes."""
    problems = []
    names = [str(node.get("name", "")) if isinstance(node, Mapping) else "" for node in nodes]
    for node, name in zip(nodes, names, strict=True):
        complete = isinstance(node, Mapping) and set(node) - {"requirements"} == {"name", "repo", "commit"}
        if not complete or not NODE_NAME.fullmatch(name) or not COMMIT.fullmatch(str(node["commit"])):
            problems.append(
                f"The custom node {without_login(str(node))} is not complete, expected name (letters, digits, - . _), "
                "repo (a git URL) and commit (40 lower-case hex digits). Correct comfyui_custom_nodes."
            )
        elif "requirements" in node and not (isinstance(node["requirements"], str) and node["requirements"].strip()):
            problems.append(
                f"The requirements of the custom node {name} are {node['requirements']!r}, expected the text of a "
                "requirements file. Correct comfyui_custom_nodes, or leave them out."
            )
        elif names.count(name) > 1:
            problems.append(f"Two custom nodes have the name {name}, expected one. Correct comfyui_custom_nodes.")
    return list(dict.fromkeys(problems))


def checkout(node: Mapping[str, str]) -> dict[str, str]:
    """A custom node with its folder in the build context, as it may be shown."""
    return {**node, "repo": without_login(node["repo"]), "dir": f"custom_nodes/{node['name']}"}


def node_requirements(nodes: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The files of the build context that take the place of nodes' own requirements."""
    return [
        {"name": f"{node['name']}.requirements.txt", "content": node["requirements"].strip() + "\n"}
        for node in nodes
        if "requirements" in node
    ]


def leftovers(tags: str, wanted: str, used: str) -> list[str]:
    """The images that nothing needs: of all `tags` not the `wanted` one, and none that `used` names.

    `used` is text: releases that are kept, and the images of containers.
    """
    return [tag for tag in tags.split() if tag not in (wanted, "<none>") and tag not in used]


def image_fault(probe: Mapping[str, Any], record_path: str, dry: bool) -> str:
    """What is wrong with the image of a tag; empty where it is the one that its record speaks of.

    Where no engine answers, a real run has started one by now, and a dry run has the record alone to ask.
    """
    record = probe["files"][record_path]
    try:
        noted = json.loads(record["content"] or "{}").get("image_id", "")
    except (AttributeError, ValueError):
        noted = ""
    if dry and probe["commands"]["engine"]["rc"] != 0:
        return "" if noted else "absent"
    found = probe["commands"]["image"]["stdout"].strip()
    if not found:
        return "absent"
    if record["kind"] == "absent":
        return "there, without its record"
    return "" if found == noted else "another one than its record says"


class FilterModule:
    """The filters, by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "comfyui_first_base": first_base,
            "comfyui_flag_problems": flag_problems,
            "comfyui_image_fault": image_fault,
            "comfyui_image_leftovers": leftovers,
            "comfyui_image_problems": input_problems,
            "comfyui_node_checkout": checkout,
            "comfyui_node_requirements": node_requirements,
            "comfyui_version_warnings": version_warnings,
            "comfyui_without_login": without_login,
        }
