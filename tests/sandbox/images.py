"""Images of the test machines: Debian, the sandbox host, the stand-in upstreams, the base image with PyTorch.

Each tag ends in a digest of what the image is made from, so "there" means "current".
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import ssl
import subprocess
import tarfile
import tempfile
from pathlib import Path

import certifi
from docker import DockerClient
from docker.errors import APIError, BuildError, ImageNotFound

from sandbox.stages import RefusalError, stage

HERE = Path(__file__).parent
SUITE = "trixie"
# Debian's PyTorch of another suite as the base: forky has a newer torch and Python, and moves every day.
BASE_SUITE = os.environ.get("SANDBOX_BASE_SUITE", SUITE)
# Not pinned by digest: apt brings the day's security updates into the image a moment later anyway,
# and nothing of it reaches a real host.
PULLED = "debian:{suite}-slim"
IMAGES = "dgx-comfyui"
DEBIAN_NAME = f"{IMAGES}-debian"
PEM = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def machine_certificates() -> list[str]:
    """CA certificates that this machine trusts beyond the public list, as PEM texts in a fixed order.

    An inspecting firewall adds one; what runs in the sandbox needs it as well.
    """
    paths = ssl.get_default_verify_paths()
    bundle = Path(os.environ.get("SSL_CERT_FILE") or paths.cafile or "/etc/ssl/certs/ca-certificates.crt")
    if not bundle.exists():
        return []
    published = [Path(certifi.where()), *Path("/usr/share/ca-certificates").rglob("*.crt")]
    public = {"".join(pem.split()) for path in published for pem in PEM.findall(path.read_text())}
    return sorted(pem for pem in set(PEM.findall(bundle.read_text())) if "".join(pem.split()) not in public)


def context_files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in a build context; caches of Python left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def digest_of(*parts: str | dict[str, bytes]) -> str:
    """A short digest over texts and files, for a tag."""
    total = hashlib.sha256()
    for part in parts:
        for name, content in {"": part.encode()}.items() if isinstance(part, str) else sorted(part.items()):
            total.update(f"{len(name)}:{len(content)}:{name}".encode() + content)
    return total.hexdigest()[:12]


def as_tar(files: dict[str, bytes]) -> io.BytesIO:
    """A build context as the engine wants it; programs stay executable."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o755 if content.startswith(b"#!") else 0o644
            archive.addfile(entry, io.BytesIO(content))
    buffer.seek(0)
    return buffer


def has_image(client: DockerClient, tag: str) -> bool:
    """Whether the engine holds this tag."""
    try:
        client.images.get(tag)
    except ImageNotFound:
        return False
    return True


def ensure_debian(client: DockerClient, suite: str = SUITE) -> str:
    """A minimal Debian: pulled where a registry answers, bootstrapped from Debian packages where none does."""
    debian, pulled = f"{DEBIAN_NAME}:{suite}", PULLED.format(suite=suite)
    if has_image(client, debian):
        return debian
    with stage(f"Pulling {pulled} for the sandbox"):
        try:
            client.images.pull(pulled).tag(debian)
        except APIError as error:
            print(f"    no registry answers ({error.explanation})")
        else:
            return debian
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise RefusalError(
            f"{pulled} cannot be pulled, and bootstrapping Debian needs root on a Debian or Ubuntu machine. "
            f"Pull or load that image, then run this command again."
        )
    if not shutil.which("debootstrap"):
        with stage("Installing debootstrap"):
            run(["apt-get", "install", "--yes", "debootstrap"])
    with stage(f"Bootstrapping Debian {suite} from packages"), tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        # An older debootstrap knows no newer suite; all of them are made as sid is.
        script = "/usr/share/debootstrap/scripts/sid"
        run(["debootstrap", "--variant=minbase", "--include=ca-certificates", suite, str(root), "", script])
        archive = Path(scratch, "root.tar")
        run(["tar", "--create", f"--directory={root}", f"--file={archive}", "."])
        client.api.import_image_from_file(str(archive), repository=DEBIAN_NAME, tag=suite)
    return debian


def run(command: list[str]) -> None:
    """Run a program of this machine; its last words become the refusal."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise RefusalError(f"`{' '.join(command)}` failed with {done.returncode}: {words[-1]}")


def ensure_image(client: DockerClient, name: str, title: str, base: str, files: dict[str, bytes]) -> str:
    """Build `name` from its files on `base` unless it is there; return its full tag."""
    certificates = {f"ca/machine-{i}.crt": pem.encode() + b"\n" for i, pem in enumerate(machine_certificates())}
    context = {**files, **certificates, "ca/.keep": b""}
    base_id = str(client.images.get(base).id)
    tag = f"{IMAGES}-{name}:{digest_of(base_id, context)}"
    if has_image(client, tag):
        return tag
    with stage(title):
        try:
            client.images.build(
                fileobj=as_tar(context), custom_context=True, tag=tag, buildargs={"BASE": base}, rm=True, forcerm=True
            )
        except BuildError as error:
            lines = [str(entry["stream"]).rstrip() for entry in error.build_log if "stream" in entry]
            raise RefusalError("\n".join([*lines[-20:], f"building {tag} failed: {error}"])) from error
    return tag


def ensure_host_image(client: DockerClient) -> str:
    """The sandbox host: Debian with systemd, and what an Ansible target has. Docker is the roles' work."""
    driver = {f"driver/{name}": content for name, content in context_files(HERE.parent / "upstreams/toolkit").items()}
    files = {**context_files(HERE / "host"), **driver}
    return ensure_image(client, "host", "Building the sandbox host", ensure_debian(client), files)


def ensure_upstreams_image(client: DockerClient) -> str:
    """The host with the stand-in upstreams: git, model hub, apt repository, container registry."""
    files = context_files(HERE.parent / "upstreams")
    return ensure_image(client, "upstreams", "Building the stand-in upstreams", ensure_host_image(client), files)


def ensure_base_image(client: DockerClient) -> str:
    """The stand-in for the NGC base: Debian's own PyTorch."""
    title = "Building the base image with Debian's PyTorch"
    return ensure_image(client, "base", title, ensure_debian(client, BASE_SUITE), context_files(HERE / "base"))
