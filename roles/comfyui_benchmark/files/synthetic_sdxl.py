#!/usr/bin/python3
"""Write a synthetic SDXL checkpoint: the layout of the real one, random values, no knowledge.

For machines that cannot reach a model hub. What it renders is noise, but the work is that of SDXL, since the time that
a tensor takes does not depend on its values. It can never pass for SDXL: its digest is another one, so the model
store refuses it under SDXL's name; its metadata and its file name say what it is.

    python3 synthetic_sdxl.py FOLDER     writes FOLDER/synthetic-not-sdxl.safetensors, 6.94 GB

Standard library only: any Python 3.10 runs it, the container's too.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

NAME = "synthetic-not-sdxl.safetensors"
LAYOUT = Path(__file__).with_name("sdxl_layout.txt")
METADATA = {
    "format": "pt",
    "modelspec.title": "synthetic checkpoint, not SDXL",
    "synthetic": "random values in SDXL's layout, for measuring speed",
}
SIZE_B = {"F16": 2, "I64": 8}
BLOCK_VALUES = 1 << 18
# The last layer of each residual branch: a small gain keeps the sum over all blocks, and so the images, finite, and
# lets a rounding error stay one.
BRANCH_ENDS = ("out_layers.3", "ff.net.2", "to_out.0", "proj_out", "out_proj", "fc2", "c_proj", "conv2")
BRANCH_GAIN = 0.2
EMBEDDING_STD = 0.02


class Tensor(NamedTuple):
    """One tensor of the layout."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def expand(pattern: str) -> Iterator[str]:
    """Every name that a pattern stands for: `a|b` each of them, `2-4` the numbers from 2 to 4, per part."""
    choices = []
    for part in pattern.split("."):
        first, dash, last = part.partition("-")
        if dash and first.isdigit() and last.isdigit():
            choices.append([str(number) for number in range(int(first), int(last) + 1)])
        else:
            choices.append(part.split("|"))
    for parts in itertools.product(*choices):
        yield ".".join(parts)


def read_layout(lines: Iterable[str]) -> list[Tensor]:
    """The tensors of a layout, sorted by name."""
    tensors = []
    for line in lines:
        if line.startswith("#"):
            continue
        kind, shape, pattern = line.split()
        sizes = () if shape == "scalar" else tuple(int(size) for size in shape.split("x"))
        tensors += [Tensor(name, kind, sizes) for name in expand(pattern)]
    return sorted(tensors)


def deviation(tensor: Tensor) -> float | None:
    """Standard deviation of a tensor's random values; None where it is constant (norms, biases, scalars)."""
    name = tensor.name
    if len(tensor.shape) < 2:
        return None
    if "embedding" in name:
        return EMBEDDING_STD
    inputs = math.prod(tensor.shape[1:])
    gain = BRANCH_GAIN if any(f"{end}." in name for end in BRANCH_ENDS) else 1.0
    return gain / math.sqrt(inputs)


def constant(tensor: Tensor) -> float:
    """The value of a constant tensor: a norm's weight passes on what it gets, a bias adds nothing."""
    return 0.0 if tensor.name.endswith("bias") else 1.0


def header(tensors: Iterable[Tensor]) -> bytes:
    """The head of a safetensors file, its length included, padded to eight bytes."""
    entries: dict[str, object] = {"__metadata__": METADATA}
    at_b = 0
    for tensor in tensors:
        end_b = at_b + tensor.values * SIZE_B[tensor.kind]
        entries[tensor.name] = {"dtype": tensor.kind, "shape": list(tensor.shape), "data_offsets": [at_b, end_b]}
        at_b = end_b
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class Noise:
    """Half-precision noise: one block of values per deviation, read from another place for each tensor."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)  # noqa: S311 - nothing here is secret
        values = (self._random.gauss(0, 1) for _ in range(BLOCK_VALUES))
        self._unit = [max(-4.0, min(4.0, value)) for value in values]
        self._blocks: dict[float, bytes] = {}

    def pieces(self, deviation_: float, values: int) -> Iterator[bytes]:
        """The bytes of so many values."""
        block = self._blocks.get(deviation_)
        if block is None:
            block = struct.pack(f"<{BLOCK_VALUES}e", *(value * deviation_ for value in self._unit))
            self._blocks[deviation_] = block
        at_b = 2 * self._random.randrange(BLOCK_VALUES)
        left_b = 2 * values
        while left_b:
            piece = block[at_b : at_b + left_b]
            yield piece
            left_b -= len(piece)
            at_b = 0


def pieces(tensor: Tensor, noise: Noise) -> Iterator[bytes]:
    """The data of one tensor."""
    if tensor.kind == "I64":  # the only one: positions 0, 1, 2, ...
        yield struct.pack(f"<{tensor.values}q", *range(tensor.values))
        return
    std = deviation(tensor)
    if std is not None:
        yield from noise.pieces(std, tensor.values)
    else:
        yield struct.pack("<e", constant(tensor)) * tensor.values


def write(folder: Path, tensors: list[Tensor]) -> Path:
    """Write the checkpoint under its own name, whole or not at all."""
    target = folder / NAME
    fresh = folder / f".{NAME}.part"
    noise = Noise()
    with fresh.open("wb", buffering=1 << 20) as out:
        out.write(header(tensors))
        for tensor in tensors:
            for piece in pieces(tensor, noise):
                out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    fresh.chmod(0o644)
    fresh.rename(target)
    return target


def main(arguments: list[str]) -> int:
    """Entry point."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        sys.stderr.write(
            "usage: synthetic_sdxl.py FOLDER\nFOLDER is ComfyUI's models/checkpoints, and has to be there.\n"
        )
        return 2
    sys.stdout.write(f"{write(Path(arguments[0]), read_layout(LAYOUT.read_text().splitlines()))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
