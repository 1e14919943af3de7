"""Build a stand-in for Docker's apt repository: signed, empty packages under Docker's names.

They are for looking at, not for installing: Debian's own engine, which they would bring, conflicts with these names.

Writes below --root: debian/gpg (armoured), docker.json (fingerprint and version), debian/dists/, debian/pool/. Run as a
module, in the folder above: `python3 -m toolkit.docker_ce --root /srv/upstreams/docker`. Needs dpkg-deb and gpg.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

from . import build

SUITE = "trixie"
# Debian's engine of that suite, as Docker would number it.
VERSION = "26.1.5"
PACKAGES = {
    f"5:{VERSION}-1~debian.13~{SUITE}": [
        build.Content("docker-ce"),
        build.Content("docker-ce-cli"),
    ],
    f"1.7.24-1~debian.13~{SUITE}": [build.Content("containerd.io")],
    f"0.13.1-1~debian.13~{SUITE}": [build.Content("docker-buildx-plugin")],
}


def release_text(dists: Path) -> str:
    """The release file of a suite, over every index below it."""
    indexes = sorted(dists.rglob("Packages"))
    sums = "".join(
        f" {hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_size} {path.relative_to(dists)}\n"
        for path in indexes
    )
    return (
        f"Origin: stand-in\nLabel: stand-in\nSuite: {SUITE}\nCodename: {SUITE}\nComponents: stable\n"
        f"Architectures: {' '.join(build.ARCHITECTURES)}\nDate: {build.RELEASE_DATE}\n"
        f"Description: Stand-in for Docker's repository\nSHA256:\n{sums}"
    )


def build_repository(root: Path) -> None:
    """Build the whole repository."""
    debian = root / "debian"
    dists, pool = debian / "dists" / SUITE, debian / "pool"
    pool.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="docker-key-") as home:
        signer = build.Signer(Path(home))
        try:
            for architecture in build.ARCHITECTURES:
                entries = [
                    build.index_entry(
                        build.control_text(content, version, architecture),
                        build.build_package(content, version, architecture, pool),
                    ).replace("Filename: ./", "Filename: pool/")
                    for version, contents in PACKAGES.items()
                    for content in contents
                ]
                index = dists / "stable" / f"binary-{architecture}" / "Packages"
                index.parent.mkdir(parents=True)
                index.write_text("\n".join(entries))
            (dists / "Release").write_text(release_text(dists))
            signer.sign(dists / "Release")
            (debian / "gpg").write_text(signer.gpg("--armor", "--export"))
            (root / "docker.json").write_text(
                json.dumps({"fingerprint": signer.fingerprint, "version": VERSION}) + "\n"
            )
        finally:
            signer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a stand-in for Docker's apt repository.")
    parser.add_argument("--root", type=Path, required=True, help="folder to build in")
    build_repository(parser.parse_args().root)


if __name__ == "__main__":
    main()
