"""The sandbox's decisions: what it refuses, which way it starts a host, which source it takes."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible_mitogen import strategy  # type: ignore[import-untyped]
from docker.errors import APIError, NotFound

from sandbox import __main__ as command
from sandbox import containers, engine, images, upstreams
from sandbox.stages import RefusalError

PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----"


class Response:
    status_code = 500
    reason = "refused"
    url = "http+docker://localhost"


class FakeContainer:
    name = "dgx-comfyui-x"
    status = "running"

    def __init__(self, refusal: str) -> None:
        self.refusal = refusal
        self.removed = False

    def start(self) -> None:
        if self.refusal:
            raise APIError("500", Response(), self.refusal)  # type: ignore[arg-type]

    def remove(self, **_: Any) -> None:
        self.removed = True


class FakeClient:
    """An engine that refuses the first `refusals` ways of starting a host."""

    def __init__(self, refusals: list[str]) -> None:
        self.api = self
        self.containers = self
        self.refusals = refusals
        self.made: list[FakeContainer] = []
        self.configs: list[dict[str, Any]] = []

    def create_host_config(self, **keywords: Any) -> dict[str, Any]:
        return dict(keywords)

    def create_container(self, *_: Any, host_config: dict[str, Any], **__: Any) -> dict[str, str]:
        self.configs.append(host_config)
        self.made.append(FakeContainer(self.refusals[len(self.made)] if len(self.made) < len(self.refusals) else ""))
        return {"Id": str(len(self.made) - 1)}

    def get(self, identity: str) -> FakeContainer:
        return self.made[int(identity)]


@pytest.fixture(name="booted", autouse=True)
def skip_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "wait_for_boot", lambda _: None)


def start(client: FakeClient) -> Any:
    return containers.start_host(client, "x", "image", ports={18188: ("127.0.0.1", 8188)})  # type: ignore[arg-type]


def test_a_privileged_host_is_the_first_choice() -> None:
    client = FakeClient([])
    start(client)
    assert [config.get("privileged") for config in client.configs] == [True]


def test_an_engine_without_all_capabilities_gets_a_host_by_name() -> None:
    client = FakeClient(["unable to apply caps: operation not permitted"])
    start(client)
    assert client.made[0].removed
    second = client.configs[1]
    assert second["cap_add"] == ["ALL"]
    assert second["cap_drop"] == ["SYS_RESOURCE"]
    assert second["MaskedPaths"] == second["ReadonlyPaths"] == []
    assert second["CgroupnsMode"] == "host"
    assert "c 195:* rwm" in second["device_cgroup_rules"]


def test_an_engine_that_refuses_both_is_quoted() -> None:
    client = FakeClient(["no caps", "no seccomp either"])
    with pytest.raises(RefusalError, match="no seccomp either"):
        start(client)
    assert all(container.removed for container in client.made)


def test_a_taken_port_is_not_tried_twice() -> None:
    client = FakeClient(["port is already allocated"])
    with pytest.raises(RefusalError, match="already allocated"):
        start(client)
    assert len(client.made) == 1


def test_a_listener_on_the_demos_port_is_refused_with_the_way_out() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(RefusalError, match="DEMO_PORT="):
            command.refuse_taken_port(listener.getsockname()[1])


def test_no_engine_and_no_root_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "connect", lambda: None)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with pytest.raises(RefusalError, match="make check"):
        engine.ensure_engine()


def test_a_docker_host_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "connect", lambda: None)
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(RefusalError, match=r"192\.0\.2\.1.*unset DOCKER_HOST"):
        engine.ensure_engine()


def test_an_engine_that_dies_is_one_sentence_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "dockerd"
    program.write_text("#!/bin/sh\necho 'iptables: Permission denied' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(engine, "connect", lambda: None)
    monkeypatch.setattr(engine, "PID_FILES", {})
    monkeypatch.setattr(engine, "SYSTEMD", tmp_path / "no-systemd")
    monkeypatch.setattr(engine, "LOG", tmp_path / "log")
    with pytest.raises(RefusalError, match=r"iptables: Permission denied.*make check"):
        engine.ensure_engine()


def test_pid_files_of_the_dead_are_removed_and_of_the_living_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, living = tmp_path / "docker.pid", tmp_path / "containerd.pid"
    dead.write_text("4194305")
    living.write_text("self")
    monkeypatch.setattr(engine, "PID_FILES", {dead: "dockerd"})
    engine.remove_stale_pid_files()
    assert not dead.exists()
    pid = Path("/proc/self").resolve().name
    living.write_text(pid)
    monkeypatch.setattr(engine, "PID_FILES", {living: Path(f"/proc/{pid}/comm").read_text().strip()})
    engine.remove_stale_pid_files()
    assert living.exists()


def test_only_certificates_beyond_the_public_list_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public, own = PEM.format("cHVibGlj"), PEM.format("b3du")
    (tmp_path / "public.pem").write_text(public)
    (tmp_path / "machine.pem").write_text(f"{public}\n{own}\n")
    monkeypatch.setattr("certifi.where", lambda: str(tmp_path / "public.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "machine.pem"))
    assert images.machine_certificates() == [own]


def test_a_tag_follows_its_files_and_nothing_else() -> None:
    one = images.digest_of("base", {"Dockerfile": b"FROM x", "a": b"1"})
    assert one == images.digest_of("base", {"a": b"1", "Dockerfile": b"FROM x"})
    assert one != images.digest_of("base", {"Dockerfile": b"FROM x", "a": b"2"})
    assert one != images.digest_of("base", {"Dockerfile": b"FROM x", "b": b"1"})
    assert one != images.digest_of("other", {"Dockerfile": b"FROM x", "a": b"1"})


@pytest.mark.parametrize(("mode", "expected"), [("standin", False), ("real", True)])
def test_a_named_mode_asks_nobody(mode: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstreams, "answers", lambda url: pytest.fail(f"asked {url}"))
    assert set(upstreams.choose(mode).values()) == {expected}


def test_auto_takes_what_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(upstreams, "answers", lambda url: "//github.com/" in url)
    assert [name for name, real in upstreams.choose("auto").items() if real] == ["ComfyUI"]
    assert "stand-in" in capsys.readouterr().out


def test_an_unknown_mode_is_refused_with_the_choices() -> None:
    with pytest.raises(RefusalError, match="auto, standin, real"):
        upstreams.choose("sometimes")


def test_mitogen_knows_the_connection_of_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves others to Ansible without a word, and the budget of seconds would be another's."""
    monkeypatch.setattr(upstreams, "upstream_variables", lambda *_: {})
    variables = command.site_variables(None, "x", "standin")  # type: ignore[arg-type]
    assert variables["ansible_connection"] in strategy.REDIRECTED_CONNECTION_PLUGINS


def test_a_left_engine_volume_goes_with_its_sandbox() -> None:
    client = MagicMock()
    client.containers.get.side_effect = NotFound("none")
    assert not containers.remove(client, "x")
    client.volumes.get.assert_called_once_with(f"{containers.full_name('x')}-engine")
    client.volumes.get.return_value.remove.assert_called_once()
