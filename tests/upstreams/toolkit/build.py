#!/usr/bin/python3
"""Build a stand-in for NVIDIA's apt repository: signed, flat, four packages a version, amd64 and arm64.

Writes below --root: gpgkey (armoured), toolkit.json (fingerprint and versions), stable/deb/ARCH/. A static HTTP
server makes it a repository. The packages are the same bytes each time; the key that signs them is new each time.
Needs dpkg-deb and gpg.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "package"
ARCHITECTURES = ["amd64", "arm64"]
VERSIONS = ["1.20.2-1", "1.20.1-1", "1.19.0-1"]
# 2025-01-01: apt refuses a release file from the future, so a day long past.
EPOCH_S = 1735689600
RELEASE_DATE = "Wed, 01 Jan 2025 00:00:00 UTC"
SIGNER = "Stand-in for NVIDIA's package key <standin@example.com>"
UNITS = ["nvidia-cdi-refresh.path", "nvidia-cdi-refresh.service"]
# From this version on the units are the distribution's, under /lib; before, they were configuration files under /etc.
UNITS_MOVED = (1, 20, 0)
# Only this version's refresh is ordered so: no unit of that target can wait for it.
REFRESHED_LAST = (1, 19, 0)


@dataclass
class Content:
    """What goes into one package."""

    name: str
    depends: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # target path to source below package/
    conffiles: list[str] = field(default_factory=list)
    scripts: dict[str, str] = field(default_factory=dict)


def upstream(version: str) -> tuple[int, ...]:
    """The figures of `X.Y.Z-R` without the revision."""
    return tuple(int(part) for part in version.split("-", maxsplit=1)[0].split("."))


def base_scripts(version: str) -> dict[str, str]:
    """Maintainer scripts of nvidia-container-toolkit-base."""
    write_config = "nvidia-ctk --quiet config --config-file=/etc/nvidia-container-runtime/config.toml --in-place"
    if upstream(version) < UNITS_MOVED:
        enable = """\
case "$(systemctl is-system-running 2>/dev/null)" in
  running | degraded)
    systemctl daemon-reload
    systemctl enable --now nvidia-cdi-refresh.path nvidia-cdi-refresh.service
    ;;
esac"""
        return {"postinst": f'#!/bin/sh\nset -e\n[ "$1" = configure ] || exit 0\n{write_config}\n{enable}\n'}
    moved = "\n".join(
        f"dpkg-maintscript-helper rm_conffile /etc/systemd/system/{unit} 1.20.0-1~ nvidia-container-toolkit-base"
        ' -- "$@"'
        for unit in UNITS
    )
    units = " ".join(UNITS)
    enable = f"""\
for unit in {units}; do
  deb-systemd-helper unmask "$unit" >/dev/null
  deb-systemd-helper enable "$unit" >/dev/null
done
if [ -d /run/systemd/system ]; then
  systemctl --system daemon-reload
  deb-systemd-invoke start {units}
fi"""
    stop = f"if [ -d /run/systemd/system ]; then deb-systemd-invoke stop {units}; fi"
    forget = "for unit in " + units + '; do deb-systemd-helper purge "$unit"; deb-systemd-helper unmask "$unit"; done'
    return {
        "preinst": f"#!/bin/sh\nset -e\n{moved}\n",
        "postinst": f'#!/bin/sh\nset -e\n{moved}\n[ "$1" = configure ] || exit 0\n{write_config}\n{enable}\n',
        "prerm": f'#!/bin/sh\nset -e\n[ "$1" = remove ] || exit 0\n{stop}\n',
        "postrm": f'#!/bin/sh\nset -e\n{moved}\n[ "$1" = purge ] || exit 0\n{forget}\n',
    }


def packages(version: str) -> list[Content]:
    """The four packages of one version, with the exact dependencies of the real ones."""
    units_at = "/lib/systemd/system" if upstream(version) >= UNITS_MOVED else "/etc/systemd/system"
    base_files = {
        "/usr/bin/nvidia-ctk": "../nvidia_ctk.py",
        "/usr/bin/nvidia-container-runtime": "nvidia-container-runtime",
        "/usr/bin/nvidia-cdi-hook": "nvidia-cdi-hook",
        "/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env": "nvidia-cdi-refresh.env",
        **{f"{units_at}/{unit}": unit for unit in UNITS},
    }
    return [
        Content("libnvidia-container1"),
        Content(
            "libnvidia-container-tools",
            depends=[f"libnvidia-container1 (= {version})"],
            files={"/usr/bin/nvidia-container-cli": "nvidia-container-cli"},
        ),
        Content(
            "nvidia-container-toolkit-base",
            depends=["python3"],
            files=base_files,
            conffiles=[path for path in base_files if path.startswith("/etc/")],
            scripts=base_scripts(version),
        ),
        Content(
            "nvidia-container-toolkit",
            depends=[f"nvidia-container-toolkit-base (= {version})", f"libnvidia-container-tools (= {version})"],
            files={"/usr/bin/nvidia-container-runtime-hook": "nvidia-container-runtime-hook"},
        ),
    ]


def control_text(content: Content, version: str, architecture: str) -> str:
    """The control file of a package."""
    lines = [
        f"Package: {content.name}",
        f"Version: {version}",
        f"Architecture: {architecture}",
        "Section: utils",
        "Priority: optional",
        "Maintainer: Stand-in <standin@example.com>",
        *([f"Depends: {', '.join(content.depends)}"] if content.depends else []),
        f"Description: Stand-in for {content.name}",
        " Only for tests.",
    ]
    return "\n".join(lines) + "\n"


def packed_text(source: str, version: str) -> str:
    """A file's text with the version written in, and the order that this version's unit has."""
    order = "After=multi-user.target\n" if upstream(version) == REFRESHED_LAST else ""
    text = (PACKAGE / source).read_text().replace("@ORDER@\n", order)
    plain = version.split("-", maxsplit=1)[0]
    return text.replace('VERSION = "0.0.0"', f'VERSION = "{plain}"').replace("@UPSTREAM_VERSION@", plain)


def build_package(content: Content, version: str, architecture: str, folder: Path) -> Path:
    """Build one package into `folder`."""
    target = folder / f"{content.name}_{version}_{architecture}.deb"
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        tree.chmod(0o755)
        (tree / "DEBIAN" / "control").write_text(control_text(content, version, architecture))
        if content.conffiles:
            (tree / "DEBIAN" / "conffiles").write_text("".join(f"{path}\n" for path in content.conffiles))
        for name, text in content.scripts.items():
            (tree / "DEBIAN" / name).write_text(text)
            (tree / "DEBIAN" / name).chmod(0o755)
        for path, source in content.files.items():
            placed = tree / path.lstrip("/")
            placed.parent.mkdir(parents=True, exist_ok=True)
            placed.write_text(packed_text(source, version))
            placed.chmod(0o755 if path.startswith("/usr/bin/") else 0o644)
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(target)],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH_S)},
        )
    return target


def index_entry(control: str, deb: Path) -> str:
    """A package's paragraph in the index."""
    data = deb.read_bytes()
    return (
        f"{control}Filename: ./{deb.name}\nSize: {len(data)}\n"
        f"MD5sum: {hashlib.md5(data, usedforsecurity=False).hexdigest()}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
    )


def release_text(architecture: str, files: list[Path]) -> str:
    """The release file of a flat repository."""
    sums = "".join(
        f" {hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_size} {path.name}\n" for path in files
    )
    return (
        f"Origin: stand-in\nLabel: stand-in\nArchitectures: {architecture}\n"
        f"Date: {RELEASE_DATE}\nDescription: Stand-in for NVIDIA's container toolkit repository\nSHA256:\n{sums}"
    )


class Signer:
    """A key of its own in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.chmod(0o700)
        self.gpg("--passphrase", "", "--quick-generate-key", SIGNER, "ed25519", "sign", "never")
        listing = self.gpg("--list-keys", "--with-colons").splitlines()
        self.fingerprint = next(line.split(":")[9] for line in listing if line.startswith("fpr:"))

    def gpg(self, *arguments: str) -> str:
        """Run gpg on this key's folder."""
        done = subprocess.run(
            [
                "gpg",
                "--homedir",
                str(self.home),
                "--batch",
                "--yes",
                "--quiet",
                "--pinentry-mode",
                "loopback",
                *arguments,
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def sign(self, release: Path) -> None:
        """Sign a release file both ways."""
        folder = release.parent
        self.gpg("--clearsign", "--digest-algo", "SHA512", "--output", str(folder / "InRelease"), str(release))
        self.gpg("--armor", "--detach-sign", "--digest-algo", "SHA512", "--output", f"{release}.gpg", str(release))

    def close(self) -> None:
        """End the agent that gpg started for this folder."""
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=True)


def build(root: Path, versions: list[str]) -> None:
    """Build the whole repository."""
    with tempfile.TemporaryDirectory(prefix="toolkit-key-") as home:
        signer = Signer(Path(home))
        try:
            for architecture in ARCHITECTURES:
                folder = root / "stable" / "deb" / architecture
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                entries = [
                    index_entry(
                        control_text(content, version, architecture),
                        build_package(content, version, architecture, folder),
                    )
                    for version in versions
                    for content in packages(version)
                ]
                index = folder / "Packages"
                index.write_text("\n".join(entries))
                packed = folder / "Packages.gz"
                packed.write_bytes(gzip.compress(index.read_bytes(), mtime=EPOCH_S))
                (folder / "Release").write_text(release_text(architecture, [index, packed]))
                signer.sign(folder / "Release")
            (root / "gpgkey").write_text(signer.gpg("--armor", "--export"))
            facts = {"fingerprint": signer.fingerprint, "versions": versions}
            (root / "toolkit.json").write_text(json.dumps(facts, indent=2) + "\n")
        finally:
            signer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a stand-in for NVIDIA's container toolkit repository.")
    parser.add_argument("--root", type=Path, required=True, help="folder to build in")
    parser.add_argument("--version", nargs="+", default=VERSIONS, help="X.Y.Z-R, newest first")
    arguments = parser.parse_args()
    build(arguments.root, arguments.version)


if __name__ == "__main__":
    main()
