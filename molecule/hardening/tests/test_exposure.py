"""Who reaches ComfyUI, and how: the page docs/security.md is run as it is written."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from live_host import GUARD, LiveHost
from playbook_runs import ROOT
from sandbox.containers import FORWARD_PORT

HOST = os.environ.get("MOLECULE_SCENARIO_NAME", "hardening")
PAGE = (ROOT / "docs/security.md").read_text()
NAME = "comfyui.example.com"
CURL = f"curl --silent --max-time 20 --cacert /etc/nginx/comfyui/tls.crt --resolve {NAME}:443:127.0.0.1"
URL = f"https://{NAME}"
# Explained in docs/security.md.
EXPLAINED = {"WEB-2", "WEB-3"}


def blocks(language: str) -> list[str]:
    """The page's code, in its order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def live() -> LiveHost:
    return LiveHost(HOST)


@pytest.fixture(scope="module")
def address(live: LiveHost) -> str:
    """The host's address for other machines, of which this is one."""
    command = ["docker", "container", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", live.container]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def scanner(live: LiveHost) -> str:
    """The scanner on the host, as a command: it also looks from the host's own addresses."""
    folder = ROOT / ".cache" / "scanner"
    if not folder.exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
            str(folder),
        ]
        wanted = str(ROOT / "molecule/hardening/scanner.txt")
        subprocess.run([*pip, "--no-deps", "--require-hashes", "--requirement", wanted], check=True)
    subprocess.run(["docker", "cp", "--quiet", str(folder), f"{live.container}:/root/scanner"], check=True)
    return "PYTHONPATH=/root/scanner SSL_CERT_FILE=/etc/nginx/comfyui/tls.crt python3 -m ligsp check --json -"


def findings(live: LiveHost, scanner: str, url: str) -> set[str]:
    """All that is not in order; what it could not check is not among it."""
    report = json.loads(live.run(f"{scanner} {url}").stdout)
    (target,) = report["targets"]
    assert len(target["results"]) > 3, target
    return {f"{one['id']}: {one['title']}" for one in target["results"] if one["status"] in {"fail", "warn"}}


def reaches(address: str, port: int = 8188) -> bool:
    """Whether this machine, which is another one, gets through."""
    try:
        with socket.create_connection((address, port), timeout=3) as connection:
            connection.sendall(b"GET /system_stats HTTP/1.0\r\n\r\n")
            return b"200 OK" in connection.recv(64)
    except OSError:
        return False


def connects(address: str, port: int) -> bool:
    """Whether this machine gets a connection to a port."""
    try:
        socket.create_connection((address, port), timeout=3).close()
    except OSError:
        return False
    return True


def test_nobody_else_reaches_the_port_as_delivered(live: LiveHost, address: str) -> None:
    assert live.answers()
    assert not reaches(address)


def test_the_scanner_finds_only_what_the_page_explains(live: LiveHost, scanner: str) -> None:
    found = findings(live, scanner, "http://127.0.0.1:8188")
    assert {one.partition(":")[0] for one in found} == EXPLAINED, found
    assert all(f"| {name}," in PAGE for name in EXPLAINED)


@pytest.fixture(scope="module")
def proxy(live: LiveHost) -> LiveHost:
    """The proxy of the page, command by command."""
    setup, serve = (block for block in blocks("sh") if "nginx" in block)
    live.write("/root/password", "a password\n")
    script = f"exec < /root/password; export DEBIAN_FRONTEND=noninteractive; apt-get update --quiet=2; {setup}"
    live.shell(script, timeout_s=300)
    (configuration,) = blocks("nginx")
    live.write("/etc/nginx/conf.d/comfyui.conf", configuration)
    live.shell(serve)
    return live


def test_the_proxy_asks_for_the_password(proxy: LiveHost) -> None:
    ask = f"{CURL} --output /dev/null --write-out '%{{http_code}}'"
    assert proxy.shell(f"{ask} {URL}/system_stats") == "401"
    assert proxy.shell(f"{ask} --user operator:wrong {URL}/system_stats") == "401"
    assert proxy.shell(f"{ask} --user 'operator:a password' {URL}/system_stats") == "200"


def test_the_proxy_checks_the_host(proxy: LiveHost) -> None:
    ask = f"{CURL} --output /dev/null --write-out '%{{http_code}}' --user 'operator:a password'"
    assert proxy.shell(f"{ask} --header 'Host: rebind.example.org' {URL}/system_stats") == "421"


def test_the_proxy_adds_headers_to_every_answer_once(proxy: LiveHost) -> None:
    for login, path in (("operator:a password", "/"), ("operator:wrong", "/"), ("operator:a password", "/nowhere")):
        headers = proxy.shell(f"{CURL} --dump-header - --output /dev/null --user '{login}' {URL}{path}").lower()
        for wanted in (
            "strict-transport-security: max-age=31536000",
            "x-content-type-options: nosniff",
            "x-frame-options: sameorigin",
            "content-security-policy: frame-ancestors 'self'",
            "referrer-policy: same-origin",
        ):
            assert headers.count(wanted) == 1, headers


def test_websockets_pass_the_proxy(proxy: LiveHost) -> None:
    key = "--header 'Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==' --header 'Sec-WebSocket-Version: 13'"
    upgrade = f"--http1.1 --header 'Upgrade: websocket' --header 'Connection: Upgrade' {key}"
    done = proxy.run(
        f"{CURL} --max-time 3 --include {upgrade} --user 'operator:a password' {URL}/ws | head --bytes 900"
    )
    assert "101 Switching Protocols" in done.stdout
    assert '"status"' in done.stdout


def test_uploads_and_prompts_pass_the_proxy(proxy: LiveHost) -> None:
    ask = f"{CURL} --fail --user 'operator:a password' --header 'Origin: {URL}'"
    proxy.shell("head --bytes 20M /dev/urandom > /root/large.png")
    answer = json.loads(proxy.shell(f"{ask} --form image=@/root/large.png --form overwrite=true {URL}/upload/image"))
    assert answer["name"] == "large.png"
    assert proxy.shell("stat --format %s /srv/comfyui/input/large.png") == str(20 * 1024**2)
    proxy.shell("rm /srv/comfyui/input/large.png")
    graph = json.loads((ROOT / "workflows/render_check.json").read_text())
    proxy.write("/root/prompt.json", json.dumps({"prompt": graph}))
    assert "prompt_id" in proxy.shell(f"{ask} --data @/root/prompt.json {URL}/prompt")


def test_the_scanner_finds_nothing_behind_the_proxy(proxy: LiveHost, address: str, scanner: str) -> None:
    proxy.shell(f"echo '{address} {NAME}' >> /etc/hosts")
    assert findings(proxy, scanner, URL) == set()


def test_another_address_with_a_guard_is_served_and_ufw_does_not_stop_it(live: LiveHost, address: str) -> None:
    done = live.playbook(
        "site.yml", "--tags", "comfyui_service", comfyui_bind_address=address, comfyui_service_guard="network"
    )
    assert done.returncode == 0, done.stdout
    assert reaches(address)
    (rule,) = (block for block in blocks("sh") if "--ctorigdstport" in block)
    assert connects(address, FORWARD_PORT)
    live.shell(
        "apt-get update --quiet=2; DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 ufw", timeout_s=300
    )
    try:
        live.shell("ufw deny 8188; ufw --force enable")
        assert not connects(address, FORWARD_PORT)  # it does stop what is no container's
        assert reaches(address)
        live.shell(rule)
        assert not reaches(address)
        assert live.run(f"curl --silent --fail --max-time 5 http://{address}:8188/system_stats").returncode == 0
    finally:
        live.run("ufw --force reset; ufw disable; iptables -F DOCKER-USER; iptables -A DOCKER-USER -j RETURN")
    live.shell(f"{GUARD} rollback")
    assert not reaches(address)
