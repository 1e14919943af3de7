"""What the parts of the model store share: the file that is wanted, and the two ways to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ansible.module_utils import model_files as rules

# Told what goes on: a text, and with done_b and total_b how far it is.
Report = Callable[..., None]


def nobody(*_args: Any, **_kwargs: Any) -> None:
    """The report to nobody."""


class StoreError(Exception):
    """The run ends with this message; trying again would not help, or was done often enough."""


class TemporaryError(Exception):
    """The transfer broke; what has arrived is kept and the rest may be asked for again."""

    def __init__(self, message: str, asked_s: float = 0.0, *, is_network: bool = False) -> None:
        super().__init__(message)
        self.asked_s = asked_s
        self.is_network = is_network


@dataclass(frozen=True)
class Wanted:
    """One file: what it is, where it goes, how it is fetched.

    `size_b` and `sha256` are 0 and empty where the catalogue leaves them to the hub. `sources` are paths on the host
    where the file may lie; with any of them no hub is asked.
    """

    repo: str
    commit: str
    path: str
    size_b: int
    sha256: str
    dest: str
    endpoint: str
    sources: tuple[str, ...] = ()
    licence: str = ""
    token: str = ""
    ca_bundle: str = ""
    proxy: str = ""
    package_index: str = ""
    hub_dir: str = ""
    hub_requirements: str = ""
    hub_program: str = ""
    attempts: int = 6
    retry_delay_s: float = 1.0
    stall_timeout_s: float = 60.0

    @property
    def url(self) -> str:
        return rules.resolve_url(self.endpoint, self.repo, self.commit, self.path)

    @property
    def part(self) -> str:
        return f"{self.dest}.part"

    @property
    def note(self) -> str:
        """What the kept bytes belong to."""
        return f"{self.dest}.part.json"

    @property
    def record(self) -> str:
        return f"{self.dest}.verified.json"

    @property
    def entry(self) -> dict[str, Any]:
        """The catalogue's part of it."""
        fields = asdict(self)
        return {key: fields[key] for key in ("repo", "commit", "path", "size_b", "sha256", "licence")}


def given_up(error: TemporaryError, failures: int, rest: str) -> str:
    """The last word after so many attempts; `rest` says what is kept."""
    advice = (
        " If this host reaches the hub only through a mirror or a proxy, set comfyui_model_endpoint or comfyui_proxy."
        if error.is_network
        else ""
    )
    return f"{str(error).removesuffix('.')}. Gave up after {failures} attempts; {rest}.{advice}"


def wrong_source(wanted: Wanted, path: str, digest: str) -> str:
    """What to say of a file of the host that is not the published one."""
    return (
        f"{path} has the SHA-256 {digest}, the catalogue says {wanted.sha256}. It was left as it is, and nothing of it "
        "was kept. Put the published file there, or correct comfyui_model_files or comfyui_model_endpoint."
    )
