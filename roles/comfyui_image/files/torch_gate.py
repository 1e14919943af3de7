"""Proof that the base image's PyTorch is what runs: versions, places, and a digest over its files.

`record` writes down what the base has before anything is installed, `suits` holds that against what a ComfyUI version
needs, `verify` compares after the last install and again in the running container, and `covers` says whether it has
code for a GPU. Standard library only: it runs in the image, on the base's own Python, and knows nothing of Ansible.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

GUARDED = ("torch", "torchvision", "triton")
# What must keep the version that the base's torch was built against, beside what is guarded to the byte.
CONSTRAINED = re.compile(
    r"torch|torchvision|torchaudio|triton|pytorch-triton|numpy|nvidia-.*|transformer-engine|flash-attn"
)
CHUNK_B = 1 << 20


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces: libtorch has gigabytes."""
    total = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_B):
            total.update(chunk)
    return total.hexdigest()


def tree_digest(folder: Path) -> str:
    """One digest over the names and contents below a folder; what Python compiles beside its sources does not count."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    with ThreadPoolExecutor() as pool:
        digests = pool.map(file_digest, files)
    lines = [f"{digest} {path.relative_to(folder)}\n" for path, digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def package_version(name: str) -> str | None:
    """Version of an importable package, whose distribution may have another name (NGC's triton); None where none is."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        owners = metadata.packages_distributions().get(name, [])
        return metadata.version(owners[0]) if owners else None


def package_state(name: str) -> dict[str, Any] | None:
    """Version, place and digest of an importable package; None where there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    return {"version": package_version(name), "folder": str(folder), "sha256": tree_digest(folder)}


def normal(name: str) -> str:
    """A distribution's name as requirements compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> list[str]:
    """The versions of the base that no requirement may move, as lines of a constraint file.

    They are those of the metadata: `torch.__version__` of an NGC image is not what pip compares with. A base without
    torchaudio gets none: newer ones name no torch that they need, and fit none but the public one.
    """
    found = {normal(one.name): one.version for one in metadata.distributions() if one.name}
    lines = [f"{name}=={version}" for name, version in sorted(found.items()) if CONSTRAINED.fullmatch(name)]
    return lines if "torchaudio" in found else [*lines, "torchaudio<0"]


def pip_findings() -> list[str]:
    """What `pip check` complains of; a base may have findings of its own, so they are compared, not counted.

    Ends the program where pip does not come to say anything: that is no proof.
    """
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if done.returncode and not done.stdout.strip():
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        sys.exit(f"torch gate: pip check did not run: {said[-1]}")
    return sorted(done.stdout.splitlines()) if done.returncode else []


def current_state() -> dict[str, Any]:
    """Everything that must not move. A torch that cannot be imported is a state too: its files tell what is wrong."""
    state: dict[str, Any] = {name: package_state(name) for name in GUARDED}
    try:
        import torch  # noqa: PLC0415 - takes seconds, and only this state needs it
    except Exception as error:
        return {**state, "import": f"{type(error).__name__}: {error}"}
    state["cuda"] = torch.version.cuda
    state["torch.__file__"] = torch.__file__
    # torch.cuda.get_arch_list() is empty where no GPU is seen, as in a build; this one is what was compiled in.
    flags = getattr(torch._C, "_cuda_getArchFlags", str)
    state["architectures"] = (flags() or "").split()
    return state


def askers(name: str) -> list[str]:
    """The distributions of this environment that ask for a package, each with its requirement."""
    return sorted(
        f"{one.name} {one.version} ({requirement})"
        for one in metadata.distributions()
        if str(one.locate_file("")).startswith(sys.prefix)
        for requirement in one.requires or []
        if normal(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]) == name and "extra ==" not in requirement
    )


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One sentence for each part that moved, with who asked for another package of that name."""
    problems = []
    for key in sorted(wanted.keys() | found.keys()):
        before, after = wanted.get(key), found.get(key)
        if before != after:
            problem = f"{key}: the base has {json.dumps(before)}, found {json.dumps(after)}"
            names = askers(key) if isinstance(after, dict) and (before or {}).get("folder") != after["folder"] else []
            problems.append(f"{problem}, asked for by {', '.join(names)}" if names else problem)
    return problems


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: NGC's are previews by name (2.14.0a0), not by content."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def unsuitable(recorded: dict[str, Any], torch_minimum: str, pythons: tuple[str, str]) -> list[str]:
    """What of the base is too old or too new for a ComfyUI version and its lock."""
    problems = []
    version = str(recorded["packages"]["torch"]["version"])
    if release(version) < release(torch_minimum):
        problems.append(f"the base has torch {version}, expected {torch_minimum} or newer")
    oldest, newest = pythons
    if not release(oldest) <= sys.version_info[:2] <= release(newest):
        problems.append(
            f"the base has Python {sys.version.split()[0]}, expected {oldest} to {newest}, as the lock is made for"
        )
    return problems


def covers(architectures: list[str], capability: str) -> bool:
    """Whether code for these architectures runs on a GPU of this compute capability, such as 12.1.

    Binary code runs on its own and on later minor versions of its major one (sm_120 on 12.1), code that names a
    variant (sm_90a) on its own alone, that of a family (sm_100f) like the plain one; intermediate code (compute_80)
    on everything later. Source: CUDA C++ Programming Guide, Compute Capabilities and PTX Compatibility.
    """
    wanted = release(capability)
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
        if match:
            has = int(match[2]), int(match[3])
            exact, same_major = has == wanted, has[0] == wanted[0] and has <= wanted
            if exact or (
                match[4] != "a" and (same_major or (match[1] == "compute" and not match[4] and has <= wanted))
            ):
                return True
    return False


def record(path: Path) -> list[str]:
    """Write down the base's state, and its constraints beside it."""
    if importlib.util.find_spec("torch") is None:
        return ["the base image has no torch, expected a PyTorch image"]
    state = {"packages": current_state(), "pip_check": pip_findings()}
    if "import" in state["packages"]:
        return [f"the base image has no torch that can be imported: {state['packages']['import']}"]
    path.write_text(json.dumps(state, indent=2) + "\n")
    path.with_name("constraints.txt").write_text("".join(f"{line}\n" for line in constraints()))
    return []


def verify(path: Path) -> list[str]:
    """What moved since the base was recorded."""
    recorded = json.loads(path.read_text())
    problems = differences(recorded["packages"], current_state())
    return problems + [f"pip check: {line}" for line in pip_findings() if line not in recorded["pip_check"]]


def missing_code(path: Path, capabilities: list[str]) -> list[str]:
    """One sentence for each GPU that the recorded torch has no code for."""
    architectures = json.loads(path.read_text())["packages"]["architectures"]
    return [
        f"this torch has code for {', '.join(architectures) or 'no GPU'}, expected the compute capability {one} too"
        for one in capabilities
        if not covers(architectures, one)
    ]


def main(arguments: list[str]) -> int:
    """Entry point; exit status 1 where something is wrong, each of it a line on stderr."""
    parser = argparse.ArgumentParser(prog="torch_gate.py", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("record", "suits", "verify", "covers"):
        verbs.add_parser(verb).add_argument("file", type=Path)
    verbs.choices["suits"].add_argument("--torch", required=True)
    verbs.choices["suits"].add_argument("--python", required=True, nargs=2)
    verbs.choices["covers"].add_argument("capabilities", nargs="+")
    options = parser.parse_args(arguments)
    if options.verb == "suits":
        problems = unsuitable(json.loads(options.file.read_text()), options.torch, tuple(options.python))
    elif options.verb == "covers":
        problems = missing_code(options.file, options.capabilities)
    else:
        problems = {"record": record, "verify": verify}[options.verb](options.file)
    for problem in problems:
        sys.stderr.write(f"torch gate: {problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
