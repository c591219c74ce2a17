"""Progress, and the options of the stage simulate."""

import io
import re

import pytest
from pydantic import ValidationError

from scatterflow import progress
from scatterflow.config.simulate import SimulateConfig


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (60, "1 min"), (185, "3 min 5 s"), (7800, "2 h 10 min"),
     (3600, "1 h"), (3599.7, "1 h"), (200000, "2 d 7 h")],
)  # fmt: skip
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (3.84e6, "3.84 MB"), (2e12, "2 TB")]
)
def test_sizes_are_for_people(number: float, text: str) -> None:
    assert progress.size(number) == text


def test_a_log_gets_few_plain_lines_with_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.track("simulate demo", 1000) as advance:
        for _ in range(1000):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1  # a thousand steps within one interval, then the last
    assert re.fullmatch(r"simulate demo: 1000 of 1000 \(100%\), 0\.\d s", lines[0])


def test_time_left_is_in_proportion_to_what_is_left() -> None:
    stream = io.StringIO()
    with progress._lines("x", 4, stream, interval_s=0.0) as advance:
        advance(1)
    assert re.fullmatch(r"x: 1 of 4 \(25%\), \d+\.\d s left\n", stream.getvalue())


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress._bar("simulate demo", 10, stream) as advance:
        advance(10)
    assert "10/10" in stream.getvalue()


def options(**values: object) -> dict[str, object]:
    return {"simulations": 240, "held_back": 20, "validation": 20, "shard_size": 40, **values}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shard_size": 50}, "shard_size=50 must divide simulations=240; use shard_size: 48 or shard_size: 60, or"),
        ({"chunk_size": 7}, "chunk_size=7 must divide shard_size=40; use chunk_size: 5 or chunk_size: 8"),
        ({"held_back": 220}, "held_back=220 [+] validation=20 must be less than simulations=240"),
        ({"workers": 0}, "greater than or equal to 1"),
        ({"shards": 4}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_a_remedy(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SimulateConfig.model_validate(options(**values))


def test_the_remedy_is_right() -> None:
    assert SimulateConfig.model_validate(options(shard_size=48, chunk_size=8)).shard_size == 48
    assert SimulateConfig.model_validate(options(simulations=200, shard_size=50)).simulations == 200
