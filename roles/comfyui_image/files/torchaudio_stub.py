"""Stands where ComfyUI imports torchaudio at its start and the base image has none.

The public wheels are built against another torch than NVIDIA's and end in `undefined symbol`, so none is installed.
Importing this succeeds; using it fails, and says why.
"""

from __future__ import annotations

__version__ = "0.0.0+absent"


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"torchaudio.{name} is not available: this image's base has no torchaudio that fits its torch, "
        "so audio nodes cannot run here. Image nodes do not need it."
    )
