"""Make and remove sandboxes: `python -m sandbox up|down|destroy|keep NAME`, `python -m sandbox scenarios`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import Any

import yaml
from docker import DockerClient
from docker.errors import DockerException

from sandbox import containers, scenarios, snapshot, upstreams
from sandbox.engine import connect, ensure_engine
from sandbox.images import IMAGES, machine_certificates
from sandbox.stages import RefusalError, one_at_a_time

ROOT = Path(__file__).parents[2]
STATE = ROOT / ".cache" / "sandbox"
HOST_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def inventory_folder(name: str) -> Path:
    """Where the inventory of a sandbox lies."""
    return STATE / name


def site_variables(client: DockerClient, name: str, mode: str) -> dict[str, Any]:
    """The sandbox's own variables: its connection, and where its upstreams are. The site's own apply to the rest."""
    variables: dict[str, Any] = {
        "ansible_connection": "docker",  # the name by which Mitogen knows it
        "ansible_host": containers.full_name(name),
        # The sandbox has the stand-in driver's GPU: its devices are handed over, the computing is done on the CPU.
        "comfyui_device": "cpu",
        "comfyui_gpus": "all",
        **upstreams.upstream_variables(client, mode),
    }
    if machine_certificates():
        variables["comfyui_extra_ca_bundle"] = HOST_BUNDLE
    return variables


def write_inventory(name: str, variables: dict[str, Any]) -> None:
    """The sandbox as an inventory."""
    folder = inventory_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "group_vars"
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(ROOT / "inventory" / "group_vars", folder))
    hosts = {"dgx": {"hosts": {name: variables}}}
    (folder / "hosts.yml").write_text("---\n" + yaml.safe_dump(hosts, sort_keys=False))


def read_inventory(name: str) -> dict[str, Any]:
    """The variables of a sandbox that is there."""
    path = inventory_folder(name) / "hosts.yml"
    if not path.exists():
        raise RefusalError(f"There is no sandbox {name}. Type: python -m sandbox up {name}")
    variables: dict[str, Any] = yaml.safe_load(path.read_text())["dgx"]["hosts"][name]
    return variables


def refuse_taken_port(port: int) -> None:
    """Refuse a port of this machine's loopback that somebody listens on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise RefusalError(
                f"Port {port} of 127.0.0.1 is in use ({error.strerror}). Stop what listens there "
                f"(ss -ltnp 'sport = :{port}' names it), or choose another: make demo DEMO_PORT=8189"
            ) from error


def up(name: str, mode: str, port: int | None, begin: str) -> None:
    """Make the sandbox and its inventory, or go on with the one that is there."""
    client = connect()
    if port and not (client and containers.find(client, name)):
        refuse_taken_port(port)
    with one_at_a_time(f"{IMAGES}-engine"):
        client = ensure_engine()
        variables = site_variables(client, name, mode)
        host = containers.go_on(client, name, port)
        if host is None and begin == "nothing":
            host = containers.start_virgin(client, name, port)
    if host is None:
        with one_at_a_time(f"{containers.PREFIX}-snapshot"):
            kept = snapshot.ensure(client, variables, mode)
            host = snapshot.start(client, name, port, kept)
    write_inventory(name, variables)
    if standins := containers.find(client, "upstreams"):
        containers.introduce_upstreams(host, standins)


def down(name: str, *, everything: bool) -> None:
    """Remove the sandbox and its inventory; with `everything` also what sandboxes share, unless one still needs it."""
    client = connect()
    if client:
        containers.remove(client, name)
    if client and everything:
        for line in containers.remove_shared(client):
            print(line)
    folder = inventory_folder(name)
    if folder.exists():
        (folder / "group_vars").unlink(missing_ok=True)
        (folder / "hosts.yml").unlink(missing_ok=True)
        folder.rmdir()


def keep(name: str) -> None:
    """Keep a provisioned sandbox as the start of other scenarios."""
    client = ensure_engine()
    with one_at_a_time(f"{containers.PREFIX}-snapshot"):
        snapshot.take(client, name, snapshot.key(client, read_inventory(name)))


def main() -> int:
    """Entry point; a refusal is one sentence on stderr and status 1."""
    parser = argparse.ArgumentParser(prog="sandbox", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("up", "down", "destroy", "keep"):
        verbs.add_parser(verb).add_argument("name")
    verbs.choices["up"].add_argument("--port", type=int, default=None)
    verbs.choices["up"].add_argument("--upstreams", default=os.environ.get("UPSTREAMS", "auto"))
    verbs.choices["up"].add_argument("--from", dest="begin", choices=["nothing", "snapshot"], default="nothing")
    tests = verbs.add_parser("scenarios")
    tests.add_argument("names", nargs="*", help="by default those that gate a change")
    tests.add_argument("--full", action="store_true", help="by default every scenario")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "up":
            up(arguments.name, arguments.upstreams, arguments.port, arguments.begin)
        elif arguments.verb == "keep":
            keep(arguments.name)
        elif arguments.verb == "scenarios":
            with one_at_a_time(f"{containers.PREFIX}-scenarios"):
                return scenarios.run_all(arguments.names or scenarios.found(full=arguments.full))
        else:
            down(arguments.name, everything=arguments.verb == "destroy")
    except RefusalError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except DockerException as error:
        sys.stderr.write(f"The Docker engine refused: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
