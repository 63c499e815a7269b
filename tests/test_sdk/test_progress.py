from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
from pathlib import Path
from typing import Callable, List, Tuple

import pytest

from tests.test_sdk.conftest import MIB, FakeClock
from vision_o3.content.dag import cid_of_bytes
from vision_o3.sdk.progress import ProgressLine, in_time, in_units
from vision_o3.sdk.verifier import CIDVerifier

CLEAR = "\r\x1b[K"


class Terminal(io.StringIO):
    def __init__(self, *, shows: bool) -> None:
        super().__init__()
        self._shows = shows

    def isatty(self) -> bool:
        return self._shows

    def drawn(self) -> List[str]:
        return [line for line in re.split(r"\x1b\[K|\r", self.getvalue()) if line]


Make = Callable[..., Tuple[Terminal, ProgressLine]]


@pytest.fixture
def make(clock: FakeClock) -> Make:
    def make_line(
        *, shows: bool = True, label: str = ""
    ) -> Tuple[Terminal, ProgressLine]:
        terminal = Terminal(shows=shows)
        return terminal, ProgressLine(terminal, label, clock.monotonic)

    return make_line


def test_line_has_bar_rate_and_time_left_and_goes_away(
    make: Make, clock: FakeClock
) -> None:
    terminal, line = make()
    line(MIB, 8 * MIB)
    clock.now += 1
    line(2 * MIB, 8 * MIB)
    bar, _, told = terminal.drawn()[-1][1:].partition("]")
    assert told == "  25 %  2.0 MiB of 8.0 MiB  1.0 MiB/s  6 s left"
    assert bar == "#" * (len(bar) // 4) + "." * (len(bar) - len(bar) // 4)
    line(8 * MIB, 8 * MIB)
    assert terminal.getvalue().endswith(CLEAR)
    assert "\n" not in terminal.getvalue()


def test_line_is_redrawn_ten_times_a_second_at_most(
    make: Make, clock: FakeClock
) -> None:
    terminal, line = make()
    for done in range(100):
        line(done, 100)
        clock.now += 0.01
    assert 9 <= len(terminal.drawn()) <= 10


def test_rate_is_that_of_the_last_seconds(make: Make, clock: FakeClock) -> None:
    terminal, line = make()
    for second in range(20):
        line(second * MIB if second < 10 else 10 * MIB + second, 100 * MIB)
        clock.now += 1
    assert " 1 B/s " in terminal.drawn()[-1]


def test_another_transfer_starts_with_a_rate_of_its_own(
    make: Make, clock: FakeClock
) -> None:
    terminal, line = make()
    line(50 * MIB, 100 * MIB)
    clock.now += 1
    line(60 * MIB, 100 * MIB)
    clock.now += 1
    line(0, 10 * MIB)
    assert "/s" not in terminal.drawn()[-1]
    clock.now += 1
    line(MIB, 10 * MIB)
    assert " 1.0 MiB/s  9 s left" in terminal.drawn()[-1]


def test_nothing_is_said_where_there_is_no_terminal(make: Make) -> None:
    terminal, line = make(shows=False)
    for done in (0, 50, 100):
        line(done, 100)
    line.clear()
    assert terminal.getvalue() == ""


def test_clearing_removes_what_is_drawn_and_nothing_else(make: Make) -> None:
    terminal, line = make(label="hashing")
    line.clear()
    assert terminal.getvalue() == ""
    line(1, 100)
    assert "hashing [" in terminal.getvalue()
    line.clear()
    assert terminal.getvalue().endswith(CLEAR)


@pytest.mark.parametrize("columns", [1, 5, 20, 40, 60, 80, 200])
def test_line_fits_the_terminal(clock: FakeClock, columns: int) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(follower, "w") as terminal:
        line = ProgressLine(terminal, "", clock.monotonic)
        line(400 * MIB, 1000 * MIB)
        clock.now += 1
        line(444 * MIB, 1000 * MIB)
        seen = ""
        while seen.count("\x1b[K") < 2:  # it comes in pieces
            seen += os.read(leader, 4096).decode()
    os.close(leader)
    drawn = seen.split("\x1b[K")[1].lstrip("\r")
    whole = " 44 %  444.0 MiB of 1000.0 MiB  44.0 MiB/s  13 s left"
    assert len(drawn) < columns
    assert (whole in drawn) == (len(whole) < columns)
    assert ("[#" in drawn) == (columns >= 80)


def test_hashing_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * MIB + 5))
    told: List[Tuple[int, ...]] = []
    cid = CIDVerifier.compute_cid(path, lambda *each: told.append(each))
    assert cid == str(cid_of_bytes(path.read_bytes()))
    assert told[0] == (MIB, 2 * MIB + 5)
    assert told[-1] == (2 * MIB + 5, 2 * MIB + 5)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 40, "3072.0 GiB"),
    ],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert in_units(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (65, "1:05"), (7200, "2:00:00")],
)
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert in_time(seconds) == text
