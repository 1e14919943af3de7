"""Stands where ComfyUI imports torchaudio at its start and the base image has none.

The public wheels are built against another torch than NVIDIA's and end in `undefined symbol`, so none is installed.
Importing this succeeds; using it fails, and says why.
"""

from __future__ import annotations

import sys
from types import ModuleType

__version__ = "0.0.0+absent"


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"torchaudio.{name} is not available: this image's base has no torchaudio that fits its torch, "
        "so audio nodes cannot run here. Image nodes do not need it."
    )


# ComfyUI 0.33.0 imports this one by name when it starts (comfy/text_encoders/gemma4.py).
functional = sys.modules["torchaudio.functional"] = ModuleType("torchaudio.functional", __doc__)
functional.__getattr__ = lambda name: __getattr__(f"functional.{name}")  # type: ignore[method-assign]
