"""Bring one model file onto the host and prove it: the input and output of the model store."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import ssl
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the checker and unit tests know the helper by its own name, a host only as Ansible ships it
    import model_files as rules
else:
    from ansible.module_utils import model_files as rules

READ_B = 256 << 10
BLOCK_B = 4 << 20
# An attempt that brought this much was not in vain: the count of failed attempts begins anew.
PROGRESS_B = 32 << 20
USER_AGENT = "dgx-comfyui model_store"

# Told what goes on: a text, and with done_b and total_b how far it is.
Report = Callable[..., None]


def nobody(*_args: Any, **_kwargs: Any) -> None:
    """The report to nobody."""


class StoreError(Exception):
    """The run ends with this message; trying again would not help, or was done often enough."""


class TemporaryError(Exception):
    """The transfer broke; what has arrived is kept and the rest may be asked for again."""

    def __init__(self, message: str, asked_s: float = 0.0) -> None:
        super().__init__(message)
        self.asked_s = asked_s


@dataclass(frozen=True)
class Wanted:
    """One file: what it is, where it goes, how it is fetched."""

    repo: str
    commit: str
    path: str
    size_b: int
    sha256: str
    dest: str
    endpoint: str
    licence: str = ""
    token: str = ""
    ca_bundle: str = ""
    proxy: str = ""
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


@dataclass
class Found:
    """What lies at the destination. `state`: absent, recorded, unproved (right bytes, no valid record) or wrong."""

    state: str
    digest: str = ""
    status: os.stat_result | None = None


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


class Digester:
    """SHA-256 in a thread: hashing takes as long as a fast network does, one after the other they would add up."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._hash = hashlib.sha256()
        self._running: Future[None] | None = None

    def update(self, block: bytes) -> None:
        """Take a block; waits for the one before, so that no more than two are held."""
        self._wait()
        self._running = self._pool.submit(self._hash.update, block)

    def hexdigest(self) -> str:
        self._wait()
        return self._hash.hexdigest()

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()


class Web:
    """HTTP with redirects that never carry the token to another host."""

    def __init__(self, wanted: Wanted) -> None:
        context = ssl.create_default_context()
        if wanted.ca_bundle:
            try:
                context.load_verify_locations(cafile=wanted.ca_bundle)
            except OSError as error:
                raise StoreError(f"The CA bundle {wanted.ca_bundle} cannot be used: {error}.") from error
        proxies = {"http": wanted.proxy, "https": wanted.proxy} if wanted.proxy else None
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context), _NoRedirect()
        )
        self._token = wanted.token
        self._timeout_s = wanted.stall_timeout_s

    def get(self, url: str, headers: dict[str, str], look: Callable[[Any], None]) -> Any:
        """The answer with a body; `look` sees the headers of every answer on the way."""
        with_token = bool(self._token)
        for _ in range(rules.REDIRECT_LIMIT):
            request = urllib.request.Request(url, headers=headers)  # noqa: S310  http(s): next_hop and the module check
            if with_token:
                request.add_header("Authorization", f"Bearer {self._token}")
            answer = self._open(request, with_token=with_token)
            look(answer.headers)
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            answer.close()
            try:
                url, same_host = rules.next_hop(url, answer.headers.get("Location") or "")
            except ValueError as error:
                raise StoreError(f"{rules.without_credentials(url)}: {error}.") from error
            with_token = with_token and same_host
        raise StoreError(f"{rules.without_credentials(url)}: more than {rules.REDIRECT_LIMIT} redirects.")

    def _open(self, request: urllib.request.Request, *, with_token: bool) -> Any:
        shown = rules.without_credentials(request.full_url)
        try:
            return self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            if error.status in (301, 302, 303, 307, 308):
                return error
            message = rules.explain_status(
                error.status or 0, error.headers.get("X-Error-Code") or "", request.full_url, has_token=with_token
            )
            asked_s = rules.retry_after_s(error.headers.get("Retry-After"))
            status = error.status or 0
            error.close()
            if status == 416 or rules.status_is_temporary(status):
                raise (RangeRefusedError if status == 416 else TemporaryError)(message, asked_s) from error
            raise StoreError(message) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise StoreError(
                    f"{shown}: {error.reason.verify_message}. If a firewall or mirror of this site signs with its own "
                    "certificate, set model_store_ca_bundle to a PEM file with its CA on the host."
                ) from error
            raise TemporaryError(f"{shown}: {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise TemporaryError(f"{shown}: {type(error).__name__} {error}") from error


class RangeRefusedError(TemporaryError):
    """HTTP 416: what is kept is no part of what the server has."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects come back as answers: the library's own would send the token along, and knows no 308 before 3.11."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


class Transfer:
    """The bytes of one file into its open `.part`, resumed as often as needed."""

    def __init__(self, wanted: Wanted, part: int, pool: ThreadPoolExecutor, report: Report = nobody) -> None:
        self.wanted = wanted
        self.report = report
        self.shown = rules.without_credentials(wanted.url)
        self.part = part
        self.pool = pool
        self.web = Web(wanted)
        self.digest = Digester(pool)
        self.have_b = 0
        self.etag = ""
        # Whether bytes of an earlier run are in the file: a wrong digest may then be theirs, not the hub's.
        self.has_kept = False
        self.kept_b = 0
        self.fetched_b = 0

    def run(self) -> None:
        """Until the file is whole and has the published digest."""
        self.take_up()
        while True:
            need_space(self.wanted, self.have_b)
            self.complete()
            found = self.digest.hexdigest()
            if found == self.wanted.sha256:
                return
            self.start_over()
            if not self.has_kept:
                raise StoreError(
                    f"{self.shown}: the {self.wanted.size_b} bytes that came have the SHA-256 {found}, the catalogue "
                    f"says {self.wanted.sha256}. Nothing was kept. Either the catalogue's sha256 belongs to another "
                    "file, or what answers at this endpoint altered the file."
                )
            self.has_kept = False

    def take_up(self) -> None:
        """Continue from what an earlier run left, if it was after the same bytes."""
        noted = read_json(self.wanted.note)
        size_b = os.fstat(self.part).st_size
        if size_b > self.wanted.size_b or noted.get("sha256", self.wanted.sha256) != self.wanted.sha256:
            self.start_over()
            return
        self.etag = rules.strong_etag(noted.get("etag")) if noted.get("url") == self.wanted.url else ""
        os.lseek(self.part, 0, os.SEEK_SET)
        while self.have_b < size_b and (block := os.read(self.part, BLOCK_B)):
            self.digest.update(block)
            self.have_b += len(block)
            self.report("reading what an earlier run kept", done_b=self.have_b, total_b=size_b)
        self.has_kept = self.have_b > 0
        self.kept_b = self.have_b

    def start_over(self) -> None:
        """Forget the bytes and what they belonged to."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.wanted.note)
        os.ftruncate(self.part, 0)
        os.lseek(self.part, 0, os.SEEK_SET)
        self.digest = Digester(self.pool)
        self.have_b = self.kept_b = 0
        self.etag = ""

    def complete(self) -> None:
        """Ask for what is missing until nothing is."""
        failures = 0
        while self.have_b < self.wanted.size_b:
            before_b = self.fetched_b
            try:
                self.attempt()
            except RangeRefusedError:
                if self.have_b == 0:
                    raise StoreError(f"{self.shown}: HTTP 416 for a whole file.") from None
                self.start_over()
                self.has_kept = False
                failures += 1
            except TemporaryError as error:
                failures = 1 if self.fetched_b - before_b >= PROGRESS_B else failures + 1
                if failures >= self.wanted.attempts:
                    kept = f"{self.have_b} of {self.wanted.size_b} bytes are kept in {self.wanted.part}, run again"
                    raise StoreError(
                        f"{str(error).removesuffix('.')}. Gave up after {failures} attempts; "
                        + (f"{kept} to continue from there." if self.have_b else "nothing has come, run again.")
                    ) from error
                self.report(f"the transfer broke off, trying again ({failures} of {self.wanted.attempts})")
                time.sleep(rules.backoff_s(failures, self.wanted.retry_delay_s, error.asked_s))

    def attempt(self) -> None:
        """One request, from the first missing byte to the end of what comes."""
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        if self.have_b:
            headers["Range"] = f"bytes={self.have_b}-"
            if self.etag:
                headers["If-Range"] = self.etag
        answer = self.web.get(self.wanted.url, headers, self.look)
        with contextlib.closing(answer):
            expected_b = self.check_answer(answer)
            self.receive(answer, expected_b)

    def look(self, headers: Any) -> None:
        """Stop before the first byte where the hub itself says that it has another file."""
        named = rules.linked_digest(headers.get("X-Linked-Etag"))
        if named and named != self.wanted.sha256:
            raise StoreError(
                f"{self.shown}: the hub says that this file has the SHA-256 {named}, the catalogue says "
                f"{self.wanted.sha256}. Nothing was fetched. Check commit, path and sha256 in the catalogue."
            )
        self.check_size(headers.get("X-Linked-Size"))

    def check_size(self, text: str | int | None) -> None:
        if text is not None and re.fullmatch(r"\d+", str(text)) and int(text) != self.wanted.size_b:
            raise StoreError(
                f"{self.shown}: what answers there has {text} bytes, the catalogue says {self.wanted.size_b}. "
                "Check commit, path and size_b in the catalogue, and that no login page answers."
            )

    def check_answer(self, answer: Any) -> int:
        """Compare the answer with what was asked for; the number of bytes to come."""
        if answer.status == 206:
            try:
                first, last, total = rules.parse_content_range(answer.headers.get("Content-Range"))
            except ValueError as error:
                raise StoreError(f"{self.shown}: {error} in an HTTP 206.") from error
            self.check_size(total)
            if first != self.have_b:
                raise StoreError(f"{self.shown}: asked for bytes from {self.have_b}, got them from {first}.")
            expected_b = last - first + 1
        elif answer.status == 200:
            if self.have_b:  # no ranges here, or the file behind the entity tag is another one
                self.start_over()
                self.has_kept = False
            self.check_size(answer.headers.get("Content-Length"))
            expected_b = self.wanted.size_b
        else:
            raise StoreError(f"{self.shown}: HTTP {answer.status} with a body.")
        etag = rules.strong_etag(answer.headers.get("ETag"))
        if etag != self.etag or not os.path.exists(self.wanted.note):
            self.etag = etag
            note = {"url": self.wanted.url, "sha256": self.wanted.sha256, "etag": etag}
            write_text(self.wanted.note, json.dumps(note) + "\n", mode=0o600)
        return expected_b

    def receive(self, answer: Any, expected_b: int) -> None:
        """Write and hash what comes. Whatever has arrived before an interruption is kept."""
        block = bytearray()
        due_b = expected_b
        broken: TemporaryError | None = None
        while due_b and not broken:
            try:
                # read1 hands over what has come; read would lose it where the rest does not follow.
                piece = answer.read1(min(READ_B, due_b))
            except TimeoutError:
                broken = TemporaryError(f"{self.shown}: nothing came for {self.wanted.stall_timeout_s:g} s")
                continue
            except (OSError, http.client.HTTPException) as error:
                broken = TemporaryError(f"{self.shown}: the transfer broke off, {type(error).__name__} {error}")
                continue
            if not piece:
                broken = TemporaryError(f"{self.shown}: the connection was closed {due_b} bytes early")
            due_b -= len(piece)
            block += piece
            if len(block) >= BLOCK_B:
                self.keep(block)
                block = bytearray()
        if block:
            self.keep(block)
        if broken:
            raise broken

    def keep(self, block: bytearray) -> None:
        view = memoryview(block)
        try:
            while view:
                view = view[os.write(self.part, view) :]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StoreError(
                    f"{self.wanted.part}: {os.strerror(error.errno)} after {self.have_b} of {self.wanted.size_b} "
                    "bytes. They are kept: make room on that filesystem and run again."
                ) from error
            raise
        self.digest.update(bytes(block))
        self.have_b += len(block)
        self.fetched_b += len(block)
        self.report(done_b=self.have_b, total_b=self.wanted.size_b)


def need_space(wanted: Wanted, have_b: int) -> None:
    """Refuse before the first byte what cannot fit."""
    folder = next(path for path in rules.ancestors(os.path.dirname(wanted.dest)) if os.path.isdir(path))
    facts = os.statvfs(folder)
    free_b = facts.f_bavail * facts.f_frsize
    missing_b = wanted.size_b - have_b + rules.SPACE_MARGIN_B - free_b
    if missing_b > 0:
        raise StoreError(
            f"{wanted.dest}: {rules.gib(missing_b)} of space are missing on the filesystem of {folder}, which has "
            f"{rules.gib(free_b)} free; {rules.gib(wanted.size_b - have_b)} are still to come and "
            f"{rules.gib(rules.SPACE_MARGIN_B)} stay free. Make room there and run again."
        )


def read_text(path: str) -> str | None:
    """A small text file; None where there is none that can be read as such."""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read(1 << 16)
    except (OSError, UnicodeDecodeError):
        return None


def read_json(path: str) -> dict[str, Any]:
    """A small JSON object; empty where there is none."""
    try:
        parsed = json.loads(read_text(path) or "{}")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def sync_folder(path: str) -> None:
    """Make names last: a rename lives in the folder."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str, text: str, *, mode: int) -> None:
    """Replace a small file in one step, on disk when this returns."""
    temporary = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        os.fchmod(handle, mode)
        file.write(text)
        file.flush()
        os.fsync(handle)
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path))


def hash_file(path: str, report: Report = nobody) -> str:
    """SHA-256 of a file, in blocks."""
    digest = hashlib.sha256()
    buffer = bytearray(2 * BLOCK_B)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as handle:
        total_b = os.fstat(handle.fileno()).st_size
        done_b = 0
        while size_b := handle.readinto(buffer):
            digest.update(view[:size_b])
            done_b += size_b
            report("proving the file that is there", done_b=done_b, total_b=total_b)
    return digest.hexdigest()


def check_format(path: str, size_b: int) -> None:
    """A .safetensors file must be one: the right digest of something else means a wrong catalogue."""
    if not path.removesuffix(".part").endswith(".safetensors"):
        return
    with open(path, "rb") as handle:
        try:
            length_b = rules.safetensors_header_b(handle.read(8), size_b)
            rules.check_safetensors(handle.read(length_b), size_b - 8 - length_b)
        except ValueError as error:
            raise StoreError(f"{path} has the catalogue's digest but is no valid safetensors file: {error}.") from error


def examine(wanted: Wanted, *, audit: bool, report: Report = nobody) -> Found:
    """What lies at the destination; its bytes are read only where the record does not speak for them."""
    try:
        status = os.stat(wanted.dest)
    except FileNotFoundError:
        return Found("absent")
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{wanted.dest} is there and is not a file. Move it away and run again.")
    facts = {"size_b": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
    proved = rules.record_proves(read_text(wanted.record), facts, sha256=wanted.sha256, size_b=wanted.size_b)
    if proved and not audit:
        return Found("recorded", wanted.sha256, status)
    digest = hash_file(wanted.dest, report)
    if digest != wanted.sha256:
        return Found("wrong", digest, status)
    check_format(wanted.dest, status.st_size)
    return Found("recorded" if proved else "unproved", digest, status)


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
    text = rules.make_record(
        sha256=wanted.sha256,
        size_b=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
        verified_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        source=source,
        licence=wanted.licence,
    )
    write_text(wanted.record, text, mode=0o644)


def quarantine(wanted: Wanted, digest: str) -> str:
    """Move a wrong file out of the way, where ComfyUI does not list it; the new path."""
    target = f"{wanted.dest}.rejected-{digest[:12]}"
    os.replace(wanted.dest, target)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(wanted.record)
    sync_folder(os.path.dirname(wanted.dest))
    return target


def fetch(wanted: Wanted, part: int, outcome: Outcome, settle: Callable[[str], None], report: Report) -> None:
    """Transfer, prove, and only then give the file its name."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        transfer = Transfer(wanted, part, pool, report)
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
    settle(wanted.part)
    report("writing it to the disk")
    os.fsync(part)
    os.replace(wanted.part, wanted.dest)
    sync_folder(os.path.dirname(wanted.dest))
    write_record(wanted, os.fstat(part), rules.without_credentials(wanted.url))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(wanted.note)


def predict(wanted: Wanted, found: Found) -> Outcome:
    """What a run would do about what was found."""
    if found.state == "recorded":
        return Outcome(changed=False, outcome="verified", found=found.state)
    if found.state == "unproved":
        return Outcome(changed=True, outcome="adopted", found=found.state)
    kept_b = 0
    with contextlib.suppress(OSError):
        kept_b = min(os.stat(wanted.part).st_size, wanted.size_b)
    need_space(wanted, kept_b)
    target = f"{wanted.dest}.rejected-{found.digest[:12]}" if found.state == "wrong" else ""
    return Outcome(changed=True, outcome="fetched", found=found.state, quarantined=target)


def ensure(
    wanted: Wanted, *, audit: bool, check_mode: bool, settle: Callable[[str], None], report: Report = nobody
) -> Outcome:
    """Make `wanted.dest` the published file. `settle` gives a path the owner and mode that were asked for.

    `changed` means that something on the host is different, the record counted; an audit that confirms changes nothing.
    """
    if check_mode:
        return predict(wanted, examine(wanted, audit=audit))
    if not audit and os.path.exists(wanted.dest):
        status = os.stat(wanted.dest)
        facts = {"size_b": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
        if rules.record_proves(read_text(wanted.record), facts, sha256=wanted.sha256, size_b=wanted.size_b):
            return Outcome(changed=False, outcome="verified", found="recorded")
    report("waiting for another run that fetches this file")
    with locked_part(wanted) as part:
        report("asking for it")
        found = examine(wanted, audit=audit, report=report)
        if found.state == "recorded":
            return Outcome(changed=False, outcome="verified", found=found.state)
        if found.state == "unproved" and found.status:
            write_record(wanted, found.status, f"found at {wanted.dest}")
            return Outcome(changed=True, outcome="adopted", found=found.state)
        outcome = Outcome(changed=True, outcome="fetched", found=found.state)
        if found.state == "wrong":
            outcome.quarantined = quarantine(wanted, found.digest)
            outcome.warnings.append(
                f"{wanted.dest} had the SHA-256 {found.digest} instead of {wanted.sha256}. It was moved to "
                f"{outcome.quarantined}; delete it when nobody misses it."
            )
        try:
            fetch(wanted, part, outcome, settle, report)
        except StoreError as error:
            moved = f" The wrong file that was there is now {outcome.quarantined}." if outcome.quarantined else ""
            raise StoreError(f"{error}{moved}") from error
        return outcome
