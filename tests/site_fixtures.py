"""What every Testinfra file gets: the site's variables as they came out for this host, and a folder for evidence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def evidence() -> Path:
    """Folder on the control node that keeps what a test saw; playbooks/verify.yml names it."""
    return Path(os.environ["EVIDENCE_DIR"])


@pytest.fixture(scope="session")
def site(evidence: Path) -> dict[str, Any]:
    """The site variables, rendered for the host under test."""
    variables: dict[str, Any] = json.loads((evidence / "site.json").read_text())
    return variables
