"""The merge of daemon.json: what others wrote survives, what the unit says is respected, nothing is done twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon_json import (
    KINDS,
    DaemonJsonError,
    changed_paths,
    drift,
    environment_files,
    flag_keys,
    flag_value,
    ghost_runtime,
    leave_out,
    mask_credentials,
    merge,
    needs_restart,
    not_in_force,
    parse_config,
    plan,
    render,
    respect_log_driver,
    same,
    swarm_state_file,
    unit_argv,
    validation_argv,
    value_at,
    version_tuple,
    waiting_of_others,
    with_value,
    without,
)

DGX_ARGV = [
    "/usr/bin/dockerd",
    "-H",
    "fd://",
    "-s",
    "overlay2",
    "--default-shm-size=1G",
    "--bip=172.17.0.1/16",
    "--fixed-cidr=172.17.0.0/16",
]

DGX_UNIT = r"""# /lib/systemd/system/docker.service
[Unit]
Description=Docker Application Container Engine

[Service]
EnvironmentFile=-/etc/default/docker
ExecStart=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS
ExecReload=/bin/kill -s HUP $MAINPID

[Install]
WantedBy=multi-user.target

# /etc/systemd/system/docker.service.d/docker-override.conf
[Service]
ExecStart=
ExecStart=/usr/bin/dockerd -H fd:// -s overlay2 --default-shm-size=1G \
    --bip=172.17.0.1/16 --fixed-cidr=172.17.0.0/16
LimitMEMLOCK=infinity
"""

NAMES = st.sampled_from(
    ["live-restore", "log-driver", "log-opts", "features", "runtimes", "bip", "hosts", "default-shm-size", "x", "y"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


def of_right_kinds(config: dict[str, Any]) -> dict[str, Any]:
    """The same without what no dockerd starts with."""
    kinds = {key: kind for key, kind, _ in KINDS}
    return {key: value for key, value in config.items() if value is None or isinstance(value, kinds.get(key, object))}


CONFIGS = st.dictionaries(NAMES, VALUES, max_size=6).map(of_right_kinds)
TAKEN = st.sets(NAMES, max_size=4)


def holds(found: Any, wanted: Any) -> bool:
    """Whether `found` has everything of `wanted`."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(key in found and holds(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(found, list) and all(any(same(one, other) for other in found) for one in wanted)
    return same(found, wanted)


def foreign_survives(before: Any, after: Any, wanted: Any) -> bool:
    """Whether everything in `before` that `wanted` does not speak of is in `after` as it was."""
    if isinstance(before, dict) and isinstance(wanted, dict):
        return all(
            foreign_survives(before[key], after[key], wanted[key]) if key in wanted else same(before[key], after[key])
            for key in before
        )
    if isinstance(before, list) and isinstance(wanted, list):
        return same(before, after[: len(before)])
    return True


@given(CONFIGS, CONFIGS)
def test_what_others_wrote_survives_and_what_is_wanted_is_there(before: dict[str, Any], wanted: dict[str, Any]) -> None:
    after = merge(before, wanted)
    assert foreign_survives(before, after, wanted)
    assert holds(after, wanted)
    assert list(after)[: len(before)] == list(before)


@given(CONFIGS, CONFIGS)
def test_a_second_merge_changes_nothing(before: dict[str, Any], wanted: dict[str, Any]) -> None:
    after = merge(before, wanted)
    assert same(merge(after, wanted), after)


@given(CONFIGS, CONFIGS)
def test_changed_paths_are_empty_exactly_where_nothing_changed(before: dict[str, Any], wanted: dict[str, Any]) -> None:
    after = merge(before, wanted)
    assert (changed_paths(before, after) == []) == same(before, after)


@given(CONFIGS)
def test_the_written_text_reads_back_as_the_same_settings(config: dict[str, Any]) -> None:
    assert same(parse_config(render(config, "")), config)


@given(CONFIGS, TAKEN)
def test_a_flag_of_the_unit_is_never_repeated(wanted: dict[str, Any], taken: set[str]) -> None:
    kept, left = leave_out(wanted, taken)
    assert not set(kept) & taken
    assert {path.rpartition(".")[2] for path in left} <= taken
    assert holds(wanted, kept) or kept == {}


@given(CONFIGS, CONFIGS)
def test_a_second_plan_writes_nothing(before: dict[str, Any], wanted: dict[str, Any]) -> None:
    first = plan(json.dumps(before), wanted, DGX_ARGV)
    text = json.dumps(before) if first.text is None else first.text
    again = plan(text, wanted, DGX_ARGV)
    assert again.text is None
    assert again.changed_keys == []


@given(CONFIGS, NAMES, NAMES)
def test_only_what_is_to_go_goes(before: dict[str, Any], name: str, inner: str) -> None:
    after = without(before, f"{name}.{inner}")
    assert same(without(after, f"{name}.{inner}"), after)
    assert {key: value for key, value in before.items() if key != name} == {
        key: value for key, value in after.items() if key != name
    }
    if isinstance(before.get(name), dict):
        assert inner not in after.get(name, {})
    else:
        assert same(after, before)


@given(CONFIGS, CONFIGS, CONFIGS, st.lists(NAMES, max_size=4))
def test_what_the_host_had_counts_where_it_is_to_be_kept(
    before: dict[str, Any], original: dict[str, Any], wanted: dict[str, Any], names: list[str]
) -> None:
    planned = plan(json.dumps(before), wanted, [], keep=names, original=original)
    for name in names:
        if original.get(name) is not None and planned.wanted.get(name) is not None:
            assert holds(planned.config[name], original[name])
    again = plan(planned.text or json.dumps(before), wanted, [], keep=names, original=original)
    assert again.text is None


@given(CONFIGS, NAMES, NAMES, VALUES)
def test_a_value_is_found_where_it_was_put(config: dict[str, Any], name: str, inner: str, value: Any) -> None:
    after = with_value(config, f"{name}.{inner}", value)
    assert same(value_at(after, f"{name}.{inner}"), value)
    assert all(same(after[key], held) for key, held in config.items() if key != name)


def test_a_swarm_is_looked_for_where_the_engine_has_its_data() -> None:
    assert swarm_state_file({}, []) == "/var/lib/docker/swarm/docker-state.json"
    assert swarm_state_file({"data-root": "/raid"}, []) == "/raid/swarm/docker-state.json"
    assert swarm_state_file({}, ["dockerd", "--data-root=/raid"]) == "/raid/swarm/docker-state.json"


def test_what_others_have_waiting_is_told_from_ours() -> None:
    config = {"debug": True, "runtimes": {"nvidia": {"path": "x"}, "kata": {"path": "k"}}, "data-root": "/raid"}
    info = {"Debug": False, "Runtimes": {"runc": {}}}
    ours = {"runtimes": {"nvidia": {"path": "x"}}, "log-opts": {"max-size": "1m"}}
    assert waiting_of_others(config, ours, info, written_since_start=False) == ["debug", "runtimes.kata"]
    assert waiting_of_others(config, ours, info, written_since_start=True) == ["data-root", "debug", "runtimes.kata"]


def test_what_becomes_empty_stays_for_the_reload_to_see() -> None:
    config = {"runtimes": {"nvidia": {"path": "x"}}, "features": {"cdi": True, "buildkit": True}, "empty": {}}
    assert without(config, "runtimes.nvidia") == {**config, "runtimes": {}}
    assert without(config, "empty") == {key: value for key, value in config.items() if key != "empty"}
    assert without(config, "features.cdi")["features"] == {"buildkit": True}
    assert plan(json.dumps(config), {}, [], ["runtimes.nvidia"]).changed_keys == ["runtimes.nvidia"]
    assert plan(json.dumps(config), {}, [], ["runtimes.other"]).text is None


@pytest.mark.parametrize(
    ("config", "argv", "ghost"),
    [
        ({}, [], ""),
        ({"default-runtime": "runc"}, [], ""),
        ({"default-runtime": "io.containerd.kata.v2"}, [], ""),
        ({"default-runtime": "nvidia", "runtimes": {"nvidia": {}}}, [], ""),
        ({"default-runtime": "nvidia"}, ["dockerd", "--add-runtime=nvidia=/usr/bin/x"], ""),
        ({"default-runtime": "nvidia"}, ["dockerd", "--add-runtime", "nvidia=/usr/bin/x"], ""),
        ({"default-runtime": "nvidia", "runtimes": {"kata": {}}}, ["dockerd"], "nvidia"),
    ],
)
def test_a_default_runtime_that_nothing_defines_is_seen(config: dict[str, Any], argv: list[str], ghost: str) -> None:
    assert ghost_runtime(config, argv) == ghost


def test_lists_are_united_and_scalars_replaced() -> None:
    before = {"insecure-registries": ["a:5000", "b:5000"], "debug": False, "features": {"buildkit": True}}
    wanted = {"insecure-registries": ["b:5000", "c:5000"], "debug": True, "features": {"cdi": True}}
    assert merge(before, wanted) == {
        "insecure-registries": ["a:5000", "b:5000", "c:5000"],
        "debug": True,
        "features": {"buildkit": True, "cdi": True},
    }


def test_true_is_not_one() -> None:
    assert not same({"live-restore": 1}, {"live-restore": True})


@given(st.text(" \t\r\n"), CONFIGS)
def test_an_empty_file_is_as_one_without_settings(text: str, wanted: dict[str, Any]) -> None:
    assert parse_config(text) == {}
    planned, other = plan(text, wanted, DGX_ARGV), plan("{}", wanted, DGX_ARGV)
    assert same(planned.config, other.config)
    assert planned.changed_keys == other.changed_keys
    assert planned.text is None or same(parse_config(planned.text), planned.config)


@given(CONFIGS, st.data())
def test_a_file_that_ends_too_early_is_refused_with_the_line(config: dict[str, Any], data: st.DataObject) -> None:
    whole = json.dumps(config, indent=2)
    text = whole[: data.draw(st.integers(1, len(whole) - 1))]
    with pytest.raises(DaemonJsonError, match=r"line \d+ column \d+") as refused:
        plan(text, {"live-restore": True}, DGX_ARGV)
    line = int(str(refused.value).split()[1])
    assert 1 <= line <= text.count("\n") + 1


@given(CONFIGS, st.data())
def test_a_file_with_a_stray_word_is_refused_with_its_line(config: dict[str, Any], data: st.DataObject) -> None:
    lines = json.dumps(config, indent=2).splitlines()
    at = data.draw(st.integers(0, len(lines)))
    with pytest.raises(DaemonJsonError) as refused:
        plan("\n".join([*lines[:at], "oops", *lines[at:]]), {"live-restore": True}, DGX_ARGV)
    # A comma may be missing before it, which is seen at its own place.
    assert str(refused.value).startswith((f"line {at + 1} ", f"line {at + 2} "))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "a": 1,\n  oops\n}', "line 3 column 3"),
        ('{"a": 1', "line 1 column 8"),
        ("[]", "found a list, expected an object"),
        ('{"debug": true, "debug": false}', "'debug' is given twice"),
        ('{"mtu": NaN}', "NaN is not JSON"),
        ('{"features": ["cdi"]}', r'features is \["cdi"\], expected an object'),
        ('{"runtimes": "nvidia"}', 'runtimes is "nvidia", expected an object'),
        ('{"registry-mirrors": "https://m"}', 'registry-mirrors is "https://m", expected a list'),
    ],
)
def test_a_broken_file_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(DaemonJsonError, match=message):
        parse_config(text)


def test_the_indent_of_the_file_is_kept() -> None:
    assert render({"a": {"b": "ä&"}}, '{\n\t"a": 1\n}') == '{\n\t"a": {\n\t\t"b": "ä&"\n\t}\n}\n'
    assert render({"a": 1}, '{"a": 2}') == '{\n    "a": 1\n}\n'


def test_a_drop_in_replaces_the_command() -> None:
    assert unit_argv(DGX_UNIT, {}) == DGX_ARGV


def test_a_host_without_the_unit_has_no_flags() -> None:
    assert unit_argv("", {}) == []
    assert flag_keys([]) == set()


def test_an_empty_assignment_forgets_and_other_sections_do_not_count() -> None:
    assert unit_argv(DGX_UNIT + "[Service]\nExecStart=\n", {}) == []
    assert unit_argv("[Other]\nExecStart=/usr/bin/dockerd --debug\n", {}) == []


def test_a_comment_in_an_environment_file_may_hold_anything() -> None:
    unit = "[Service]\nEnvironmentFile=/e\nExecStart=/usr/bin/dockerd $OPTS\n"
    assert unit_argv(unit, {"/e": "# OPTS=don't\nOPTS=--ipv6\n"}) == ["/usr/bin/dockerd", "--ipv6"]


def test_the_environment_file_of_debian_counts() -> None:
    unit = DGX_UNIT.partition("# /etc/systemd")[0]
    assert environment_files(unit) == ["/etc/default/docker"]
    argv = unit_argv(unit, {"/etc/default/docker": '# old habit\nDOCKER_OPTS="--dns 192.0.2.1 --mtu=1400"\n'})
    assert argv[-3:] == ["--dns", "192.0.2.1", "--mtu=1400"]
    assert flag_keys(argv) == {"hosts", "containerd", "dns", "mtu"}


def test_variables_inside_words_are_replaced() -> None:
    unit = "[Service]\nEnvironment=ROOT=/raid\nExecStart=-/usr/bin/dockerd --data-root=${ROOT}/docker $NONE\n"
    assert unit_argv(unit, {}) == ["/usr/bin/dockerd", "--data-root=/raid/docker"]


def test_the_flags_of_dgx_os_become_keys() -> None:
    assert flag_keys(DGX_ARGV) == {"hosts", "storage-driver", "default-shm-size", "bip", "fixed-cidr"}


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["--label=a=b", "--dns-opt", "x"], {"labels", "dns-opts"}),
        (["-soverlay2", "-DH", "fd://"], {"storage-driver", "debug", "hosts"}),
        (["-l=debug", "-b", "br0"], {"log-level", "bridge"}),
        (["--log-opt", "max-size=1m", "--registry-mirror=https://m.example.com"], {"log-opts", "registry-mirrors"}),
        (["--add-runtime", "a=/bin/a"], set()),
    ],
)
def test_flags_are_read_in_every_spelling(words: list[str], keys: set[str]) -> None:
    assert flag_keys(["/usr/bin/dockerd", *words]) == keys


def test_a_flag_inside_an_object_is_left_out_alone() -> None:
    wanted = {"proxies": {"http-proxy": "http://p.example.com", "no-proxy": "localhost"}, "features": {"debug": True}}
    assert leave_out(wanted, {"http-proxy", "debug"}) == (
        {"proxies": {"no-proxy": "localhost"}, "features": {"debug": True}},
        ["proxies.http-proxy"],
    )
    assert leave_out({"proxies": {"http-proxy": "http://p.example.com"}}, {"http-proxy"}) == (
        {},
        ["proxies.http-proxy"],
    )


def test_on_dgx_os_nothing_is_written_that_stops_dockerd() -> None:
    wanted = {"default-shm-size": "1G", "storage-driver": "overlay2", "live-restore": True}
    planned = plan('{"default-cgroupns-mode": "host"}', wanted, DGX_ARGV)
    assert planned.config == {"default-cgroupns-mode": "host", "live-restore": True}
    assert planned.left_out == ["default-shm-size", "storage-driver"]
    assert planned.changed_keys == ["live-restore"]


OURS = {
    "live-restore": True,
    "log-driver": "json-file",
    "log-opts": {"max-file": "3", "max-size": "10m"},
    "features": {"cdi": True},
}
LOG_OPTS = ["log-opts.max-file", "log-opts.max-size"]


@pytest.mark.parametrize(
    ("flags", "gone"),
    [
        (["--live-restore"], ["live-restore"]),
        (["--log-opt", "max-size=1m"], LOG_OPTS),
        (["--feature", "cdi=true"], ["features.cdi"]),
        # The options of one driver stop dockerd under another, and --validate does not see it.
        (["--log-driver=journald"], ["log-driver", *LOG_OPTS]),
        (["--log-driver=json-file"], ["log-driver"]),
        (["--debug"], []),
    ],
)
def test_what_a_flag_passes_by_now_is_taken_back(flags: list[str], gone: list[str]) -> None:
    first = plan('{"default-cgroupns-mode": "host"}', OURS, DGX_ARGV)
    planned = plan(first.text or "", OURS, [*DGX_ARGV, *flags], original={"default-cgroupns-mode": "host"})
    assert planned.changed_keys == gone
    assert set(planned.config) == set(first.config) - {name.partition(".")[0] for name in gone}
    again = plan(planned.text or first.text or "", OURS, [*DGX_ARGV, *flags], original={})
    assert again.text is None


def test_what_was_there_before_us_is_not_taken_back() -> None:
    text = json.dumps(OURS)
    argv = ["dockerd", "--live-restore", "--log-opt", "max-size=1m"]
    assert plan(text, OURS, argv, original=OURS).text is None
    assert plan(text, OURS, argv).text is None  # nobody knows yet what was
    planned = plan(text, OURS, argv, original={"log-opts": {"max-size": "10m"}})
    assert planned.changed_keys == ["live-restore", "log-opts.max-file"]
    assert planned.config["log-opts"] == {"max-size": "10m"}


def test_a_log_driver_that_somebody_chose_since_stays_and_the_options_of_ours_go() -> None:
    planned = plan(json.dumps({**OURS, "log-driver": "journald"}), OURS, [], original={})
    assert planned.changed_keys == LOG_OPTS
    assert planned.config["log-driver"] == "journald"


def test_a_log_driver_that_is_no_name_is_not_respected() -> None:
    text = plan('{"log-driver": {"y": 2}}', {"log-driver": {"x": 1}}, [], original={"log-driver": {"y": 2}}).text or ""
    assert plan(text, {"log-driver": {"x": 1}}, [], original={}).text is None


def test_a_host_that_joined_a_swarm_loses_the_live_restore_of_ours() -> None:
    assert plan(json.dumps(OURS), OURS, [], original={}, swarm=True).changed_keys == ["live-restore"]


@pytest.mark.parametrize(
    ("text", "argv"), [('{"log-driver": "journald"}', []), ("{}", ["dockerd", "--log-driver=journald"])]
)
def test_another_log_driver_is_respected_with_its_options(text: str, argv: list[str]) -> None:
    planned = plan(text, {"log-driver": "json-file", "log-opts": {"max-size": "10m"}, "debug": True}, argv)
    assert planned.left_out == ["log-driver", "log-opts"]
    assert planned.changed_keys == ["debug"]


def test_the_same_log_driver_gets_its_options() -> None:
    wanted = {"log-driver": "json-file", "log-opts": {"max-size": "10m"}}
    assert respect_log_driver(wanted, "json-file") == (wanted, [])
    planned = plan("", wanted, ["dockerd", "--log-driver", "json-file"])
    assert planned.changed_keys == ["log-opts.max-size"]
    assert planned.left_out == ["log-driver"]


def test_flag_value_reads_both_spellings() -> None:
    assert flag_value(["dockerd", "--config-file=/a"], "config-file") == "/a"
    assert flag_value(["dockerd", "--config-file", "/b"], "config-file") == "/b"
    assert flag_value(DGX_ARGV, "config-file") == ""


def test_validation_uses_the_units_flags_and_the_candidate() -> None:
    argv = ["/usr/sbin/dockerd", "--config-file", "/old", "-H", "fd://", "--config-file=/older"]
    assert validation_argv(argv, "/new") == ["/usr/sbin/dockerd", "--validate", "--config-file=/new", "-H", "fd://"]
    assert validation_argv([], "/new") == ["dockerd", "--validate", "--config-file=/new"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("live-restore", False),
        ("runtimes.nvidia.path", False),
        ("features.buildkit", False),
        ("features.cdi", True),
        ("log-opts.max-size", True),
        ("data-root", True),
    ],
)
def test_needs_restart(path: str, expected: bool) -> None:
    assert needs_restart(path) is expected


def test_what_the_engine_does_not_show_yet_is_named() -> None:
    info = {
        "LiveRestoreEnabled": False,
        "LoggingDriver": "json-file",
        "DefaultRuntime": "runc",
        "Debug": False,
        "Runtimes": {"runc": {"path": "runc"}, "nvidia": {"path": "/old"}},
        "CDISpecDirs": [],
        "RegistryConfig": {"Mirrors": ["https://m.example.com/"]},
    }
    config = {
        "live-restore": True,
        "log-driver": "json-file",
        "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}, "other": {"path": "x"}},
        "features": {"cdi": True},
        "registry-mirrors": ["https://m.example.com"],
        "default-cgroupns-mode": "host",
    }
    assert not_in_force(config, info) == ["features.cdi", "live-restore", "runtimes.nvidia", "runtimes.other"]


def test_an_engine_that_has_taken_everything_up_differs_in_nothing() -> None:
    info = {"LiveRestoreEnabled": True, "LoggingDriver": "local", "CDISpecDirs": ["/etc/cdi"], "Runtimes": {}}
    assert not_in_force({"live-restore": True, "log-driver": "local", "features": {"cdi": True}}, info) == []
    assert not_in_force({"features": {"cdi": True}}, {"LiveRestoreEnabled": True}) == []


def test_a_mirror_that_is_missing_is_named() -> None:
    assert not_in_force({"registry-mirrors": ["https://m.example.com"]}, {}) == ["registry-mirrors"]


def test_the_table_has_what_was_found_without_its_secrets() -> None:
    before = {
        "proxies": {"http-proxy": "http://user:pw-1@p@proxy.example.com:3128"},
        "log-opts": {"splunk-token": "pw-2", "max-size": "1m"},
        "debug": True,
        "runtimes": {"x": {"options": {"Password": "pw-3"}}},
    }
    wanted = {
        "proxies": {"http-proxy": "http://other:pw-4@proxy.example.com:3128"},
        "log-opts": {"splunk-token": "pw-5", "max-size": "10m"},
        "live-restore": True,
    }
    rows = drift("/f", before, plan(json.dumps(before), wanted, [], ["debug", "runtimes.x"]))
    assert {row["resource"].removeprefix("/f: "): (row["expected"], row["found"]) for row in rows} == {
        "proxies.http-proxy": ('"http://***@proxy.example.com:3128"', '"http://***@proxy.example.com:3128"'),
        "log-opts.splunk-token": ('"***"', '"***"'),
        "log-opts.max-size": ('"10m"', '"1m"'),
        "live-restore": ("true", "absent"),
        "debug": ("absent", "true"),
        "runtimes.x": ("absent", '{"options": {"Password": "***"}}'),
    }


def test_passwords_do_not_reach_a_diff() -> None:
    text = '{"proxies": {"http-proxy": "http://user:secret@proxy.example.com:3128"}}'
    assert mask_credentials(text) == '{"proxies": {"http-proxy": "http://***@proxy.example.com:3128"}}'
    assert mask_credentials("['http://here','x@y']") == "['http://here','x@y']"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Docker version 26.1.5+dfsg1, build 411e817", (26, 1, 5)),
        ("Docker version 20.10.24+dfsg1", (20, 10, 24)),
        ("none", ()),
    ],
)
def test_version_tuple(text: str, numbers: tuple[int, ...]) -> None:
    assert version_tuple(text) == numbers
