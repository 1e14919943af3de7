"""What is known of versions, what fits them, why a build failed: sentences with found, expected, and what to type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from filter import comfyui_image as filters
from filter.comfyui_image_failure import failure
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
SITE = yaml.safe_load((ROOT / "inventory/group_vars/all/comfyui_versions.yml").read_text())
VERSIONS, ADVISORIES = SITE["comfyui_versions"], SITE["comfyui_advisories"]
GOOD_BASE = f"nvcr.io/nvidia/pytorch:26.09-py3@sha256:{'6' * 64}"
NODE = {"name": "some-node", "repo": "https://example.com/node.git", "commit": "2" * 40}


def test_every_version_with_advisories_is_warned_about_and_no_other() -> None:
    assert filters.version_warnings("0.28.1", VERSIONS, ADVISORIES) == []
    assert filters.version_warnings("0.33.0", VERSIONS, ADVISORIES) == []
    (warning,) = filters.version_warnings("0.3.68", VERSIONS, ADVISORIES)
    assert all(f"{one['id']} (high, {one['what']}, fixed in {one['fixed_in']})" in warning for one in ADVISORIES)
    assert warning.endswith("Set comfyui_version to 0.28.1 or 0.33.0.")


def test_an_advisory_counts_only_below_the_release_that_fixed_it() -> None:
    advisories, unknown = filters.version_warnings("0.9.2", VERSIONS, ADVISORIES)
    assert "GHSA-95pq-hr8p-f5g7" not in advisories  # fixed in 0.3.76, and 9 is more than 3
    assert "GHSA-53g8-45wq-pcv8" in advisories
    assert "ComfyUI 0.9.2 IS NOT KNOWN HERE" in unknown
    assert "Known are 0.3.68, 0.28.1, 0.33.0." in unknown


@pytest.mark.parametrize(
    ("flags", "version", "words"),
    [
        ([], "0.28.1", []),
        (["--port", "8188", "--reserve-vram", "8", "--fast", "cublas_ops"], "0.28.1", []),
        (["--reserve-vram=8"], "0.28.1", []),
        (["--normalvram"], "0.28.1", ["no flag --normalvram", "0.3.68 has it", "Take it out of comfyui_extra_flags"]),
        (["--normalvram"], "0.3.68", []),
        (
            ["--disable-pinned-memory"],
            "0.3.68",
            ["no flag --disable-pinned-memory", "0.28.1 and 0.33.0 have it", "set comfyui_version to 0.28.1 or 0.33.0"],
        ),
        (["--use-ck-attention"], "0.28.1", ["0.33.0 has it"]),
        (["--high-vram"], "0.28.1", ["did you mean --highvram?", "Correct comfyui_extra_flags"]),
        (["--qqq"], "0.28.1", ["no flag is like it"]),
        (["--cpu", "--gpu-only"], "0.28.1", ["--cpu and --gpu-only are given together", "comfyui_device"]),
        (["--fp16-vae", "--bf16-vae"], "0.28.1", ["expected one of them at most. Correct comfyui_extra_flags."]),
        (["--cpu", "--cpu"], "0.28.1", []),
        (["--anything"], "0.99.0", []),
    ],
)
def test_flags_are_those_of_the_version(flags: list[str], version: str, words: list[str]) -> None:
    problems = filters.flag_problems(flags, version, VERSIONS)
    assert len(problems) == (1 if words else 0)
    assert all(word in problems[0] for word in words)


@given(flags=st.lists(st.text(max_size=12) | st.sampled_from(VERSIONS["0.28.1"]["flags"])), version=st.text())
def test_no_flags_break_the_check(flags: list[str], version: str) -> None:
    filters.flag_problems(flags, version, VERSIONS)
    for problem in filters.flag_problems(flags, "0.28.1", VERSIONS):
        assert "expected" in problem


def image(**more: Any) -> dict[str, Any]:
    return {
        "version": "0.28.1",
        "commit": "1" * 40,
        "repository": "https://example.com/ComfyUI.git",
        "base": GOOD_BASE,
        "build_dir": "/var/lib/comfyui/image",
        "locks": ["0.28.1", "0.3.68", "0.33.0"],
        "nodes": [],
        "capabilities": [],
        "first_bases": {"12.1": "25.09"},
        **more,
    }


def test_good_inputs_have_no_problem() -> None:
    assert filters.input_problems(image(nodes=[NODE], capabilities=["9.0", "12.1"])) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"version": "0.99.0"}, ["has no lock", "expected one of 0.3.68, 0.28.1, 0.33.0", "make lock"]),
        ({"commit": ""}, ['The commit to build is ""', "git ls-remote https://example.com/ComfyUI.git v0.28.1"]),
        (
            {"commit": "main", "repository": "https://me:secret@example.com/ComfyUI.git"},
            ["git ls-remote https://example.com/ComfyUI.git"],
        ),
        ({"base": "nvcr.io/nvidia/pytorch:26.09-py3"}, ["expected NAME:TAG@sha256:", "imagetools inspect nvcr.io/nv"]),
        (
            {"base": f"nvcr.io/nvidia/pytorch:24.11-py3@sha256:{'6' * 64}", "capabilities": ["9.0", "12.1"]},
            ["tag is 24.11", "compute capability 12.1", "Expected 25.09 or newer, the first that has"],
        ),
        ({"nodes": ["https://example.com/node.git"]}, ["is not complete", "Correct comfyui_custom_nodes"]),
        (
            {"nodes": [{**NODE, "repo": "https://me:secret@example.com/node.git", "commit": "1"}]},
            ["https://example.com/"],
        ),
        ({"nodes": [{**NODE, "commit": "main"}]}, ["is not complete", "40 lower-case hex digits"]),
        ({"nodes": [{**NODE, "name": "../app"}]}, ["is not complete"]),
        ({"nodes": [NODE, NODE]}, ["Two custom nodes have the name some-node"]),
        ({"nodes": [{**NODE, "requirements": ["humanize"]}]}, ["of the custom node some-node are ['humanize']"]),
        ({"nodes": [{**NODE, "requirements": ""}]}, ["are '', expected the text", "or leave them out"]),
    ],
)
def test_bad_inputs_are_refused(more: dict[str, Any], words: list[str]) -> None:
    (problem,) = filters.input_problems(image(**more))
    assert all(word in problem for word in words)
    assert "secret" not in problem


@pytest.mark.parametrize(
    ("base", "capabilities"),
    [
        (f"nvcr.io/nvidia/pytorch:24.11-py3@sha256:{'6' * 64}", ["9.0"]),
        (f"nvcr.io/nvidia/pytorch:25.09-py3@sha256:{'6' * 64}", ["12.1"]),
        (f"registry.example.com/own:24.11@sha256:{'6' * 64}", ["12.1"]),  # the image itself is asked after the build
    ],
)
def test_a_base_that_may_serve_is_not_refused(base: str, capabilities: list[str]) -> None:
    assert filters.base_problem(base, capabilities, {"12.1": "25.09"}) == ""


def test_the_first_base_is_the_newest_that_a_gpu_needs() -> None:
    bases = {"10.3": "26.02", "12.1": "25.09"}
    assert filters.first_base(["9.0", "12.1"], bases) == "25.09"
    assert filters.first_base(["10.3", "12.1"], bases) == "26.02"
    assert filters.first_base(["9.0"], bases) == ""


def test_only_images_that_nothing_names_are_left_over() -> None:
    used = '{"image": "dgx-comfyui:0.28.1-aaa"}\ndgx-comfyui:0.3.68-ccc\n'
    assert filters.leftovers("0.28.1-aaa\n0.28.1-bbb\n0.3.68-ccc\n0.28.1-ddd\n<none>\n", "0.28.1-ddd", used) == [
        "0.28.1-bbb"
    ]


def test_a_login_is_not_shown() -> None:
    assert filters.without_login("https://me:secret@example.com/a/b.git") == "https://example.com/a/b.git"
    assert filters.without_login("https://me:s@cret@example.com/a.git") == "https://example.com/a.git"
    assert filters.without_login("{'a': 'https://example.com','b':'c@d'}") == "{'a': 'https://example.com','b':'c@d'}"
    assert filters.without_login("https://example.com/a@b.git") == "https://example.com/a@b.git"
    assert filters.without_login("git@example.com:a/b.git") == "git@example.com:a/b.git"


PIP_CONFLICT = """Building dgx-comfyui:1-0 failed at step 9/14 RUN echo 'Installing what the custom node greedy \
asks for' && if [ -f x ]; then pip install; fi, after 8.2 s. Its last lines:
Collecting torch>=2.99

The conflict is caused by:
    xformers 0.0.33 depends on torch==2.99
    The user requested (constraint) torch==2.6.0

Additional packages in the resolver set:
    numpy 2.2.4

ERROR: Cannot install torch>=2.99 because these package versions have conflicting dependencies.
ERROR: ResolutionImpossible: for help
"""


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (
            {"msg": "x\ntorch gate: the base image has no torch, expected a PyTorch image"},
            ["the base image has no torch", GOOD_BASE, "Set comfyui_base_image to one"],
        ),
        (
            {"msg": "x\ntorch gate: the base has torch 2.6.0, expected 2.7 or newer"},
            ["ComfyUI 0.28.1 does not run on", "expected 2.7 or newer", "comfyui_version"],
        ),
        (
            {"msg": "x\ntorch gate: torch: the base has 1, found 2, asked for by xformers 0.0.33 (torch==2.11.0)"},
            ["A requirement moved", "asked for by xformers", "locks/0.28.1.in", "make lock"],
        ),
        (
            {"msg": PIP_CONFLICT},
            [
                ": xformers 0.0.33 depends on torch==2.99 The user requested (constraint) torch==2.6.0. Expected",
                "The custom node greedy brought it",
            ],
        ),
        (
            {"msg": "x\nrequirements: ComfyUI asks for av>=17, the lock has 16.1.0"},
            [
                "ComfyUI asks for av>=17, the lock has 16.1.0",
                f"Expected the lock of the commit {'1' * 40}",
                "make lock",
            ],
        ),
        (
            {
                "msg": "x\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n    einops:\n"
                "        Expected sha256 aa\n             Got        bb"
            },
            ["something else than what is locked", "Got bb", "comfyui_package_index"],
        ),
        ({"msg": "ssl.SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED: unable"}, ["comfyui_extra_ca_bundle"]),
        (
            {"msg": "ERROR: No matching distribution found for einops==0.8.1"},
            ["einops==0.8.1", "comfyui_package_index to a mirror"],
        ),
        ({"msg": "E: Failed to fetch http://archive.example.com/libgl1"}, ["libgl1", "comfyui_image_system_packages"]),
        (
            {"msg": "#9 ERROR: failed to solve: write /var/lib/docker/x: no space left on device"},
            ["data-root is full", "docker builder prune"],
        ),
        (
            {"msg": f"failed to solve: {GOOD_BASE}: failed to do request: dial tcp: connection refused"},
            ["could not be fetched", "connection refused", "or set comfyui_base_image to a mirror"],
        ),
        ({"msg": f"failed to solve: {GOOD_BASE}: not found"}, ["does not know", "imagetools inspect nvcr.io"]),
        (
            {"msg": f"failed to solve: {GOOD_BASE}: failed to copy: digest mismatch sha256:1: sha256:2"},
            ["something else than", "damages what it serves"],
        ),
        (  # as in docker/buildx#1775
            {
                "msg": 'x\nERROR: failed to solve: failed to compute cache key: failed commit on ref "layer-sha256:1": '
                "unexpected commit digest sha256:2, expected sha256:1"
            },
            ["something else than", "expected sha256:1", "damages what it serves"],
        ),
        (
            {
                "msg": "x\nERROR: failed to solve: failed to copy: read tcp: connection reset by peer",
                "step": "1/9 FROM nvcr.io/nvidia/pytorch:26.09-py3",
            },
            ["could not be fetched", "connection reset", "or set comfyui_base_image to a mirror"],
        ),
        ({"msg": f"failed to solve: {GOOD_BASE}: 401 Unauthorized"}, ["docker login nvcr.io"]),
        ({"msg": f"failed to solve: {GOOD_BASE}: no match for platform in manifest"}, ["architecture"]),
        (
            {"msg": "x\nERROR: failed to solve: Canceled: context canceled", "step": "1/9 FROM nvcr.io/nvidia/pytorch"},
            ["was interrupted", "Run this again"],
        ),
        ({"msg": "Building ended in the middle: RUN pip", "interrupted": True}, ["was interrupted", "Run this again"]),
        (
            {"msg": "Building failed for a reason of its own."},
            ["of its own. The table in roles/comfyui_image/README.md"],
        ),
    ],
)
def test_a_failed_build_says_what_to_type(result: dict[str, Any], words: list[str]) -> None:
    sentence = failure(result, "comfyui_image_build", image())
    assert [word for word in words if word not in sentence] == [], sentence
    assert "\n" not in sentence
    assert "{" not in sentence


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("fatal: remote error: upload-pack: not our ref 111", ["does not serve the commit 1", "ls-remote", " v0.28.1"]),
        ("fatal: repository 'https://example.com/' not found", ["There is no git repository at", "or a mirror of it"]),
        ("fatal: Authentication failed for 'x'", ["wants a login", "Set comfyui_source_repo"]),
        ("fatal: write error: No space left on device", ["/var/lib/comfyui/image could not be written"]),
        (
            "fatal: Unable to create '/var/lib/comfyui/image/source/.git/index.lock': File exists.",
            ["could not be fetched", "index.lock': File exists"],
        ),
        ("fatal: unable to access 'https://me:secret@example.com/': Could not resolve host", ["could not be fetched"]),
    ],
)
def test_a_failed_fetch_says_what_to_type(stderr: str, words: list[str]) -> None:
    sentence = failure({"msg": "", "stderr": stderr}, "git", image())
    assert [word for word in words if word not in sentence] == [], sentence
    assert "secret" not in sentence


def test_a_failed_fetch_of_a_custom_node_names_it() -> None:
    sentence = failure({"msg": "not our ref"}, "git", image(item={**NODE, "dir": "custom_nodes/some-node"}))
    assert f"https://example.com/node.git does not serve the commit {'2' * 40}" in sentence
    assert "expected one of the custom node some-node. Set comfyui_custom_nodes" in sentence
    own = failure({"msg": "not our ref"}, "git", image(item={"repo": "x", "commit": "y", "dir": "source"}))
    assert "expected the one of ComfyUI 0.28.1. Set comfyui_source_commit" in own


RECORD = "/etc/comfyui/images/x.json"


def image_probe(image: str = "sha256:1", record: str | None = '{"image_id": "sha256:1"}', engine: int = 0) -> Any:
    file = {"kind": "absent" if record is None else "file", "content": record}
    commands = {"image": {"stdout": image and f"{image}\n"}, "engine": {"rc": engine}}
    return {"files": {RECORD: file}, "commands": commands}


@pytest.mark.parametrize(
    ("probe", "fault"),
    [
        (image_probe(), ""),
        (image_probe(image=""), "absent"),
        (image_probe(record=None), "there, without its record"),
        (image_probe(image="sha256:2"), "another one than its record says"),
        (image_probe(record=""), "another one than its record says"),
        (image_probe(record="[]"), "another one than its record says"),
    ],
)
def test_an_image_is_right_where_its_record_speaks_of_it(probe: Any, fault: str) -> None:
    assert filters.image_fault(probe, RECORD, dry=False) == fault
    assert filters.image_fault(probe, RECORD, dry=True) == fault


def test_a_dry_run_believes_the_record_where_no_engine_answers() -> None:
    assert filters.image_fault(image_probe(image="", engine=1), RECORD, dry=True) == ""
    assert filters.image_fault(image_probe(image="", engine=1), RECORD, dry=False) == "absent"
    assert filters.image_fault(image_probe(image="", record=None, engine=127), RECORD, dry=True) == "absent"
