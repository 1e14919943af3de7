"""The bytes of one model file into its `.part`: resumed, hashed while they come, and brought to the disk meanwhile."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import queue
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from ansible.module_utils import model_files as rules
from ansible.module_utils import model_hub as hub
from ansible.module_utils.model_wanted import (
    Report,
    StoreError,
    TemporaryError,
    Wanted,
    given_up,
    nobody,
    wrong_source,
)
from ansible.module_utils.model_web import RangeRefusedError, Web

BLOCK_B = 4 << 20
BLOCKS = 4
# Bytes between two requests to write what the kernel holds: otherwise the last one takes as long as the transfer did.
SYNC_B = 128 << 20
# An attempt that brought this much was not in vain: the count of failed attempts begins anew.
PROGRESS_B = 32 << 20
USER_AGENT = "dgx-comfyui model_store"


class Digester:
    """SHA-256 in a thread of its own: the transfer and the hash take the longer of the two times, not their sum.

    Blocks go round: `block` waits for one that is hashed, so no more than BLOCKS of them are ever held.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._hash = hashlib.sha256()
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(BLOCKS):
            self._free.put(bytearray(BLOCK_B))

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()

    def block(self) -> bytearray:
        """A block to fill; it belongs to the caller until `take`."""
        return self._free.get()

    def take(self, block: bytearray, size_b: int) -> None:
        """Hash the first bytes of a block, and let it go round again."""
        self._pool.submit(self._eat, block, size_b)

    def restart(self) -> None:
        """Forget what was hashed."""
        self._pool.submit(self._begin).result()

    def hexdigest(self) -> str:
        """The digest of everything taken so far."""
        return self._pool.submit(self._hash.copy).result().hexdigest()

    def _begin(self) -> None:
        self._hash = hashlib.sha256()

    def _eat(self, block: bytearray, size_b: int) -> None:
        with memoryview(block) as view:
            self._hash.update(view[:size_b])
        self._free.put(block)


def hash_open(handle: int, digester: Digester, end_b: int, report: Report, text: str) -> int:
    """Hash an open file from its beginning up to `end_b`; how many bytes there were."""
    os.lseek(handle, 0, os.SEEK_SET)
    done_b = 0
    while done_b < end_b:
        block = digester.block()
        with memoryview(block) as view:
            size_b = os.readv(handle, [view[: min(BLOCK_B, end_b - done_b)]])
        digester.take(block, size_b)
        if not size_b:
            break
        done_b += size_b
        report(text, done_b=done_b, total_b=end_b)
    return done_b


def hash_file(path: str, report: Report = nobody) -> str:
    """SHA-256 of a file."""
    with contextlib.closing(Digester()) as digester, open(path, "rb", buffering=0) as file:
        hash_open(file.fileno(), digester, os.stat(path).st_size, report, "proving the file that is there")
        return digester.hexdigest()


class Body(Protocol):
    """The bytes of an answer as they come: at least one, none at the end."""

    def readinto1(self, buffer: memoryview, /) -> int: ...


class Transfer:
    """The bytes of one file into its open `.part`, resumed as often as needed."""

    def __init__(self, wanted: Wanted, part: int, report: Report = nobody) -> None:
        self.wanted = wanted
        self.report = report
        self.shown = rules.without_credentials(wanted.url)
        self.part = part
        self.digest = Digester()
        self.have_b = 0
        self.etag = ""
        # Whether bytes of an earlier run are in the file: a wrong digest may then be theirs, not the hub's.
        self.has_kept = False
        self.takes_ranges = True
        self.kept_b = 0
        self.fetched_b = 0
        # The file of the host that was copied, if any.
        self.came_from = ""
        self._syncer = ThreadPoolExecutor(max_workers=1)
        self._syncing: Future[None] | None = None
        self._unsynced_b = 0

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.settle()  # also where the network ended it
        finally:
            self.digest.close()
            self._syncer.shutdown()

    def run(self) -> None:
        """Until the file is whole and has the published digest."""
        self.take_up()
        while True:
            need_space(self.wanted, self.have_b)
            if self.wanted.sources:
                self.copy()
            else:
                self.complete()
            found = self.digest.hexdigest()
            if found == self.wanted.sha256:
                break
            self.start_over()
            if not self.has_kept:
                raise StoreError(self.wrong_bytes(found))
            self.has_kept = False

    def wrong_bytes(self, found: str) -> str:
        if self.came_from:
            return wrong_source(self.wanted, self.came_from, found)
        return (
            f"{self.shown}: the {self.wanted.size_b} bytes that came have the SHA-256 {found}, the catalogue "
            f"says {self.wanted.sha256}. Nothing was kept. Either the catalogue's sha256 belongs to another "
            "file, or what answers at this endpoint altered the file."
        )

    def take_up(self) -> None:
        """Continue from what an earlier run left, if it was after the same bytes."""
        noted = read_json(self.wanted.note)
        size_b = os.fstat(self.part).st_size
        if size_b > self.wanted.size_b or noted.get("sha256", self.wanted.sha256) != self.wanted.sha256:
            self.start_over()
            return
        self.etag = rules.strong_etag(noted.get("etag")) if noted.get("url") == self.shown else ""
        text = "reading what an earlier run kept"
        self.have_b = self.kept_b = hash_open(self.part, self.digest, size_b, self.report, text)
        self.has_kept = self.have_b > 0

    def start_over(self) -> None:
        """Forget the bytes and what they belonged to."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.wanted.note)
        os.ftruncate(self.part, 0)
        os.lseek(self.part, 0, os.SEEK_SET)
        self.digest.restart()
        self.have_b = self.kept_b = 0
        self.etag = ""

    def source(self) -> str:
        """The file of the host to take; raises StoreError where there is none of the right size."""
        for path in self.wanted.sources:
            with contextlib.suppress(OSError):
                if os.path.isfile(path) and os.path.getsize(path) == self.wanted.size_b:
                    return path
        raise StoreError(
            f"There is no file of {self.wanted.size_b} bytes at {' or '.join(self.wanted.sources)}. Put it there, or "
            "correct comfyui_model_files or comfyui_model_endpoint."
        )

    def copy(self) -> None:
        """What is missing, from a file of the host."""
        path = self.came_from = self.source()
        with open(path, "rb", buffering=0) as file:
            file.seek(self.have_b)
            try:
                self.receive(_File(file.fileno()), self.wanted.size_b - self.have_b, path)
            except TemporaryError as error:
                raise StoreError(f"{error}. Run again when {path} can be read.") from error

    def complete(self) -> None:
        """Ask for what is missing until nothing is."""
        failures = 0
        # Where the count began: a server without ranges brings the same bytes again, and they are no progress.
        counted_b = self.have_b
        while self.have_b < self.wanted.size_b:
            try:
                self.attempt()
            except TemporaryError as error:  # noqa: PERF203  each round is a request
                failures += 1
                if self.have_b - counted_b >= PROGRESS_B:
                    failures, counted_b = 1, self.have_b
                if isinstance(error, RangeRefusedError):
                    if not self.have_b or not self.takes_ranges:
                        raise StoreError(f"{self.shown}: HTTP 416 for a whole file.") from None
                    self.takes_ranges = False
                if failures >= self.wanted.attempts:
                    kept = f"{self.have_b} of {self.wanted.size_b} bytes are kept in {self.wanted.part}, run again"
                    rest = f"{kept} to continue from there" if self.have_b else "nothing has come, run again"
                    raise StoreError(given_up(error, failures, rest)) from error
                self.report(f"the transfer broke off, trying again ({failures} of {self.wanted.attempts})")
                time.sleep(rules.backoff_s(failures, self.wanted.retry_delay_s, error.asked_s))

    def attempt(self) -> None:
        """One question to the hub, one request, and everything from the first missing byte to the end of what comes."""
        place = hub.locate(self.wanted, self.report)
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        if self.have_b and self.takes_ranges:
            headers["Range"] = f"bytes={self.have_b}-"
            if self.etag:
                headers["If-Range"] = self.etag
        answer = Web(self.wanted).get(place.url, headers, is_hub=place.is_hub)
        with contextlib.closing(answer):
            expected_b = self.check_answer(answer)
            # The response object would copy each piece twice; what it reads from reads into a block of ours.
            body = answer if answer.chunked else answer.fp
            if answer.status == 200:
                self.pass_over(body)
                expected_b -= self.have_b
            self.receive(body, expected_b, self.shown)

    def check_size(self, text: str | int | None) -> None:
        if text is not None and re.fullmatch(r"\d+", str(text)) and int(text) != self.wanted.size_b:
            raise StoreError(hub.another_size(self.wanted, int(text)))

    def check_answer(self, answer: Any) -> int:
        """Compare the answer with what was asked for; the number of bytes to come.

        What is kept is given up only for an answer that is as long as the file: a page of a filter or a login is not.
        """
        etag = rules.strong_etag(answer.headers.get("ETag"))
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
            self.check_size(answer.headers.get("Content-Length"))
            expected_b = self.wanted.size_b
            if self.have_b and (answer.length is None or self.etag in ("", etag)):
                return expected_b  # no ranges here, or no word of how long it is
            if self.have_b:  # the file behind the entity tag is another one
                self.start_over()
                self.has_kept = False
        else:
            raise StoreError(f"{self.shown}: HTTP {answer.status} with a body.")
        if etag != self.etag or not os.path.exists(self.wanted.note):
            self.etag = etag
            note = {"url": self.shown, "sha256": self.wanted.sha256, "etag": etag}
            write_text(self.wanted.note, json.dumps(note) + "\n", mode=0o600)
        return expected_b

    def read(self, body: Body, view: memoryview, due_b: int, shown: str) -> int:
        """Read what has come, at least one byte and at most those that are due; raises TemporaryError at the end."""
        try:
            piece_b = body.readinto1(view[:due_b])
        except TimeoutError:
            limit_s = self.wanted.stall_timeout_s
            raise TemporaryError(f"{shown}: nothing came for {limit_s:g} s", is_network=True) from None
        except (OSError, http.client.HTTPException) as error:
            raise TemporaryError(f"{shown}: the transfer broke off, {type(error).__name__} {error}") from error
        if not piece_b:
            raise TemporaryError(f"{shown}: the connection was closed {due_b} bytes early")
        return piece_b

    def pass_over(self, body: Body) -> None:
        """Read past what is kept, in an answer that begins at the first byte."""
        due_b = self.have_b
        with memoryview(bytearray(BLOCK_B if due_b else 0)) as view:
            while due_b:
                piece_b = self.read(body, view, due_b, self.shown)
                due_b -= piece_b
                self.fetched_b += piece_b
                self.report("passing over what is kept", done_b=self.have_b - due_b, total_b=self.have_b)

    def receive(self, body: Body, expected_b: int, shown: str) -> None:
        """Write and hash what comes. Whatever has arrived before an interruption is kept."""
        due_b = expected_b
        broken: TemporaryError | None = None
        while due_b and not broken:
            block = self.digest.block()
            filled_b = 0
            with memoryview(block) as view:
                while filled_b < BLOCK_B and due_b and not broken:
                    try:
                        piece_b = self.read(body, view[filled_b:], due_b, shown)
                    except TemporaryError as error:
                        broken = error
                        continue
                    # At once, not by the block: what came slowly is kept as well when this process is killed.
                    self.write(view[filled_b : filled_b + piece_b])
                    filled_b += piece_b
                    due_b -= piece_b
            self.digest.take(block, filled_b)
            self.sync(filled_b)
        if broken:
            raise broken

    def write(self, view: memoryview) -> None:
        try:
            while view:
                written_b = os.write(self.part, view)
                view = view[written_b:]
                self.have_b += written_b
                self.fetched_b += written_b
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StoreError(
                    f"{self.wanted.part}: {os.strerror(error.errno)} after {self.have_b} of {self.wanted.size_b} "
                    "bytes. They are kept: make room on that filesystem and run again."
                ) from error
            raise
        self.report(done_b=self.have_b, total_b=self.wanted.size_b)

    def sync(self, size_b: int) -> None:
        """Have what came written to the disk while more comes: a reboot loses little, and the end is not waited for."""
        self._unsynced_b += size_b
        if self._unsynced_b >= SYNC_B and (self._syncing is None or self._syncing.done()):
            self.settle()
            self._unsynced_b = 0
            self._syncing = self._syncer.submit(os.fdatasync, self.part)

    def settle(self) -> None:
        """Wait for the disk, and hear of its errors."""
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            try:
                syncing.result()
            except OSError as error:
                raise lost(self.wanted, self.part, error) from error


class _File:
    """A file of the host as the body of an answer."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def readinto1(self, buffer: memoryview, /) -> int:
        return os.readv(self._handle, [buffer])


def lost(wanted: Wanted, part: int, error: OSError) -> StoreError:
    """Forget what the disk refused to keep: the kernel says so once, and reads until a reboot as if it were there."""
    os.ftruncate(part, 0)
    return StoreError(
        f"{wanted.part}: the disk did not keep what was written: {os.strerror(error.errno or 0)}. Nothing of it is "
        "kept. Look for the reason with dmesg, mend the disk or point model_store_dir at another, and run again."
    )


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
    return rules.read_record(read_text(path))


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
