"""What a site adds to a build: a proxy that leaves no trace in the image, and pins for what a custom node requires."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator

import pytest

from image_sandbox import Sandbox

NAME = os.environ.get("MOLECULE_SCENARIO_NAME", "image")
LOGIN = "someone:hunter22"
PORT = 3128
LOG = "/run/proxy.log"
NODE = {"__init__.py": b"NODE_CLASS_MAPPINGS = {}\n", "requirements.txt": b"humanize\n"}
# A release that is not the newest, so that it shows which file was followed.
PINNED = "humanize==4.10.0"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(NAME, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def proxy(sandbox: Sandbox) -> Iterator[str]:
    """A forward proxy on the host that wants a login, at the address that the steps of a build reach it by."""
    address = sandbox.shell("ip -4 -oneline address show docker0").split()[3].partition("/")[0]
    settings = (
        f"User tinyproxy\\nPort {PORT}\\nListen {address}\\nBasicAuth {LOGIN.replace(':', ' ')}\\nLogLevel Connect\\n"
    )
    sandbox.shell(
        "apt-get update --quiet=2; apt-get install --yes --quiet=2 tinyproxy-bin; adduser --system --quiet tinyproxy"
        f"; printf '{settings}' > /run/proxy.conf"
    )
    sandbox.shell(f"setsid tinyproxy -d -c /run/proxy.conf > {LOG} 2>&1 < /dev/null &")
    yield f"http://{LOGIN}@{address}:{PORT}"
    sandbox.shell("kill $(pgrep --exact tinyproxy)")


def test_a_build_goes_through_the_proxy_and_says_nothing_of_it(sandbox: Sandbox, proxy: str) -> None:
    # Another commit each time: a step that the builder has already done asks nobody.
    node = sandbox.serve("proxied", NODE | {"made": str(time.time_ns()).encode()})
    outcome = sandbox.play(
        comfyui_custom_nodes=[{"name": "proxied", **node, "requirements": PINNED}], comfyui_proxy=proxy
    )
    assert outcome.status == 0, outcome.output
    tag = sandbox.made()
    asked = sandbox.shell(f"cat {LOG}")
    assert "GET http://upstreams.test/git/proxied.git/" in asked  # git
    assert re.search(r": CONNECT \S+:443 ", asked), asked  # pip, in a step of the build
    record = json.loads(sandbox.shell(f"cat /etc/comfyui/images/{tag}.json"))
    assert PINNED.split("==") in [[entry["name"], entry["version"]] for entry in record["contents"]]
    address = proxy.partition("@")[2]
    made = f"dgx-comfyui:{tag}"
    for secret in ("hunter22", address):
        assert secret not in outcome.output
        assert secret not in sandbox.shell(f"docker image inspect {made}; docker image history --no-trunc {made}")
        assert secret not in json.dumps(record)
    traces = f"grep -rl -e hunter22 -e {address} /etc /root /home /data /opt/comfyui /var/lib /usr/local || echo none"
    assert sandbox.shell(f"docker run --rm --network none --user 0 {made} sh -c '{traces}'").strip() == "none"
