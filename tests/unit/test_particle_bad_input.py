"""What users of kind particles get wrong: one line that names it, before anything is computed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from scatterflow import sizes
from scatterflow.errors import ScatterflowError
from scatterflow.forward.dwba import tables
from scatterflow.instrument import horizon_px
from tests import small_particles as made

ALL = [{"z": [474, 858], "y": [392, 1192]}]


@pytest.mark.parametrize(
    ("changes", "must"),
    [
        ({"beam_z_px": 5000.0}, r"the horizon, row 5104\.\d, must lie on the detector of 1679 rows; check beam_z_px"),
        ({"beam_z_px": -900.0}, r"the horizon, row -795\.\d, must lie on the detector"),
        ({"views": {"image": made.VIEW | {"rows": [[300, 684]]}}}, "must lie above the horizon, row 471"),
        ({"masked": ALL}, "masked must leave bins of instrument.views.image with 50% valid pixels, got none"),
    ],
)
def test_absurd_geometry_and_empty_masks_are_refused(changes: dict[str, Any], must: str) -> None:
    with pytest.raises(ValidationError, match=must):
        made.study(instrument=changes)


def test_the_horizon_that_is_named_is_the_instruments() -> None:
    config = made.study().config.instrument
    with pytest.raises(ValidationError) as caught:
        made.study(instrument={"beam_z_px": 5000.0})
    row = horizon_px(config.model_copy(update={"beam_z_px": 5000.0}))
    assert f"row {row:.1f}," in str(caught.value)


@pytest.mark.parametrize("name", ["wavelength_nm", "incidence_deg", "distance_mm", "pixel_mm", "beam", "beam_z_px"])
def test_geometry_has_no_defaults(name: str) -> None:
    instrument = {key: value for key, value in made.INSTRUMENT.items() if key != name}
    with pytest.raises(ValidationError, match=f"must give {name}: the geometry of kind particles has no defaults"):
        type(made.study().config).model_validate(made.STUDY | {"instrument": instrument})


def test_sizes_beyond_the_grid_and_beyond_the_table_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCATTERFLOW_CACHE", str(tmp_path))
    study, other = made.study(), made.study(sample={"sizes": 20, "radius_nm": [0.5, 10.0]})
    theta = study.prior.sample(2).values
    beyond = theta.copy()
    beyond[:, study.prior.names.index("mode1.radius_nm")] = 9.0  # the grid ends at 6.5 nm
    arranged = sizes.arrangement(other.config.sample, theta)
    stack = sizes.stack(study.config.sample, theta, study.energy_kev)
    for wrong in (lambda: study.expected(beyond), lambda: tables.expected_counts(study.table, arranged, stack)):
        with pytest.raises(ScatterflowError) as caught:
            wrong()
        assert "\n" not in str(caught.value)
        assert "must" in str(caught.value)


def test_a_table_that_is_not_the_studys_is_made_anew_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scatterflow.particles import _table

    monkeypatch.setenv("SCATTERFLOW_CACHE", str(tmp_path))
    far = made.study(instrument={"distance_mm": 2500})
    for study in (made.study(), far):
        _table.cache_clear()
        assert study.table.squares.size
    assert capsys.readouterr().err == ""  # what is made for the first time needs no word
    here, there = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    right = there.read_bytes()
    for content, why in (
        (here.read_bytes(), "must be of this instrument"),
        (right[:-9], "must be a table of form factors"),
    ):
        there.write_bytes(content)
        _table.cache_clear()
        table = far.table
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert told.startswith(f"table {there} {why}, got ")
        assert told.endswith("; it is made anew\n")
        _table.cache_clear()
        np.testing.assert_array_equal(far.table.squares, table.squares)  # from the file
        assert capsys.readouterr().err == ""
