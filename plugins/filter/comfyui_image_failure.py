"""Why no image was made, as sentences: found, expected, what to type. The words in it are git's and the builder's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

INSPECT = "docker buildx imagetools inspect"

# What git says, each with what to make of it; the first that fits counts.
GIT = (
    (
        "unable to read tree|not our ref|reference is not a tree|unadvertised object|couldn't find remote ref",
        "{repository} does not serve the commit {commit}, expected {of}. Set {commit_variable} to what this prints: "
        "git ls-remote {repository}{tag}",
    ),
    (
        r"repository .* not found|does not appear to be a git repository|returned error. 404",
        "There is no git repository at {repository}, expected {what} or a mirror of it. Set {variable} to one for "
        "which this prints something: git ls-remote URL",
    ),
    (
        r"Authentication failed|could not read Username|Permission denied|returned error. 40[13]",
        "{repository} wants a login, expected a repository that this host may read without one. Set {variable} to "
        "such a mirror.",
    ),
    (
        "No space left on device|unable to write|unable to create(?!.*File exists)",
        "{build_dir} could not be written, expected room for {what}: its disk is full or read-only. Make room there; "
        "this shows it: df -h {build_dir}",
    ),
    (
        "",
        "{repository} could not be fetched, expected {what} from there. git said: {words} Type git ls-remote "
        "{repository} on this host until it answers, or set {variable} to a mirror, or comfyui_proxy.",
    ),
)

# What the builder says where the base itself is the trouble.
BASE = (
    (
        r"40[13] |denied|authoriz|no basic auth",
        "The registry {registry} did not hand out {base} without a login. Expected one that is kept on this host: "
        "type there, as root, docker login {registry} (on nvcr.io the user is $oauthtoken and the password an NGC "
        "API key), or set comfyui_base_image to an image that needs none.",
    ),
    (
        "no match for platform",
        "{base} has nothing for this host's architecture, expected the digest of an index that covers it. Set "
        "comfyui_base_image to the digest that this prints first: {inspect}",
    ),
    (
        "not found|manifest unknown",
        "The registry {registry} does not know {base}, expected a digest that it serves. Set comfyui_base_image to "
        "NAME:TAG@DIGEST with what this prints: {inspect}",
    ),
    (
        "failed to verify|digest mismatch|unexpected commit digest|content digest",
        "The registry {registry} handed out something else than {base}, expected bytes of that digest: {words}. Type "
        "{inspect} to see what it has; where the digest is the same, the registry or a proxy before it damages what "
        "it serves.",
    ),
    (
        "",
        "The base image {base} could not be fetched, expected that {registry} answers this host. The builder said: "
        "{words}. Mend the way there until this answers: {inspect}; or set comfyui_base_image to a mirror.",
    ),
)

# What a command of the Dockerfile says, or the builder of it.
STEP = (
    (
        r"no space left on device",
        "The disk of Docker's data-root is full, expected room for the image. Make room there: docker system df "
        "shows what takes it, docker builder prune lets go of the build cache.",
    ),
    (
        r"^torch gate: (?P<words>the base image has no torch.*)",
        "{words}; this is {base}. Set comfyui_base_image to one, as the default is.",
    ),
    (
        r"^torch gate: (?P<words>the base has (?:torch|Python) .*)",
        "ComfyUI {version} does not run on {base}: {words}. Set comfyui_base_image to another base, or "
        "comfyui_version to another version.",
    ),
    (
        r"^torch gate: (?P<words>.*)",
        "A requirement moved what belongs to the base image: {words}. Expected that it stays as it was, to the byte. "
        "{mend}",
    ),
    (
        r"^The conflict is caused by:\n(?P<words>(?:[ \t]+\S.*\n?)+)",
        "A requirement asks for another version than the base image or the lock has: {words}. Expected what is "
        "there, the (constraint). {mend}",
    ),
    (
        r"^requirements: (?P<words>.*)",
        "The lock does not match this ComfyUI: {words}. Expected the lock of the commit {commit}. Set "
        "comfyui_version to the version of that commit; or correct roles/comfyui_image/files/locks/{version}.in and "
        "type: make lock",
    ),
    (
        r"^(?P<words>.*DO NOT MATCH THE HASHES(?:.*\n)*.*Got.*)",
        "The package index handed out something else than what is locked: {words}. Expected the locked bytes. Set "
        "comfyui_package_index to an index that has them.",
    ),
    (
        r"^(?P<words>.*CERTIFICATE_VERIFY_FAILED.*)",
        "A certificate on the way to the package index is not trusted: {words}. Expected a known issuer. Put the PEM "
        "bundle of the firewall on this host and set comfyui_extra_ca_bundle to its path.",
    ),
    (
        r"^(?P<words>ERROR: (?:No matching distribution|Could not find a version|HTTP error|.*connection"
        r"|Could not install packages due to an OSError).*)",
        "The package index did not hand out what is locked: {words}. Expected an index with all of it that answers "
        "this host. Set comfyui_package_index to a mirror, or comfyui_proxy.",
    ),
    (
        r"^(?P<words>E: (?:Unable to locate|Failed to fetch|Package|Release file|The repository|Some index).*)",
        "The package archive of the base image did not hand out its libraries: {words}. Expected one that answers "
        "this host. Set comfyui_proxy, or comfyui_image_system_packages to what the archive has (an empty list asks "
        "for none).",
    ),
)


def first_fit(table: tuple[tuple[str, str], ...], text: str, words: Mapping[str, Any]) -> str:
    """The sentence of the first pattern that is in the text, with all that it finds there; empty where none is."""
    for pattern, sentence in table:
        if found := list(re.finditer(pattern, text, re.MULTILINE | re.IGNORECASE)):
            own = dict.fromkeys(" ".join(match.groupdict().get("words", "").split()) for match in found)
            return sentence.format(**{**words, **({"words": "; ".join(own)} if any(own) else {})})
    return ""


def failure(result: Mapping[str, Any], action: str, image: Mapping[str, Any]) -> str:
    """Why a task of the role failed: `result` is the task's, `action` its module's name.

    `image` has version, commit, repository, base, build_dir, and item, the custom node that was fetched, if it was one.
    """
    text = "\n".join(str(result.get(key)) for key in ("msg", "stderr") if result.get(key))
    text = re.sub(r"(\w+://)[^/@\s]*@", r"\1", text)  # an address may hold a password
    words: dict[str, Any] = {**image, "words": " ".join(text.split()).rstrip(".")}
    if action == "git":
        node = item if (item := image.get("item") or {}).get("name") else {}
        repository = re.sub(r"^(\w+://)[^/@]*@", r"\1", node.get("repo") or image["repository"])
        words |= {"repository": repository, "commit": node.get("commit") or image["commit"]}
        words["of"] = f"one of the custom node {node['name']}" if node else f"the one of ComfyUI {image['version']}"
        words["what"] = f"the custom node {node['name']}" if node else "ComfyUI's source"
        words["tag"] = "" if node else f" v{image['version']}"
        words["variable"] = "comfyui_custom_nodes" if node else "comfyui_source_repo"
        words["commit_variable"] = "comfyui_custom_nodes" if node else "comfyui_source_commit"
        return first_fit(GIT, text, words)
    registry, name = image["base"].split("/")[0], image["base"].split("@")[0]
    words |= {"registry": registry, "inspect": f"{INSPECT} {name}"}
    if node_name := re.search(r"what the custom node (\S+) asks for", text):
        words["mend"] = (
            f"The custom node {node_name[1]} brought it: take it out of comfyui_custom_nodes, or choose another commit."
        )
    else:
        words["mend"] = (
            f"Take it out of roles/comfyui_image/files/locks/{image['version']}.in, or add it to base.txt there; then "
            "type: make lock"
        )
    solving = re.search(r"failed to solve: .*", text)
    # A layer of the base is named by its digest alone; only what is fetched can have a wrong one.
    of_base = solving and (
        image["base"] in solving[0]
        or " FROM " in str(result.get("step", ""))
        or re.search("unexpected commit digest", solving[0])
    )
    if solving and of_base and not re.search("did not complete|no space|context canceled", solving[0]):
        return first_fit(BASE, solving[0], {**words, "words": solving[0]})
    if found := first_fit(STEP, text, words):
        return found
    if result.get("interrupted") or re.search("context canceled|error reading from server|signal: killed", text):
        return (
            f"{words['words']}. The build was interrupted, expected that it ends. Run this again: it goes on from the "
            "last step."
        )
    return f"{words['words']}. The table in roles/comfyui_image/README.md says what mends it."


class FilterModule:
    """The filters, by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"comfyui_image_failure": failure}
