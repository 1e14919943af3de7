"""What a model file on the host should be, and whether it is: pure functions of the model store."""

from __future__ import annotations

import json
import math
import os.path
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

GIB = 1 << 30
# Left free beside the files themselves: a full root filesystem is a broken host.
SPACE_MARGIN_B = 256 << 20
# A header of this size would be a file of ten thousands of tensors; the format's own reader stops there as well.
SAFETENSORS_HEADER_LIMIT_B = 100_000_000
# What ComfyUI reads as safetensors; everything else it takes for a pickle or hands to a custom node.
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
REDIRECT_LIMIT = 10
RETRY_AFTER_LIMIT_S = 300.0

_REQUIRED = {"repo", "commit", "path", "folder", "licence"}
# Without these two the hub's own word is taken, and recorded.
_PROOF = {"size_b", "sha256"}
_OPTIONAL = {"filename", "allow_pickle"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def gib(size_b: int) -> str:
    """A size for people; binary units, since a 6.9 GB file has 6.5 GiB."""
    return f"{size_b / GIB:.2f} GiB" if size_b >= GIB // 100 else f"{size_b} bytes"


def is_safetensors(path: str) -> bool:
    """Whether a file of this name is read as data only: loading anything else may run code that is in it."""
    return path.lower().endswith(SAFETENSORS_SUFFIXES)


def path_problem(path: object) -> str:
    """Why `path` cannot be used as a relative path; empty where it can."""
    if not isinstance(path, str) or not path:
        return "is empty"
    if any(not _NAME.fullmatch(part) for part in path.split("/")):
        return f"is {path!r}: parts of letters, digits and . _ + - only, none of them '..' or empty"
    return ""


def entry_problems(name: str, entry: object) -> list[str]:
    """Everything that is wrong with one catalogue entry, each as a sentence."""
    if not isinstance(entry, Mapping):
        return [f"model {name}: its entry is not a mapping"]
    # One of the two that prove a file is a slip; none is a decision.
    missing = sorted((_REQUIRED | _PROOF if _PROOF & set(entry) else _REQUIRED) - set(entry))
    unknown = sorted(set(entry) - _REQUIRED - _PROOF - _OPTIONAL)
    problems = [f"{key} is missing" for key in missing] + [f"{key} is not a key of an entry" for key in unknown]
    for key, length in (("commit", 40), ("sha256", 64)):
        if key in entry and not re.fullmatch(rf"[0-9a-f]{{{length}}}", str(entry[key])):
            problems.append(f"{key} is {entry[key]!r}, not {length} hexadecimal digits in lower case")
    size_b = entry.get("size_b", 1)
    if isinstance(size_b, bool) or not isinstance(size_b, int) or size_b <= 0:
        problems.append(f"size_b is {size_b!r}, not a number of bytes")
    if "repo" in entry and not re.fullmatch(rf"{_NAME.pattern}/{_NAME.pattern}", str(entry["repo"])):
        problems.append(f"repo is {entry['repo']!r}, not owner/name")
    paths = {key: path_problem(entry[key]) for key in ("path", "folder", "filename") if key in entry}
    problems += [f"{key} {problem}" for key, problem in paths.items() if problem]
    if "/" in str(entry.get("filename", "")):
        problems.append(f"filename is {entry['filename']!r}: the folder has a key of its own")
    if not isinstance(entry.get("allow_pickle", False), bool):
        problems.append(f"allow_pickle is {entry['allow_pickle']!r}, not true or false")
    elif not entry.get("allow_pickle"):
        problems += [
            f"{key} is {entry[key]!r}, expected {' or '.join(SAFETENSORS_SUFFIXES)} at its end: other formats can run "
            "code when they are loaded. Take such a file, or set allow_pickle: true in the entry if you trust its maker"
            for key, problem in paths.items()
            if key != "folder" and not problem and not is_safetensors(entry[key])
        ]
    return [f"model {name}: {problem}" for problem in problems]


def entry_dest(directory: str, entry: Mapping[str, Any]) -> str:
    """Where the file of an entry lies on the host."""
    return os.path.join(directory, entry["folder"], entry.get("filename") or os.path.basename(entry["path"]))


def is_folder(endpoint: str) -> bool:
    """Whether models come from a folder of the host instead of a hub."""
    return endpoint.startswith("/")


def endpoint_problem(endpoint: object) -> str:
    """Why models cannot come from there; empty where they can."""
    if isinstance(endpoint, str) and re.fullmatch(r"https?://[^/\s]\S*|(/[^/]+)+", endpoint):
        return ""
    shown = without_credentials(endpoint) if isinstance(endpoint, str) else endpoint
    return (
        f"the model endpoint is {shown!r}, expected a hub's address that begins with https:// or http://, or a folder "
        "of the host from the root on (/media/usb/models). Set comfyui_model_endpoint to one"
    )


def files_problems(files: object, models: list[str], catalogue: Mapping[str, Any]) -> list[str]:
    """What is wrong with the files that are said to lie elsewhere on the host."""
    if not isinstance(files, Mapping):
        return ["the files that lie elsewhere are a mapping of a model's name to a path"]
    problems = [
        f"a file is given for model {name}, which is not wanted: add it to comfyui_models, or take it out of "
        "comfyui_model_files"
        for name in files
        if name not in models
    ]
    problems += [
        f"the file for model {name} is {path!r}, not a path from the root on"
        for name, path in files.items()
        if not isinstance(path, str) or not re.fullmatch(r"(/[^/]+)+", path)
    ]
    return problems + [
        f"model {name} has no sha256 to prove a file by that is there already: add size_b and sha256 to its entry"
        for name in files
        if isinstance(catalogue.get(name), Mapping) and "sha256" not in catalogue[name]
    ]


def source_problems(catalogue: object, models: object, endpoint: object, files: object) -> list[str]:
    """Everything that is wrong with where models are to come from, for a catalogue without problems of its own."""
    if not isinstance(catalogue, Mapping) or not isinstance(models, list):
        return []
    problems = [problem] if (problem := endpoint_problem(endpoint)) else []
    problems += files_problems(files, models, catalogue)
    if not problems and is_folder(str(endpoint)):
        problems += [
            f"model {name} has no sha256, and models come from the folder {endpoint}: there is nothing to prove it by. "
            "Add size_b and sha256 to its entry"
            for name in models
            if "sha256" not in catalogue.get(name, {})
        ]
    return problems


def store_problems(catalogue: object, models: object, directory: object) -> list[str]:
    """Everything that is wrong with what a role was given; only the entries that are wanted are read."""
    if not isinstance(catalogue, Mapping) or not isinstance(models, list):
        return ["the catalogue is a mapping of name to entry, the models are a list of its names"]
    problems: list[str] = []
    if not isinstance(directory, str) or not re.fullmatch(r"(/[^/\s]+)+", directory) or "/../" in f"{directory}/":
        problems.append(f"the folder of the models is {directory!r}, not an absolute path without '..' and blanks")
    known = ", ".join(sorted(catalogue)) or "nothing"
    problems += [f"model {name} is not in the catalogue, which has {known}" for name in models if name not in catalogue]
    wanted = [name for name in models if name in catalogue]
    broken = [problem for name in wanted for problem in entry_problems(name, catalogue[name])]
    if problems or broken:
        return problems + broken
    owners: dict[str, str] = {}
    for name in wanted:
        dest = entry_dest(str(directory), catalogue[name])
        if dest in owners:
            problems.append(f"models {owners[dest]} and {name} are both {dest}: give one of them a filename")
        owners[dest] = name
    return problems


def resolve_url(endpoint: str, repo: str, commit: str, path: str) -> str:
    """The address of a file on a hub, or on what speaks its protocol."""
    return f"{endpoint.rstrip('/')}/{repo}/resolve/{commit}/{urllib.parse.quote(path)}"


def folder_candidates(folder: str, entry: Mapping[str, Any]) -> list[str]:
    """Where a model may lie in a folder: laid out as the store, flat, as the repository, or as the hub's own cache."""
    names = [
        os.path.join(entry["folder"], entry.get("filename") or os.path.basename(entry["path"])),
        entry.get("filename") or os.path.basename(entry["path"]),
        entry["path"],
        f"models--{entry['repo'].replace('/', '--')}/snapshots/{entry['commit']}/{entry['path']}",
    ]
    return [os.path.join(folder, name) for name in dict.fromkeys(names)]


def user_of(url: str) -> tuple[str, str]:
    """An address without its user and password, and the two as in HTTP's Basic scheme; empty where there are none."""
    parts = urllib.parse.urlsplit(url)
    bare = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if parts.username is None:
        return bare, ""
    return bare, f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"


def credentials(url: str) -> list[str]:
    """The user's password in an address, as written and as meant, for hiding; none in what is no address."""
    try:
        password = urllib.parse.urlsplit(url).password
    except ValueError:
        return []
    return sorted({password, urllib.parse.unquote(password)}) if password else []


def without_credentials(url: str) -> str:
    """An address that may be shown and recorded: no user, no query (a content network signs with it)."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def next_hop(current: str, location: str) -> tuple[str, bool]:
    """Where a redirect leads, and whether it stays on the same host (only then may a token go along).

    Raises ValueError where it leaves the web, or encryption.
    """
    target = urllib.parse.urljoin(current, location)
    old, new = urllib.parse.urlsplit(current), urllib.parse.urlsplit(target)
    if new.scheme not in ("http", "https") or not new.netloc:
        raise ValueError(f"it redirects to {without_credentials(target)}, which is no web address")
    if old.scheme == "https" and new.scheme == "http":
        raise ValueError(f"it redirects from https to {without_credentials(target)}, in clear")
    return target, (old.scheme, old.hostname, old.port) == (new.scheme, new.hostname, new.port)


def strong_etag(value: str | None) -> str:
    """An entity tag that If-Range accepts, else empty. Source: RFC 9110 section 13.1.5."""
    return value if value and re.fullmatch(r'"[^"]*"', value) else ""


def parse_content_range(value: str | None) -> tuple[int, int, int | None]:
    """First byte, last byte and size of the whole (None: unknown). Raises ValueError. Source: RFC 9110 section 14.4."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", (value or "").strip())
    if match is None:
        raise ValueError(f"Content-Range is {value!r}")
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if first > last or (total is not None and last >= total):
        raise ValueError(f"Content-Range is {value!r}")
    return first, last, total


def linked_digest(value: str | None) -> str:
    """The SHA-256 that a hub names for a file in large-file storage (X-Linked-Etag); empty where it names none."""
    match = re.fullmatch(r'(?:W/)?"?([0-9a-fA-F]{64})"?', (value or "").strip())
    return match[1].lower() if match else ""


def retry_after_s(value: str | None) -> float:
    """Seconds that a server asks for; 0 where it does not ask, or names a date (the usual delay serves then)."""
    return min(float(value), RETRY_AFTER_LIMIT_S) if value and re.fullmatch(r"\d{1,9}", value.strip()) else 0.0


def backoff_s(attempt: int, first_s: float, asked_s: float = 0.0) -> float:
    """Pause after a failed attempt (the first is 1): doubled each time up to a minute, or what was asked for."""
    return max(min(first_s * 2.0 ** min(attempt - 1, 30), 60.0), asked_s)


def status_is_temporary(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in (408, 425, 429) or 500 <= status <= 599


def explain_status(status: int, code: str, url: str, *, has_token: bool) -> str:
    """What an HTTP error of a hub means and what to do, from its status and X-Error-Code."""
    shown = without_credentials(url)
    given = "the token was sent" if has_token else "no token was sent"
    if status == 401 and code == "RepoNotFound":
        return (
            f"{shown}: HTTP 401, the repository does not exist, or is private ({given}). "
            "Check repo in the catalogue; for a private one set comfyui_model_token (the role's model_store_token) to "
            "a token that may read it."
        )
    if status in (401, 403):
        return (
            f"{shown}: HTTP {status}{f' {code}' if code else ''}, access refused ({given}). The repository is gated or "
            "private: accept its terms on its page, then set comfyui_model_token (the role's model_store_token) to a "
            "token of that account, in a vault."
        )
    if status == 404:
        what = {
            "RepoNotFound": "the repository does not exist: check repo",
            "RevisionNotFound": "the repository has no such commit: check commit",
            "EntryNotFound": "the repository has no such file at this commit: check path",
        }.get(code, "check repo, commit and path, and that the endpoint speaks the hub's resolve protocol")
        return f"{shown}: HTTP 404, {what} in the catalogue."
    return f"{shown}: HTTP {status}{f' {code}' if code else ''}."


def safetensors_header_b(first: bytes, size_b: int) -> int:
    """Length of the header that follows the first 8 bytes. Raises ValueError where that cannot be."""
    length_b = int.from_bytes(first, "little")
    if len(first) != 8 or length_b > min(size_b - 8, SAFETENSORS_HEADER_LIMIT_B):
        raise ValueError(f"its header would have {length_b} bytes, the file has {size_b}")
    return length_b


def check_safetensors(header: bytes, data_b: int) -> int:
    """Check that the header parses and its tensors fill the data behind it; returns the number of tensors.

    Raises ValueError.
    """
    try:
        parsed = json.loads(header)
    except ValueError as error:
        raise ValueError(f"its header is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ValueError("its header is not a JSON object")
    tensors = {name: entry for name, entry in parsed.items() if name != "__metadata__"}
    highest_b = 0
    for name, entry in tensors.items():
        try:
            begin_b, end_b = entry["data_offsets"]
            shape, dtype = entry["shape"], entry["dtype"]
            fits = 0 <= begin_b <= end_b <= data_b
            bits = math.prod(shape) * DTYPE_BITS[dtype] if dtype in DTYPE_BITS else (end_b - begin_b) * 8
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"tensor {name} is not described by dtype, shape and data_offsets") from None
        if not fits:
            raise ValueError(f"tensor {name} lies at {begin_b} to {end_b}, there are {data_b} bytes of data")
        if bits != (end_b - begin_b) * 8:
            raise ValueError(f"tensor {name} has {end_b - begin_b} bytes, shape {shape} in {dtype} needs {bits / 8:g}")
        highest_b = max(highest_b, end_b)
    if highest_b != data_b:
        raise ValueError(f"its tensors end at {highest_b}, there are {data_b} bytes of data")
    return len(tensors)


def make_record(
    *, entry: Mapping[str, str], sha256: str, size_b: int, mtime_ns: int, inode: int, verified_at: str, source: str
) -> str:
    """What is written beside a file whose bytes were proved. `entry` has repo, commit, path and licence."""
    record = {
        "sha256": sha256,
        "size_b": size_b,
        "mtime_ns": mtime_ns,
        "inode": inode,
        "verified_at": verified_at,
        "source": source,
        **{key: entry[key] for key in ("repo", "commit", "path", "licence")},
    }
    return json.dumps(record, indent=2) + "\n"


def agrees(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether everything wanted is found so; Ansible's own mappings compare by key only."""
    return all(key in found and found[key] == value for key, value in wanted.items())


def read_record(text: str | None) -> dict[str, Any]:
    """A record's content; empty where it is none."""
    try:
        noted = json.loads(text or "")
    except ValueError:
        return {}
    return noted if isinstance(noted, dict) else {}


def proof(record: str | None, entry: Mapping[str, Any]) -> tuple[int, str]:
    """Size in bytes and SHA-256 that the file of an entry must have; 0 and empty where only the hub can say.

    An entry without a digest takes the recorded one, if it is of the same file at the same commit.
    """
    if entry.get("sha256"):
        return entry["size_b"], entry["sha256"]
    noted = read_record(record)
    size_b, sha256 = noted.get("size_b"), linked_digest(str(noted.get("sha256")))
    if isinstance(size_b, int) and sha256 and agrees(noted, {key: entry[key] for key in ("repo", "commit", "path")}):
        return size_b, sha256
    return 0, ""


def record_proves(record: str | None, found: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether a record says of this very file (size, mtime_ns, inode) that it is the one of a catalogue entry."""
    size_b, sha256 = proof(record, entry)
    facts = {key: found[key] for key in ("size_b", "mtime_ns", "inode")}
    return bool(sha256) and found["size_b"] == size_b and agrees(read_record(record), {**facts, "sha256": sha256})


def layout(directory: str, folders: Iterable[str]) -> list[str]:
    """The store's folder and all below it, parents first."""
    paths = {directory}
    for folder in folders:
        parts = folder.split("/")
        paths.update(os.path.join(directory, *parts[: depth + 1]) for depth in range(len(parts)))
    return sorted(paths)


def ancestors(path: str) -> list[str]:
    """A path and its parents, deepest first: the first that exists is on the filesystem that will hold it."""
    found = [path]
    while found[-1] != os.path.dirname(found[-1]):
        found.append(os.path.dirname(found[-1]))
    return found


def plan_store(
    *,
    entries: Mapping[str, Mapping[str, Any]],
    directory: str,
    folders: Iterable[str],
    endpoint: str,
    given: Mapping[str, str],
    owner_id: int,
    group_id: int,
    audit: bool,
    probe: Mapping[str, Any],
) -> dict[str, Any]:
    """Compare what is wanted with a host_probe's answer; what is missing, what to do, what cannot be.

    `given` are the paths of files that lie elsewhere on the host. `probe` holds `files` with each folder, file, its
    .part, its record and its sources on the host, and the command `space` of `space_command`.
    """
    files: Mapping[str, Mapping[str, Any]] = probe["files"]
    attributes = {"uid": owner_id, "gid": group_id}
    used = layout(directory, [entry["folder"] for entry in entries.values()])
    made = layout(directory, [*folders, *(entry["folder"] for entry in entries.values())])
    # A folder that no wanted model lies in may be somebody's: it is made where it is missing, and left as it is.
    folder = {"kind": "dir", "mode": "0755", **attributes}
    stale = [path for path in made if not agrees(files[path], folder if path in used else {"kind": "dir"})]
    pending: list[dict[str, Any]] = []
    licences: list[str] = []
    # The folder of the store itself may be one: it is resolved before the service gets it.
    below = [path for path in made if path != directory] + [entry_dest(directory, entry) for entry in entries.values()]
    problems = [link_problem(path, link) for path in below if (link := files[path]["link"]) is not None]
    needed_b: dict[str, int] = {}
    asks_hub = False
    for name, entry in entries.items():
        dest = entry_dest(directory, entry)
        found = files[dest]
        record = files[f"{dest}.verified.json"].get("content")
        reason = reason_to_look(entry, found, record, {"mode": "0644", **attributes}, audit=audit)
        if not reason:
            continue
        sources = local_sources(name, entry, endpoint, given)
        if reason in ("fetch", "wrong size"):
            if problem := source_problem(name, entry, sources, files, is_given=name in given):
                problems.append(problem)
            # What lies on the same disk may be linked; the module knows, and refuses what does not fit.
            if name not in given:
                to_come_b = max(entry.get("size_b", 0) - (files[f"{dest}.part"]["size_b"] or 0), 0)
                needed_b[os.path.dirname(dest)] = needed_b.get(os.path.dirname(dest), 0) + to_come_b
        # With a digest to hold it to, a file that is there is most likely adopted, which must not need a package index.
        if not sources and (reason in ("fetch", "wrong size") or not proof(record, entry)[1]):
            asks_hub = True
        if not has_licence(record, entry):
            licences.append(f"{name}: {entry['licence']} (https://huggingface.co/{entry['repo']})")
        size = gib(entry["size_b"]) if "size_b" in entry else "a size that the hub knows"
        pending.append({**entry, "name": name, "dest": dest, "sources": sources, "reason": reason, "size": size})
    return {
        "folders": stale,
        "pending": pending,
        "licences": licences,
        "problems": problems,
        "asks_hub": asks_hub,
        "missing": missing_space(needed_b, probe["commands"]["space"]["stdout"]),
    }


def reason_to_look(
    entry: Mapping[str, Any],
    found: Mapping[str, Any],
    record: str | None,
    attributes: Mapping[str, Any],
    *,
    audit: bool,
) -> str:
    """Why the module must look at a file; empty where file and record are as they should be."""
    if found["kind"] == "absent":
        return "fetch"
    if found["size_b"] != entry.get("size_b", found["size_b"]):
        return "wrong size"
    if not record_proves(record, found, entry):
        return "not proved"
    if audit:
        return "audit"
    if not agrees(found, attributes):
        return "permissions"
    return "" if has_licence(record, entry) else "licence"


def has_licence(record: str | None, entry: Mapping[str, Any]) -> bool:
    """Whether a record says the licence of an entry."""
    return bool(read_record(record).get("licence") == entry["licence"])


def space_command(directory: str, dests: Iterable[str]) -> list[str]:
    """What tells the free bytes and the filesystem of each folder that a file goes to, or of those above it."""
    folders = [directory, *map(os.path.dirname, dests)]
    paths = dict.fromkeys(path for folder in folders for path in ancestors(folder))
    return ["df", "--block-size=1", "--output=avail,target,file", *paths]


def missing_space(needed_b: Mapping[str, int], output: str) -> list[str]:
    """Say of each filesystem that cannot hold what is to come into the folders on it; `output` is of space_command."""
    places: dict[str, tuple[str, int]] = {}
    for line in output.splitlines():
        # Of the three, only the place of the filesystem may have blanks in it.
        free, *mount, path = line.split() if len(line.split()) > 2 else ("", "", "")
        if free.isdigit():
            places[path] = (" ".join(mount), int(free))
    sums_b: dict[tuple[str, int], int] = {}
    for folder, size_b in needed_b.items():
        # A folder that is not there yet will be on the filesystem of the first above it that is.
        place = next((places[path] for path in ancestors(folder) if path in places), None)
        if place and size_b:
            sums_b[place] = sums_b.get(place, 0) + size_b
    return [
        f"{gib(size_b + SPACE_MARGIN_B - free_b)} of space are missing on the filesystem of {mount}: {gib(size_b)} are "
        f"still to come, {gib(free_b)} are free"
        for (mount, free_b), size_b in sums_b.items()
        if size_b + SPACE_MARGIN_B > free_b
    ]


def link_problem(path: str, target: str) -> str:
    """What to say of a symbolic link in the store."""
    return (
        f"{path} is a symbolic link to {target}, expected no links below the folder of the models: the service is "
        "given that folder alone, and a link that leads out of it is dead there. Remove it; a model that lies "
        "elsewhere is named in comfyui_model_files, and linked or copied from there"
    )


def local_sources(name: str, entry: Mapping[str, Any], endpoint: str, given: Mapping[str, str]) -> list[str]:
    """The paths on the host that may hold a model, the first that is there first; empty where a hub is asked."""
    if name in given:
        return [given[name]]
    return folder_candidates(endpoint, entry) if is_folder(endpoint) else []


def source_problem(
    name: str, entry: Mapping[str, Any], sources: list[str], files: Mapping[str, Mapping[str, Any]], *, is_given: bool
) -> str:
    """Why a model cannot come from the host's own files; empty where it can, or comes from a hub."""
    if not sources or any(files[path]["size_b"] == entry["size_b"] for path in sources):
        return ""
    found = next((path for path in sources if files[path]["kind"] != "absent"), "")
    what = f"{found} has {files[found]['size_b']} bytes" if found else f"there is no {' and no '.join(sources)}"
    return (
        f"model {name} is to come from the host's own files, and {what}; expected a file of {entry['size_b']} bytes. "
        + ("Correct comfyui_model_files" if is_given else "Put it there, or correct comfyui_model_endpoint")
    )
