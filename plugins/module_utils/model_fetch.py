"""Make one path on the host hold the published file, and prove it: the input and output of the model store."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from ansible.module_utils import model_files as rules
from ansible.module_utils import model_hub as hub
from ansible.module_utils.model_transfer import (
    Transfer,
    hash_file,
    lost,
    need_space,
    read_text,
    sync_folder,
    write_text,
)
from ansible.module_utils.model_wanted import (
    Report,
    StoreError,
    TemporaryError,
    Wanted,
    given_up,
    nobody,
    wrong_source,
)

# A dry run leaves a file that stands in the place of a folder where it is.
NOT_THERE = (FileNotFoundError, NotADirectoryError)


@dataclass
class Found:
    """What lies at the destination. `state`: absent, recorded, unproved (right bytes, no valid record) or wrong."""

    state: str
    digest: str = ""
    status: os.stat_result | None = None


class Attributes(Protocol):
    """Owner and mode that were asked for."""

    def give(self, path: str) -> None:
        """Give them to a file."""

    def fit(self, status: os.stat_result) -> bool:
        """Whether a file has them."""


@dataclass
class Outcome:
    """What a run did, or in check mode would do."""

    changed: bool
    outcome: str
    found: str
    quarantined: str = ""
    bytes_fetched: int = 0
    bytes_kept: int = 0
    warnings: list[str] = field(default_factory=list)


def check_format(path: str, size_b: int) -> None:
    """A file that is named as one must be one: the right digest of something else means a wrong catalogue."""
    if not rules.is_safetensors(path.removesuffix(".part")):
        return
    with open(path, "rb") as handle:
        try:
            length_b = rules.safetensors_header_b(handle.read(8), size_b)
            rules.check_safetensors(handle.read(length_b), size_b - 8 - length_b)
        except ValueError as error:
            raise StoreError(f"{path} has the catalogue's digest but is no valid safetensors file: {error}.") from error


def facts_of(status: os.stat_result) -> dict[str, int]:
    """What a record says of a file beside its digest."""
    return {"size_b": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def is_recorded(wanted: Wanted) -> bool:
    """Whether the record speaks for the file that is there."""
    try:
        status = os.stat(wanted.dest)
    except NOT_THERE:
        return False
    return rules.record_proves(read_text(wanted.record), facts_of(status), wanted.entry)


def refuse_link(wanted: Wanted) -> None:
    """A symbolic link in the file's place is somebody's, and the service may not see what it leads to."""
    with contextlib.suppress(OSError):
        raise StoreError(f"{rules.link_problem(wanted.dest, os.readlink(wanted.dest))}.")


def examine(wanted: Wanted, *, audit: bool, report: Report = nobody) -> Found:
    """What lies at the destination; its bytes are read only where the record does not speak for them."""
    try:
        status = os.stat(wanted.dest)
    except NOT_THERE:
        return Found("absent")
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{wanted.dest} is there and is not a file. Move it away and run again.")
    proved = is_recorded(wanted)
    if proved and not audit:
        return Found("recorded", wanted.sha256, status)
    digest = hash_file(wanted.dest, report)
    if digest != wanted.sha256:
        return Found("wrong", digest, status)
    if status.st_size != wanted.size_b:
        raise StoreError(
            f"{wanted.dest} has the catalogue's SHA-256 and {status.st_size} bytes, the catalogue says {wanted.size_b}"
            ". It was left as it is. Correct size_b in the catalogue."
        )
    check_format(wanted.dest, status.st_size)
    return Found("recorded" if proved else "unproved", digest, status)


def from_record(wanted: Wanted) -> Wanted:
    """With size and digest of an earlier run, where the catalogue leaves them to the hub."""
    size_b, sha256 = rules.proof(read_text(wanted.record), wanted.entry)
    return replace(wanted, size_b=size_b, sha256=sha256)


def from_hub(wanted: Wanted, report: Report) -> Wanted:
    """With size and digest that the hub names, where neither catalogue nor record has them."""
    failures = 0
    while not wanted.sha256:
        try:
            place = hub.locate(wanted, report)
            wanted = replace(wanted, size_b=place.size_b or 0, sha256=place.sha256)
        except TemporaryError as error:  # noqa: PERF203  each round is a question to the hub
            failures += 1
            if failures >= wanted.attempts:
                raise StoreError(given_up(error, failures, "nothing has come, run again")) from error
            time.sleep(rules.backoff_s(failures, wanted.retry_delay_s, error.asked_s))
    return wanted


@contextlib.contextmanager
def locked_part(wanted: Wanted) -> Iterator[int]:
    """The `.part` file, open and ours alone; a second run on the host waits here. Left behind only with bytes in it."""
    folder = os.path.dirname(wanted.dest)
    while True:
        try:
            handle = os.open(wanted.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise StoreError(f"The folder {folder} does not exist. The role model_store creates it.") from None
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            # The run before may have renamed or removed the file that this one waited for.
            if os.path.samestat(os.fstat(handle), os.stat(wanted.part)):
                break
        os.close(handle)
    try:
        yield handle
    finally:
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_size == 0 and os.path.samestat(os.fstat(handle), os.stat(wanted.part)):
                os.unlink(wanted.part)
                os.unlink(wanted.note)
        os.close(handle)


def write_record(wanted: Wanted, status: os.stat_result, source: str) -> None:
    with open(wanted.dest, "rb") as file:
        os.fsync(file.fileno())  # what somebody has just put there: a record must not outlive the bytes
    verified_at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    facts = facts_of(status)
    text = rules.make_record(entry=wanted.entry, sha256=wanted.sha256, verified_at=verified_at, source=source, **facts)
    write_text(wanted.record, text, mode=0o644)


def correct_licence(wanted: Wanted) -> bool:
    """Let the record say the catalogue's licence, and leave the rest of the proof as it is; whether it said another."""
    record = read_text(wanted.record)
    if rules.has_licence(record, wanted.entry):
        return False
    noted = {**rules.read_record(record), "licence": wanted.licence}
    write_text(wanted.record, json.dumps(noted, indent=2) + "\n", mode=0o644)
    return True


def believe(wanted: Wanted, found: Found, report: Report) -> None:
    """Raise StoreError where the hub says that it is the catalogue that is wrong, or where it cannot be asked.

    A hub that is out of order says nothing: then the catalogue decides, as it does over a file that was proved by it
    before, and where there is nothing to ask with: only the next run, which finds no file, brings that.
    """
    noted = rules.read_record(read_text(wanted.record))
    if wanted.sources or noted.get("sha256") == wanted.sha256:
        return
    try:
        hub.locate(wanted, report)
    except (TemporaryError, hub.NoVenvError):
        return
    except StoreError as error:
        raise StoreError(
            f"{error} {wanted.dest} has the SHA-256 {found.digest}, not the catalogue's, and was left as it is."
        ) from error


def quarantine(wanted: Wanted, digest: str) -> str:
    """Move a wrong file out of the way, where ComfyUI does not list it; the new path."""
    target = f"{wanted.dest}.rejected-{digest[:12]}"
    os.replace(wanted.dest, target)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(wanted.record)
    sync_folder(os.path.dirname(wanted.dest))
    return target


def linkable(wanted: Wanted, attributes: Attributes) -> str:
    """The file of the host that can have a second name here; empty where there is none.

    It must be on the same filesystem, and as the store's own files are: a link shares owner and mode, so that whoever
    may change the one may change the other, and the one that is not the store's is not to be touched.
    """
    folder = next(path for path in rules.ancestors(os.path.dirname(wanted.dest)) if os.path.isdir(path))
    for path in map(os.path.realpath, wanted.sources):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode) or status.st_size != wanted.size_b:
                continue
            return path if status.st_dev == os.stat(folder).st_dev and attributes.fit(status) else ""
    return ""


def link(wanted: Wanted, path: str, report: Report) -> None:
    """Give a file of the host a second name, once it is proved."""
    before = os.stat(path)
    digest = hash_file(path, report)
    if digest != wanted.sha256:
        raise StoreError(wrong_source(wanted, path, digest))
    check_format(path, wanted.size_b)
    temporary = f"{wanted.dest}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.link(path, temporary)
    status = os.stat(temporary)
    if facts_of(status) != facts_of(before):
        os.unlink(temporary)
        raise StoreError(f"{path} changed while it was read. Run again when nobody writes it.")
    os.replace(temporary, wanted.dest)
    sync_folder(os.path.dirname(wanted.dest))
    write_record(wanted, status, path)


def fetch(wanted: Wanted, part: int, outcome: Outcome, attributes: Attributes, report: Report) -> None:
    """Transfer, prove, and only then give the file its name."""
    with Transfer(wanted, part, report) as transfer:
        try:
            transfer.run()
        finally:
            outcome.bytes_fetched = transfer.fetched_b
            outcome.bytes_kept = transfer.kept_b
    try:
        check_format(wanted.part, wanted.size_b)
    except StoreError:
        os.ftruncate(part, 0)
        raise
    os.fchmod(part, 0o644)
    attributes.give(wanted.part)
    report("writing it to the disk")
    try:
        os.fsync(part)
    except OSError as error:
        raise lost(wanted, part, error) from error
    os.replace(wanted.part, wanted.dest)
    sync_folder(os.path.dirname(wanted.dest))
    write_record(wanted, os.fstat(part), transfer.came_from or rules.without_credentials(wanted.url))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(wanted.note)


def bring(wanted: Wanted, part: int, outcome: Outcome, attributes: Attributes, report: Report) -> None:
    """By a second name, by a copy, or over the network."""
    if path := linkable(wanted, attributes):
        link(wanted, path, report)
        os.ftruncate(part, 0)  # what an interrupted download left
        outcome.outcome = "linked"
    else:
        fetch(wanted, part, outcome, attributes, report)
        outcome.outcome = "copied" if wanted.sources else "fetched"


def predict(wanted: Wanted, attributes: Attributes, *, audit: bool) -> Outcome:
    """What a run would do, as far as it can be told without asking the hub."""
    if not wanted.sha256:
        if is_recorded(wanted):
            return Outcome(changed=False, outcome="verified", found="recorded")
        is_there = os.path.exists(wanted.dest)
        outcome, state = ("adopted", "unproved") if is_there else ("fetched", "absent")
        return Outcome(changed=True, outcome=outcome, found=state)
    found = examine(wanted, audit=audit)
    if found.state == "recorded":
        is_licensed = rules.has_licence(read_text(wanted.record), wanted.entry)
        return Outcome(changed=not is_licensed, outcome="verified", found=found.state)
    if found.state == "unproved":
        return Outcome(changed=True, outcome="adopted", found=found.state)
    target = f"{wanted.dest}.rejected-{found.digest[:12]}" if found.state == "wrong" else ""
    if linkable(wanted, attributes):
        return Outcome(changed=True, outcome="linked", found=found.state, quarantined=target)
    kept_b = 0
    with contextlib.suppress(OSError):
        kept_b = min(os.stat(wanted.part).st_size, wanted.size_b)
    need_space(wanted, kept_b)
    outcome = "copied" if wanted.sources else "fetched"
    return Outcome(changed=True, outcome=outcome, found=found.state, quarantined=target)


def ensure(
    wanted: Wanted, attributes: Attributes, *, audit: bool, check_mode: bool, report: Report = nobody
) -> Outcome:
    """Make `wanted.dest` the published file.

    `changed` means that something on the host is different, the record counted; an audit that confirms changes nothing.
    """
    refuse_link(wanted)
    wanted = from_record(wanted)
    if check_mode:
        return predict(wanted, attributes, audit=audit)
    if not audit and is_recorded(wanted) and rules.has_licence(read_text(wanted.record), wanted.entry):
        return Outcome(changed=False, outcome="verified", found="recorded")
    report("waiting for another run that fetches this file")
    with locked_part(wanted) as part:
        report("beginning")
        wanted = from_hub(from_record(wanted), report)
        found = examine(wanted, audit=audit, report=report)
        if found.state == "recorded":
            return Outcome(changed=correct_licence(wanted), outcome="verified", found=found.state)
        if found.state == "unproved" and found.status:
            write_record(wanted, found.status, wanted.dest)
            return Outcome(changed=True, outcome="adopted", found=found.state)
        outcome = Outcome(changed=True, outcome="fetched", found=found.state)
        if found.state == "wrong":
            believe(wanted, found, report)
            outcome.quarantined = quarantine(wanted, found.digest)
            outcome.warnings.append(
                f"{wanted.dest} had the SHA-256 {found.digest} instead of {wanted.sha256}. It was moved to "
                f"{outcome.quarantined}; delete it when nobody misses it."
            )
        try:
            bring(wanted, part, outcome, attributes, report)
        except StoreError as error:
            moved = f" The wrong file that was there is now {outcome.quarantined}." if outcome.quarantined else ""
            raise StoreError(f"{error}{moved}") from error
        return outcome
