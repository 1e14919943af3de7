"""The GPU request: which names it may have, what a host can hand over, and how `docker run` is asked."""

from __future__ import annotations

import csv
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_request import gpu_request, missing_devices, parse_gpus, requested, spellings

WHOLE = "GPU-5ba1d1e4-0000-4000-8000-000000000100"
SPLIT = "GPU-5ba1d1e4-0000-4000-8000-000000000101"
PARTS = ["MIG-5ba1d1e4-0000-5000-8000-000000000110", "MIG-5ba1d1e4-0000-5000-8000-000000000111"]
LISTING = f"""\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: {WHOLE})
GPU 1: NVIDIA H100 80GB HBM3 (UUID: {SPLIT})
  MIG 3g.40gb     Device  0: (UUID: {PARTS[0]})
  MIG 3g.40gb     Device  1: (UUID: {PARTS[1]})
"""
NAMES = st.lists(
    st.integers(0, 15).map(str)
    | st.tuples(st.integers(0, 7), st.integers(0, 6)).map(lambda pair: f"{pair[0]}:{pair[1]}")
    | st.uuids().map(lambda uuid: f"GPU-{uuid}")
    | st.uuids().map(lambda uuid: f"MIG-{uuid}"),
    min_size=1,
    max_size=8,
    unique=True,
)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("all", ["all"]),
        (["none"], ["none"]),
        (0, ["0"]),
        ("0, 1:0,0", ["0", "1:0"]),
        ([0, WHOLE, PARTS[0]], ["0", WHOLE, PARTS[0]]),
    ],
)
def test_a_request_is_read_in_every_spelling(value: Any, names: list[str]) -> None:
    assert requested(value) == names


@pytest.mark.parametrize("value", ["", [], "al", "all,0", ["none", "0"], "-1", "nvidia.com/gpu=0", "GPU-", {"a": 1}])
def test_anything_else_is_refused_in_words(value: Any) -> None:
    with pytest.raises(ValueError, match=r"in the GPU request, expected all, none, auto, or a list"):
        requested(value)


def test_the_listing_names_gpus_and_their_parts() -> None:
    whole, split = parse_gpus(f"a driver's warning\n{LISTING}")
    assert (whole.index, whole.name, whole.uuid, whole.mig) == ("0", "NVIDIA H100 80GB HBM3", WHOLE, {})
    assert split.mig == {"1:0": PARTS[0], "1:1": PARTS[1]}
    assert spellings([whole, split]) == [["0", WHOLE], ["1:0", PARTS[0]], ["1:1", PARTS[1]]]


@pytest.mark.parametrize(
    ("value", "problems"),
    [
        ("all", []),
        ("none", []),
        (f"0,{WHOLE},1:1,{PARTS[0]}", []),
        ("1", ["GPU 1 is split by MIG into 1:0, 1:1"]),
        (SPLIT, [f"GPU {SPLIT} is split by MIG into 1:0, 1:1"]),
        ("0,7", [f"GPU 7 is not on this host, which has 0, {WHOLE}, 1:0, {PARTS[0]}, 1:1, {PARTS[1]}"]),
    ],
)
def test_a_device_that_the_host_cannot_hand_over_is_named(value: str, problems: list[str]) -> None:
    assert missing_devices(requested(value), parse_gpus(LISTING)) == problems


def test_a_gpu_in_mig_mode_without_an_instance_has_nothing_to_give() -> None:
    listing = LISTING + "GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-00000000-0000-4000-8000-00000000000f)\n"
    gpus = parse_gpus(listing, "0, Disabled\n1, Enabled\n2, Enabled\n")
    assert spellings(gpus) == spellings(parse_gpus(LISTING))
    assert missing_devices(["2"], gpus) == [
        "GPU 2 is in MIG mode and has no instance (sudo nvidia-smi mig -lgip shows which it may)"
    ]
    assert missing_devices(["2"], parse_gpus(listing, "2, [N/A]\n")) == []


def test_a_whole_gpu_is_listed_as_an_h100_with_driver_580_does() -> None:
    answer = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-742f5316-0000-4000-8000-017429b68d4c)\n"
    assert spellings(parse_gpus(answer)) == [["0", "GPU-742f5316-0000-4000-8000-017429b68d4c"]]


def test_a_host_without_a_listing_has_no_device() -> None:
    assert missing_devices(["0"], []) == ["GPU 0 is not on this host, which has none"]


# The rows of the table of ways: NVIDIA Container Toolkit and Docker by version.
@pytest.mark.parametrize(
    ("engine", "toolkit", "way", "reason"),
    [
        ("20.10.24", "1.20.1-1", "gpus", "Docker 20.10.24 has no CDI, which came with 25.0"),
        ("24.0.9", "1.20.1-1", "gpus", "--gpus is the legacy hook"),
        ("25.0.0", "1.20.1-1", "cdi", "Docker 25.0.0 has CDI by features.cdi"),
        ("26.1.5+dfsg1", "1.20.1-1", "cdi", "has CDI by features.cdi"),
        ("28.1.1", "1.18.0-1", "cdi", "has CDI by features.cdi"),
        ("28.2.0", "1.18.0-1", "cdi", "Docker 28.2.0 has CDI by itself"),
        ("29.1.5", "1.17.8-1", "gpus", "--gpus is the legacy hook"),
        ("29.2.1", "1.17.8-1", "gpus", "--gpus is CDI or the legacy hook, as dockerd found the toolkit at its start"),
        ("29.8.2", "1.20.1-1", "cdi", "by CDI a running container keeps its GPUs over a daemon-reload"),
        ("29.8.2", "", "cdi", "Docker 29.8.2 has CDI by itself"),
        ("", "", "cdi", "the engine that is to be installed has CDI by itself"),
        ("", "1.17.8-1", "gpus", "toolkit 1.17.8-1 has nothing that keeps a CDI specification current"),
    ],
)
def test_the_way_follows_engine_and_toolkit(engine: str, toolkit: str, way: str, reason: str) -> None:
    asked = gpu_request("all", engine=engine, toolkit=toolkit)
    assert asked.way == way
    assert asked.arguments == {"cdi": ["--device", "nvidia.com/gpu=all"], "gpus": ["--gpus", "all"]}[way]
    assert any(reason in given for given in asked.reasons)


def test_no_gpu_is_no_argument() -> None:
    assert gpu_request("none", engine="20.10", toolkit="").arguments == []


def test_what_nobody_decided_is_refused() -> None:
    with pytest.raises(ValueError, match="'auto' in the GPU request"):
        gpu_request("auto", engine="29.8.2", toolkit="1.20.1-1")


@given(NAMES)
def test_by_cdi_every_device_is_an_argument_of_its_own(names: list[str]) -> None:
    arguments = gpu_request(names, engine="29.8.2", toolkit="1.20.1-1").arguments
    assert arguments[::2] == ["--device"] * len(names)
    assert arguments[1::2] == [f"nvidia.com/gpu={name}" for name in names]


@given(NAMES)
def test_the_flag_is_one_field_of_csv(names: list[str]) -> None:
    flag, value = gpu_request(names, engine="24.0.9", toolkit="1.20.1-1").arguments
    assert flag == "--gpus"
    assert next(csv.reader([value])) == [f"device={','.join(names)}"]


@given(NAMES)
def test_a_request_as_text_is_the_request_as_a_list(names: list[str]) -> None:
    assert requested(",".join(names)) == requested(names) == names
