"""Filter over key files of apt: whether one holds the expected key and no other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

# The control node imports no module_utils by itself; hosts and control node are to judge by the same functions.
sys.path.append(str(Path(__file__).resolve().parent.parent / "module_utils"))

from openpgp import holds_key


class FilterModule:
    """The filters, by name."""

    def filters(self) -> dict[str, Callable[..., bool]]:
        return {"apt_key_is": holds_key}
