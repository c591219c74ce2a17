"""A call of the watch with what it said, told and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabio
import h5py
import numpy as np
from scipy.ndimage import center_of_mass

from scatterflow.watch import Settings, Summary, watch
from tests.watched import NAMES, frame, load, write_bundle


class Watched:
    """A call of `watch` with what it said and told."""

    def __init__(self, tmp_path: Path) -> None:
        self.said: list[str] = []
        self.lines: list[str] = []
        self.bundle = write_bundle(tmp_path / "bundle", offset=0.0)
        self.output = tmp_path / "out"
        self.heard: Callable[[int], None] = lambda _: None  # called with the number of lines after each batch

    def tell(self, lines: str) -> None:
        self.lines += lines.splitlines()
        self.heard(len(self.lines))

    def __call__(self, source: Path | str, load: Callable[[Path], Any] = load, **settings: Any) -> Summary:
        settings = {"idle_s": 60.0, "gap_s": 0.3, "check": 1.0} | settings
        cut = settings.pop("cut", None)
        return watch(
            source, self.bundle, load, output=self.output, cut=cut, settings=Settings(**settings), tell=self.tell,
            say=self.said.append,
        )  # fmt: skip

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output / "frames.jsonl").read_text().splitlines()[1:]]

    def statuses(self) -> dict[str, tuple[str, str]]:
        return {each["frame"]: (each["status"], each["why"]) for each in self.records()}


def check_answers(records: list[dict[str, Any]], offset: float = 0.0) -> None:
    """Every answer is that of its own frame."""
    for each in records:
        expected = np.array(center_of_mass(frame(each["number"]))) + offset
        np.testing.assert_allclose([each["estimate"][name] for name in NAMES], expected, rtol=1e-6)
        assert all(each["sd"][name] > 0 for name in NAMES)


def save(path: Path, values: np.ndarray) -> None:
    """A file of the format that its ending says, renamed into its place when complete."""
    partial = path.with_name(f".{path.name}")
    if path.suffix == ".h5":
        with h5py.File(partial, "w") as file:
            file["entry/data/data"] = values
    else:
        kinds = {".tif": fabio.tifimage.TifImage, ".edf": fabio.edfimage.EdfImage, ".cbf": fabio.cbfimage.CbfImage}
        kinds[path.suffix](data=values).write(partial)
    partial.replace(path)
