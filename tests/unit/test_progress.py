"""What a module reports and how it becomes a line; the promise of a line every ten seconds with a clock of our own."""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progress import (
    ENVIRONMENT,
    LOG_INTERVAL_S,
    RATE_WINDOW_S,
    TEXT_CHARS,
    Meter,
    Reporter,
    State,
    amount,
    duration,
    interval_s,
    line,
    narrate,
    parse,
    printable,
    transferred,
)

GB = 10**9
SIZES = st.integers(0, 10**18)


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


# What a module writes.


def test_a_reporter_keeps_one_small_file_for_root_alone_and_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "p.json"
    with Reporter(str(path)) as report:
        report("reading", done_b=1, total_b=2)
        assert parse(path.read_text()) == State("reading", 1, 2)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        report(step=3, steps=9)
        assert parse(path.read_text()) == State("", None, None, 3, 9)
        assert os.listdir(path.parent) == ["p.json"]
    assert os.listdir(path.parent) == []


def test_a_reporter_removes_its_file_when_the_module_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with Reporter(str(tmp_path / "p.json")) as report:
            report("x")
            raise SystemExit(1)

    with pytest.raises(SystemExit):
        fail()
    assert os.listdir(tmp_path) == []


def test_bytes_are_written_twice_a_second_and_another_stage_at_once(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "p.json"
    report = Reporter(str(path), clock)
    for done_b in range(100):
        report(done_b=done_b, total_b=1000)
    assert json.loads(path.read_text())["done_b"] == 0
    clock.now_s += 0.5
    report(done_b=100, total_b=1000)
    report(done_b=101, total_b=1000)
    assert json.loads(path.read_text())["done_b"] == 100
    report("writing it to the disk")
    assert json.loads(path.read_text())["text"] == "writing it to the disk"


def test_no_file_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Reporter(str(tmp_path / "file" / "p.json")) as report:
        report("x")
        report("y")
    with Reporter("") as report:
        report("x")


def test_the_reporter_of_a_module_has_its_file_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "p.json"))
    with Reporter.from_environment() as report:
        report("x")
        assert (tmp_path / "p.json").exists()
    monkeypatch.delenv(ENVIRONMENT)
    Reporter.from_environment()("x")
    assert os.listdir(tmp_path) == []


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "p.json.new").symlink_to("target")
    Reporter(str(tmp_path / "p.json"))("x")
    assert (tmp_path / "target").read_text() == "precious"


# What the control node makes of it.


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", "{}", '{"text": 1}', '{"text": "", "done_b": -1}', '{"text": "", "step": true}', "\0"],
)
def test_a_file_that_is_not_one_says_nothing(content: str) -> None:
    assert parse(content) is None


@given(content=st.text(max_size=60))
def test_no_content_is_more_than_nothing_or_a_state(content: str) -> None:
    assert isinstance(parse(content), State | None)


@given(text=st.text(max_size=200))
def test_what_is_printed_is_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= TEXT_CHARS
    assert len(printable("x" * 50 + text + "x" * 50)) <= TEXT_CHARS


def test_an_escape_sequence_from_a_host_does_not_reach_the_terminal() -> None:
    state = parse(json.dumps({"text": "a\x1b[2Jb\r\nc"}))
    assert state is not None
    assert state.text == "a [2Jb c"


@pytest.mark.parametrize(
    ("size_b", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.0 kB"),
        (1000, "1.0 kB"),
        (9_949, "9.9 kB"),
        (9_950, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (310_000_000, "310 MB"),
        (6_938_078_334, "6.9 GB"),
        (2 * 10**18, "2000 PB"),
    ],
)
def test_amounts_are_decimal_and_short(size_b: float, text: str) -> None:
    assert amount(size_b) == text


@given(size_b=st.floats(0, 9e17))
def test_an_amount_is_right_to_five_percent_and_never_has_four_digits(size_b: float) -> None:
    match = re.fullmatch(r"(\d{1,3}(?:\.\d)?) (B|kB|MB|GB|TB|PB)", amount(size_b))
    assert match
    shown_b = float(match[1]) * 1000 ** ["B", "kB", "MB", "GB", "TB", "PB"].index(match[2])
    assert shown_b == pytest.approx(size_b, rel=0.051, abs=0.5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (312, "5 min 12 s"),
        (7199, "119 min 59 s"),
        (7800, "2 h 10 min"),
        (400_000, "111 h 6 min"),
    ],
)
def test_durations_are_easily_read(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_transfer_tells_percent_bytes_rate_and_time_left() -> None:
    assert transferred(2_914_000_000, 6_938_078_334, 310e6) == "42 %  2.9 of 6.9 GB  310 MB/s  13 s left"


def test_percent_are_rounded_down() -> None:
    assert transferred(999, 1000, None) == "99 %  1.0 of 1.0 kB"


def test_a_stalled_transfer_promises_no_end() -> None:
    assert transferred(5, 10, 0.0) == "50 %  5 of 10 B  0 B/s"


def test_a_transfer_of_unknown_size_has_no_percent() -> None:
    assert transferred(3 * GB, None, 2e6) == "3.0 GB  2.0 MB/s"
    assert transferred(0, 0, None) == "0 B"


@given(done_b=SIZES, total_b=st.none() | SIZES, rate_b_s=st.none() | st.floats(0, 1e12))
def test_a_hundred_percent_is_said_when_it_is_and_never_more(
    done_b: int, total_b: int | None, rate_b_s: float | None
) -> None:
    text = transferred(done_b, total_b, rate_b_s)
    match = re.match(r"(\d+) %", text)
    assert bool(match) == bool(total_b)
    if match and total_b:
        assert int(match[1]) <= 100
        assert (int(match[1]) == 100) == (done_b >= total_b)
        assert done_b < total_b or "left" not in text


@given(
    steps=st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, GB)), max_size=40),
    total_b=st.integers(1, 10**12),
)
def test_the_rate_lies_between_the_slowest_and_the_fastest_moment(steps: list[tuple[float, int]], total_b: int) -> None:
    meter, now_s, done_b, rates = Meter(), 0.0, 0, []
    meter.add(now_s, State("", done_b, total_b))
    for pause_s, more_b in steps:
        now_s, done_b = now_s + pause_s, done_b + more_b
        rates.append(more_b / pause_s)
        meter.add(now_s, State("", done_b, total_b))
    rate_b_s = meter.rate_b_s()
    if rate_b_s is None:
        assert now_s < 1.01
    else:
        assert min(rates) * 0.999 - 1 <= rate_b_s <= max(rates) * 1.001 + 1


def test_the_rate_is_that_of_the_last_seconds() -> None:
    meter = Meter()
    for second in range(60):
        meter.add(second, State("", second * 100 if second < 30 else 3000 + (second - 30) * 10, 10**6))
    assert meter.rate_b_s() == pytest.approx(10)


def test_a_stall_brings_the_rate_to_nothing_within_the_window() -> None:
    meter = Meter()
    for second in range(10):
        meter.add(second, State("", second * 100, 10**6))
    for second in range(10, 10 + int(RATE_WINDOW_S) + 1):
        meter.add(second, State("", 900, 10**6))
    assert meter.rate_b_s() == 0


def test_bytes_that_were_thrown_away_and_another_stage_begin_anew() -> None:
    meter = Meter()
    meter.add(0, State("", 5000, 10**6))
    meter.add(5, State("", 10, 10**6))
    assert meter.rate_b_s() is None
    meter.add(7, State("", 30, 10**6))
    assert meter.rate_b_s() == 10
    meter.add(9, State("reading", 40, 10**6))
    assert meter.rate_b_s() is None


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (None, "t: 63 s"),
        (State(), "t: 63 s"),
        (State("its API does not answer yet"), "t: 63 s: its API does not answer yet"),
        (State("", 5, 10), "t: 50 %  5 of 10 B"),
        (State("proving", 5, 10), "t: proving: 50 %  5 of 10 B"),
        (State("RUN pip install", None, None, 4, 9), "t: step 4/9, 63 s: RUN pip install"),
        (State("FROM base", 3 * GB, None, 1, 9), "t: step 1/9, 63 s: FROM base: 3.0 GB"),
        (State("", None, None, 4), "t: step 4/?, 63 s"),
    ],
)
def test_lines(state: State | None, text: str) -> None:
    assert line("t", 63.2, state, None) == text


# When a line comes.


def narrated(length_s: float, *, terminal: bool, printing_s: float = 0.0) -> list[float]:
    """When lines come while a task of this length runs; each takes some time to be printed."""
    clock, said = Clock(), []
    begin_s = clock.now_s

    def wait(pause_s: float) -> bool:
        clock.now_s += pause_s
        return clock.now_s - begin_s >= length_s

    def say(elapsed_s: float) -> None:
        said.append(elapsed_s)
        clock.now_s += printing_s

    narrate(say, wait, clock, terminal=terminal)
    return said


@given(length_s=st.floats(0, 7200), printing_s=st.floats(0, 0.5))
def test_a_log_has_a_line_every_ten_seconds_and_none_for_a_short_task(length_s: float, printing_s: float) -> None:
    said = narrated(length_s, terminal=False, printing_s=printing_s)
    moments = [0.0, *said, length_s]
    assert all(later - earlier <= 10 + 1e-6 for earlier, later in itertools.pairwise(moments))
    assert length_s > LOG_INTERVAL_S or not said


def test_a_terminal_sees_something_soon_and_is_not_flooded() -> None:
    said = narrated(600, terminal=True)
    assert said[0] == 2
    assert len(said) < 90
    assert interval_s(600, terminal=True) == LOG_INTERVAL_S
