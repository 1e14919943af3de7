"""Docker's daemon.json: parse, merge, compare. Pure functions; the module docker_daemon_json does the writing."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# dockerd's flags whose name is not the key's name. Every other long flag is spelled like its key.
# Source: `dockerd --help` of 26.1 and docker/cli docs/reference/dockerd.md.
FLAG_TO_KEY = {
    "add-runtime": "runtimes",
    "authorization-plugin": "authorization-plugins",
    "cdi-spec-dir": "cdi-spec-dirs",
    "default-address-pool": "default-address-pools",
    "default-network-opt": "default-network-opts",
    "default-ulimit": "default-ulimits",
    "dns-opt": "dns-opts",
    "exec-opt": "exec-opts",
    "feature": "features",
    "graph": "data-root",
    "host": "hosts",
    "insecure-registry": "insecure-registries",
    "label": "labels",
    "log-opt": "log-opts",
    "node-generic-resource": "node-generic-resources",
    "registry-mirror": "registry-mirrors",
    "storage-opt": "storage-opts",
}
SHORT_FLAGS = {
    "D": "debug",
    "G": "group",
    "H": "host",
    "b": "bridge",
    "g": "graph",
    "l": "log-level",
    "p": "pidfile",
    "s": "storage-driver",
}
SHORT_SWITCHES = frozenset("Dv")

# dockerd merges this key with its flag instead of refusing both (measured with 26.1: --add-runtime beside runtimes).
MERGED_BY_DOCKERD = frozenset({"runtimes"})

# dockerd compares these as a whole, every other object key by key: the flag --http-proxy meets proxies.http-proxy.
COMPARED_WHOLE = frozenset({"builder", "cluster-store-opts", "default-ulimits", "features", "log-opts", "runtimes"})

# Source: docker/cli docs/reference/dockerd.md, "Configuration reload behavior".
RELOADABLE = frozenset(
    {
        "allow-nondistributable-artifacts",
        "authorization-plugins",
        "debug",
        "default-runtime",
        "features",
        "insecure-registries",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)
# A reload accepts these and does nothing with them: with 26.1 `docker run --device KIND=all` still answers
# `could not select device driver "cdi"` after it, and works after a restart.
READ_AT_START_ONLY = frozenset({"features.cdi", "features.containerd-snapshotter"})

DEFAULT_INDENT = "    "
BUILT_IN_RUNTIME = "runc"
DATA_ROOT = "/var/lib/docker"


class DaemonJsonError(ValueError):
    """The file cannot be merged into; the message says where it is wrong."""


@dataclass(frozen=True)
class Plan:
    """What a merge would do: the file's new text (None: nothing to write), and the dotted names behind it."""

    text: str | None
    config: dict[str, Any]
    wanted: dict[str, Any]
    changed_keys: list[str]
    left_out: list[str]
    kept: list[str]


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DaemonJsonError(f"the key {key!r} is given twice in one object; which one is meant cannot be known")
        found[key] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise DaemonJsonError(f"{name} is not JSON")


# What dockerd does not start without either, of the keys that are read here.
KINDS = (
    ("features", dict, "an object {...}"),
    ("registry-mirrors", list, "a list [...]"),
    ("runtimes", dict, "an object {...}"),
)


def parse_config(text: str) -> dict[str, Any]:
    """The settings in a daemon.json; an empty file has none, as dockerd reads it.

    Raises DaemonJsonError, with line and column where there is one, or with the key whose value has a wrong kind.
    """
    if not text.strip():
        return {}
    try:
        found = json.loads(text, object_pairs_hook=_refuse_repeats, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DaemonJsonError(f"line {error.lineno} column {error.colno}: {error.msg}") from error
    if not isinstance(found, dict):
        raise DaemonJsonError(f"line 1 column 1: found a {type(found).__name__}, expected an object {{...}}")
    for key, kind, words in KINDS:
        if found.get(key) is not None and not isinstance(found[key], kind):
            raise DaemonJsonError(f"{key} is {json.dumps(found[key])}, expected {words}")
    return found


def same(left: Any, right: Any) -> bool:
    """Equality as JSON has it: true is not 1, and the order of keys does not count."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def merge(current: Any, wanted: Any) -> Any:
    """`current` with `wanted` in it.

    Objects are merged key by key, in the order that `current` has. Lists keep what they hold and get what is
    missing: the lists of daemon.json are sets that several owners fill. Anything else is replaced.
    """
    if isinstance(current, dict) and isinstance(wanted, dict):
        merged = dict(current)
        for key, value in wanted.items():
            merged[key] = merge(current[key], value) if key in current else value
        return merged
    if isinstance(current, list) and isinstance(wanted, list):
        united = list(current)
        for value in wanted:
            if not any(same(value, held) for held in united):
                united.append(value)
        return united
    return wanted


def changed_paths(before: Mapping[str, Any], after: Mapping[str, Any], parent: str = "") -> list[str]:
    """Dotted names of what differs, as deep as both sides are objects."""
    paths: list[str] = []
    for key, value in after.items():
        path = f"{parent}{key}"
        old = before.get(key, {} if isinstance(value, dict) and value else None)
        if isinstance(value, dict) and value and isinstance(old, dict):
            paths += changed_paths(old, value, f"{path}.")
        elif key not in before or not same(old, value):
            paths.append(path)
    return sorted(paths)


def without(config: Mapping[str, Any], dotted: str) -> dict[str, Any]:
    """`config` without the key of this dotted name.

    An object that becomes empty by it stays: a reload forgets the runtimes of a file with `{}`, and not those of a file
    that does not speak of them (measured with 26.1).
    """
    name, _, rest = dotted.partition(".")
    value = config.get(name)
    if not rest:
        return {key: held for key, held in config.items() if key != name}
    if not isinstance(value, dict):
        return dict(config)
    return {key: without(value, rest) if key == name else held for key, held in config.items()}


def value_at(config: Mapping[str, Any], dotted: str) -> Any:
    """The value under a dotted name; None where there is none."""
    found: Any = config
    for name in dotted.split("."):
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return found


def with_value(config: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """`config` with another value under a dotted name."""
    name, _, rest = dotted.partition(".")
    if not rest:
        return {**config, name: value}
    inner = config.get(name)
    return {**config, name: with_value(inner if isinstance(inner, dict) else {}, rest, value)}


def respect_original(
    wanted: Mapping[str, Any], original: Mapping[str, Any], names: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """`wanted` with the values that `original` has under these dotted names, and the names that differed."""
    respected, kept = dict(wanted), []
    for dotted in names:
        theirs, ours = value_at(original, dotted), value_at(wanted, dotted)
        if theirs is not None and ours is not None and not same(theirs, ours):
            respected = with_value(respected, dotted, theirs)
            kept.append(dotted)
    return respected, sorted(kept)


def swarm_state_file(config: Mapping[str, Any], argv: list[str]) -> str:
    """Where the engine keeps that it is the member of a swarm, also while it is stopped.

    Source: moby/moby daemon/cluster/cluster.go, stateFile below the root's folder swarm.
    """
    root = flag_value(argv, "data-root") or config.get("data-root") or DATA_ROOT
    return f"{root}/swarm/docker-state.json"


def ghost_runtime(config: Mapping[str, Any], argv: list[str]) -> str:
    """The default runtime, where neither the settings nor the unit's command `argv` define it; empty where one does.

    --validate accepts such a file, and with it dockerd takes up no reload and does not start.
    """
    name = str(config.get("default-runtime") or BUILT_IN_RUNTIME)
    runtimes = config.get("runtimes")
    defined = isinstance(runtimes, dict) and name in runtimes
    by_flag = any(re.search(rf"(^|=){re.escape(name)}=", word) for word in argv)
    return "" if defined or by_flag or name == BUILT_IN_RUNTIME or name.startswith("io.containerd.") else name


def render(config: Mapping[str, Any], previous_text: str) -> str:
    """The file's text, indented as it was before."""
    found = re.search(r'^([ \t]+)"', previous_text, re.MULTILINE)
    return json.dumps(config, indent=found.group(1) if found else DEFAULT_INDENT, ensure_ascii=False) + "\n"


def _unit_values(unit_text: str, name: str) -> list[str]:
    """Values of a [Service] setting over a unit and its drop-ins; an empty assignment forgets the earlier ones."""
    values: list[str] = []
    section = ""
    joined = re.sub(r"\\\n\s*", " ", unit_text)
    for line in (raw.strip() for raw in joined.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line
        elif section == "[Service]" and line.partition("=")[0].strip() == name:
            value = line.partition("=")[2].strip()
            values = [*values, value] if value else []
    return values


def environment_files(unit_text: str) -> list[str]:
    """Paths that the unit reads its environment from."""
    return [value.lstrip("-") for value in _unit_values(unit_text, "EnvironmentFile")]


def unit_argv(unit_text: str, file_texts: Mapping[str, str]) -> list[str]:
    """The unit's command as systemd would run it, from `systemctl cat` and the text of its environment files.

    Empty where there is no unit. systemd splits `$NAME` that stands alone into words and replaces `${NAME}` in place.
    """
    commands = _unit_values(unit_text, "ExecStart")
    if not commands:
        return []
    environment: dict[str, str] = {}
    assignments = [word for value in _unit_values(unit_text, "Environment") for word in shlex.split(value)]
    for path in environment_files(unit_text):
        for line in file_texts.get(path, "").splitlines():
            if "=" in line and not line.lstrip().startswith(("#", ";")):
                name, _, value = line.partition("=")
                assignments.append(f"{name.strip()}={' '.join(shlex.split(value))}")
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        environment[name] = value
    argv: list[str] = []
    for word in shlex.split(commands[-1]):
        if re.fullmatch(r"\$\w+", word):
            argv += environment.get(word[1:], "").split()
        else:
            argv.append(re.sub(r"\$\{(\w+)\}", lambda found: environment.get(found.group(1), ""), word))
    argv[0] = argv[0].lstrip("-@:+!")
    return argv


def flag_names(argv: list[str]) -> set[str]:
    """Long names of the flags in dockerd's command line."""
    names: set[str] = set()
    for word in argv[1:]:
        if word.startswith("--"):
            names.add(word[2:].partition("=")[0])
        elif word.startswith("-"):
            for letter in word[1:]:
                names.add(SHORT_FLAGS.get(letter, letter))
                if letter not in SHORT_SWITCHES:
                    break
    return names - {""}


def flag_keys(argv: list[str]) -> set[str]:
    """Keys of daemon.json that dockerd would refuse beside this command line, even with the same value."""
    return {FLAG_TO_KEY.get(name, name) for name in flag_names(argv)} - MERGED_BY_DOCKERD


def validation_argv(argv: list[str], candidate: str) -> list[str]:
    """The command that asks dockerd whether it would start with the file `candidate` and the unit's own flags."""
    flags: list[str] = []
    words = iter(argv[1:])
    for word in words:
        if word == "--config-file":
            next(words, None)
        elif not word.startswith("--config-file="):
            flags.append(word)
    program = argv[0] if argv and argv[0].endswith("dockerd") else "dockerd"
    return [program, "--validate", f"--config-file={candidate}", *flags]


def leave_out(wanted: Mapping[str, Any], taken: set[str], parent: str = "") -> tuple[dict[str, Any], list[str]]:
    """`wanted` without what the unit passes as flags, and the dotted names that were left out."""
    kept: dict[str, Any] = {}
    left: list[str] = []
    for key, value in wanted.items():
        path = f"{parent}{key}"
        if key in taken:
            left.append(path)
        elif isinstance(value, dict) and value and path not in COMPARED_WHOLE:
            inner, inner_left = leave_out(value, taken, f"{path}.")
            left += inner_left
            if inner:
                kept[key] = inner
        else:
            kept[key] = value
    return kept, sorted(left)


def flag_value(argv: list[str], name: str) -> str:
    """Value of the long flag `name`, or an empty string."""
    for position, word in enumerate(argv):
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
        if word == f"--{name}" and position + 1 < len(argv):
            return argv[position + 1]
    return ""


def respect_log_driver(wanted: Mapping[str, Any], driver_there: str) -> tuple[dict[str, Any], list[str]]:
    """`wanted` without its log settings where the host already logs with another driver.

    Options of one driver stop dockerd or every container under another, and --validate does not see it.
    """
    if "log-driver" not in wanted or driver_there in ("", wanted["log-driver"]):
        return dict(wanted), []
    left = [key for key in ("log-driver", "log-opts") if key in wanted]
    return {key: value for key, value in wanted.items() if key not in left}, left


def is_below(path: str, names: Iterable[str]) -> bool:
    """Whether this dotted name is one of these, or lies in one."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


def taken_back(
    before: Mapping[str, Any], wanted: Mapping[str, Any], original: Mapping[str, Any] | None, left: Iterable[str]
) -> list[str]:
    """Dotted names of `wanted` that an earlier run wrote to the file `before`, and that now have to be left out.

    The unit passes them as flags by now, or the engine logs otherwise or is in a swarm: dockerd would not start.
    """
    return [
        path
        for path in changed_paths({}, wanted)
        if is_below(path, left)
        and original is not None
        and value_at(original, path) is None
        and same(value_at(before, path), value_at(wanted, path))
    ]


def without_empty(config: Mapping[str, Any], dotted: str) -> dict[str, Any]:
    """`config` without the key of this dotted name, and without an object that becomes empty by it.

    dockerd compares `{}` with its flags too.
    """
    cut = without(config, dotted)
    parent = dotted.rpartition(".")[0]
    return without_empty(cut, parent) if parent and value_at(cut, parent) == {} else cut


def mask_credentials(text: str) -> str:
    """The text without user names and passwords in addresses: proxies carry them, and a diff goes to logs."""
    return re.sub(r"//[^/\s\"']+@", "//***@", text)


def plan(
    text: str,
    wanted: Mapping[str, Any],
    argv: list[str],
    remove: Iterable[str] = (),
    *,
    keep: Iterable[str] = (),
    original: Mapping[str, Any] | None = None,
    swarm: bool = False,
) -> Plan:
    """What merging `wanted` into the file's `text` comes to, where the unit's command is `argv`.

    `remove` are dotted names to take out; what `original`, the file before the first change, had there comes back.
    `keep` are those where its values count instead of `wanted`; None says that this is the first change. A member of a
    `swarm` gets no live-restore, with which dockerd does not start. What an earlier change wrote and has to be left out
    by now is taken out again. Raises DaemonJsonError as parse_config does, and where dockerd could not start with the
    result although --validate accepts it.
    """
    before = parse_config(text)
    in_file = before.get("log-driver")
    driver_there = flag_value(argv, "log-driver") or (in_file if isinstance(in_file, str) else "")
    respected, left_log = respect_log_driver(wanted, driver_there)
    respected, kept_names = respect_original(respected, before if original is None else original, keep)
    refused = {"live-restore"} if swarm else set()
    kept, left_flags = leave_out(respected, flag_keys(argv) | refused)
    left = sorted({*left_log, *left_flags})
    after = merge(before, kept)
    back = taken_back(before, wanted, original, left)
    for dotted in back:
        after = without_empty(after, dotted)
    for dotted in remove:
        theirs = value_at(original or {}, dotted)
        after = without(after, dotted) if theirs is None else with_value(after, dotted, theirs)
    if ghost := ghost_runtime(after, argv):
        raise DaemonJsonError(f"default-runtime is {ghost!r}, expected one that stands under runtimes")
    gone = [dotted for dotted in remove if value_at(before, dotted) is not None and value_at(after, dotted) is None]
    gone += back
    other = [path for path in changed_paths(before, after) if not any(name.startswith(f"{path}.") for name in gone)]
    changed = [] if same(before, after) else sorted({*other, *gone})
    return Plan(render(after, text) if changed else None, after, kept, changed, left, kept_names)


def is_of(path: str, wanted: Mapping[str, Any]) -> bool:
    """Whether this dotted name, of a setting or of an object around it, is one that `wanted` speaks of."""
    return any(leaf == path or leaf.startswith(f"{path}.") for leaf in changed_paths({}, wanted))


def waiting_of_others(
    config: Mapping[str, Any], wanted: Mapping[str, Any], info: Mapping[str, Any], *, written_since_start: bool
) -> list[str]:
    """Dotted names of what others have in the file and the running engine may not have taken up yet.

    What `docker info` shows is certain. Of the rest only that the file was written since the engine's start is known.
    """
    certain = not_in_force(config, info)
    unseen = [key for key in config if key not in SHOWN and needs_restart(key)] if written_since_start else []
    return sorted(path for path in {*certain, *unseen} if not is_of(path, wanted))


def needs_restart(path: str) -> bool:
    """Whether a reload leaves this key as it was."""
    return path.partition(".")[0] not in RELOADABLE or path in READ_AT_START_ONLY


# Settings that `docker info` shows, as not_in_force compares them.
SHOWN = frozenset(
    {"debug", "default-runtime", "features", "live-restore", "log-driver", "registry-mirrors", "runtimes"}
)


def not_in_force(config: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    """Dotted names of settings that the running engine's `docker info` contradicts.

    Only what `docker info` shows can be compared; anything else is not reported.
    """
    shown = {
        "live-restore": info.get("LiveRestoreEnabled"),
        "debug": info.get("Debug"),
        "default-runtime": info.get("DefaultRuntime"),
        "log-driver": info.get("LoggingDriver"),
    }
    differing = [key for key, value in shown.items() if key in config and value is not None and config[key] != value]
    runtimes = info.get("Runtimes") or {}
    for name, runtime in (config.get("runtimes") or {}).items():
        wanted_path = runtime.get("path") if isinstance(runtime, dict) else None
        if name not in runtimes or (wanted_path and runtimes[name].get("path") != wanted_path):
            differing.append(f"runtimes.{name}")
    # Engines before 25 have no such entry and cannot have CDI at all.
    if (config.get("features") or {}).get("cdi") is True and info.get("CDISpecDirs", ["unknown"]) in ([], None):
        differing.append("features.cdi")
    mirrors = {url.rstrip("/") for url in (info.get("RegistryConfig") or {}).get("Mirrors") or []}
    if not {url.rstrip("/") for url in config.get("registry-mirrors") or []} <= mirrors:
        differing.append("registry-mirrors")
    return sorted(differing)


def version_tuple(text: str) -> tuple[int, ...]:
    """Numbers of the first dotted version in `text`, as `Docker version 26.1.5+dfsg1, build ...`; () without one."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found.group(0).split(".")) if found else ()


def shown(dotted: str, value: Any) -> str:
    """A value as a table may show it: without logins, and not at all where its name says that it is a secret."""

    def cleaned(name: str, inner: Any) -> Any:
        if isinstance(inner, dict):
            return {key: cleaned(key, held) for key, held in inner.items()}
        return "***" if re.search("token|passw|secret|credential|key$", name, re.IGNORECASE) else inner

    return "absent" if value is None else mask_credentials(json.dumps(cleaned(dotted, value), ensure_ascii=False))


def drift(path: str, before: Mapping[str, Any], planned: Plan) -> list[dict[str, str]]:
    """What a merge comes to, as rows of the drift table."""
    return [
        {
            "resource": f"{path}: {dotted}",
            "expected": shown(dotted, value_at(planned.config, dotted)),
            "found": shown(dotted, value_at(before, dotted)),
        }
        for dotted in planned.changed_keys
    ]
