"""Errors: one line that says what, must, got and remedy, also after a trip to another process."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scatterflow import errors
from scatterflow.errors import FrameError, ScatterflowError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ScatterflowError)]


def test_parts_stand_in_order() -> None:
    error = ScatterflowError("batch_size", "must divide shard_size=50", 240, "use 200 or 250")
    assert str(error) == "batch_size must divide shard_size=50, got 240; use 200 or 250"


def test_parts_may_be_left_out() -> None:
    assert str(ScatterflowError("the disk is full")) == "the disk is full"
    assert str(ScatterflowError("file", "must exist", remedy="check the path")) == "file must exist; check the path"


@pytest.mark.parametrize("got", [0, "", False, []])
def test_what_was_found_is_told_even_if_it_is_nothing(got: object) -> None:
    assert f"got {got}".strip() in str(ScatterflowError("x", "must be positive", got))


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.tuples(st.text(), st.text(), st.text(), st.text()))
def test_always_one_line(kind: type[ScatterflowError], parts: tuple[str, str, str, str]) -> None:
    assert len(str(kind(*parts)).splitlines()) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_survives_the_trip_from_a_worker_process(kind: type[ScatterflowError]) -> None:
    error = kind("row 3", "must be finite", "nan", "check thickness_nm")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_frame_errors_carry_the_status_of_the_frame() -> None:
    assert FrameError("frame a.cbf", "must be whole").status == "unreadable"
    wrong = FrameError("frame a.cbf", "must fit", status="wrong-instrument")
    assert pickle.loads(pickle.dumps(wrong)).status == "wrong-instrument"
