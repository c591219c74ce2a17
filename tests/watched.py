"""What tests of the watch share: frames with a known answer, a small real estimator, and a SWMR writer process.

python -m tests.watched FILE JSON: write frames into FILE as the JSON says, see `main`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from scatterflow.errors import BundleError
from scatterflow.watching.checking import Check

ROOT = Path(__file__).parents[1]
SHAPE = (16, 12)
NAMES = ("z_px", "y_px")
DATASET = "/entry/data/data"
WIDE = 6.0  # [pixel^2] of a frame of no spot; the spots have 4


def frame(index: int, dtype: str = "uint16") -> NDArray[Any]:
    """Counts (z, y) of a spot whose place says which frame it is."""
    z, y = np.mgrid[: SHAPE[0], : SHAPE[1]]
    spot = np.exp(-((z - 4 - index % 89 / 12) ** 2 + (y - 4 - index % 53 / 14) ** 2) / 4)
    return np.round(2000 * spot).astype(dtype)


class Centroid:
    """Centre of mass of the counts and its error from counting noise; `offset` is what a bundle may change.

    It describes frames of one spot: the deviance is how much wider than a spot of `frame` they are.
    """

    names = NAMES
    shape = SHAPE

    def __init__(self, offset: float = 0.0, sleep_s: float = 0.0, checks: bool = True) -> None:
        self.offset, self.sleep_s = offset, sleep_s
        self.check = Check(WIDE, self.width) if checks else None

    def predict(self, frames: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        time.sleep(self.sleep_s)
        counts = frames.astype(np.float64)
        places = np.stack(np.mgrid[: SHAPE[0], : SHAPE[1]]).astype(np.float64)
        total = counts.sum((1, 2))[:, None]
        centre = np.einsum("nzy,pzy->np", counts, places) / total
        return centre + self.offset, np.sqrt(self.squares(counts, centre)) / total

    @staticmethod
    def squares(counts: NDArray[Any], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squares of the distances from `values` (frame, parameter), summed over the counts."""
        places = np.stack(np.mgrid[: SHAPE[0], : SHAPE[1]]).astype(np.float64)
        found: NDArray[np.float64] = np.einsum("nzy,npzy->np", counts, (places - values[:, :, None, None]) ** 2)
        return found

    def width(self, counts: NDArray[Any], values: NDArray[np.float64], valid: Any) -> NDArray[np.float64]:
        """Variance of the counts (frame,) [pixel^2]."""
        del valid  # all are
        found: NDArray[np.float64] = self.squares(counts, values - self.offset).sum(1) / counts.sum((1, 2))
        return found


def write_bundle(folder: Path, **content: float) -> Path:
    """A bundle of Centroid, complete at once."""
    folder.mkdir(exist_ok=True)
    partial = folder / "bundle.json.partial"
    partial.write_text(json.dumps(content))
    partial.replace(folder / "bundle.json")
    return folder


def load(folder: Path) -> Centroid:
    """Read such a bundle."""
    try:
        return Centroid(**json.loads((folder / "bundle.json").read_text()))
    except (ValueError, TypeError) as error:
        raise BundleError(f"bundle {folder}", "must describe a centroid", error) from None


def writer(path: Path, events: Sequence[int | str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that writes frames into a file in SWMR mode, see `main`; when the file is there, it has begun."""
    command = [sys.executable, "-m", "tests.watched", str(path), json.dumps({"events": list(events), **options})]
    process = subprocess.Popen(command, cwd=ROOT)
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)
    return process


def main(
    path: str, events: Sequence[int | str], size: int = 0, chunk: int = 1, rate: float = 1000.0, swmr: bool = True
) -> None:
    """Do one event after the other: a number writes that frame, "wait X" sleeps X s, "until X" sleeps until the file X is
    there, "kill" ends the process at once.

    The dataset begins with `size` frames and grows when one behind its end is written; `chunk` frames are a chunk.
    Without `swmr` nobody else can read the file.
    """
    with h5py.File(path, "w", libver="latest") as file:
        shape, most, chunks = (size, *SHAPE), (None, *SHAPE), (chunk, *SHAPE)
        data = file.create_dataset(DATASET, shape, "uint16", maxshape=most, chunks=chunks)
        if swmr:
            file.swmr_mode = True
        due = time.monotonic()
        for event in events:
            if event == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif isinstance(event, str):
                word, what = event.split(" ", 1)
                time.sleep(float(what) if word == "wait" else 0.0)
                while word == "until" and not Path(what).exists():
                    time.sleep(0.01)
                due = time.monotonic()
            else:
                due += 1 / rate
                time.sleep(max(0.0, due - time.monotonic()))
                if event >= data.shape[0]:
                    data.resize(event + 1, 0)
                data[event] = frame(event)
                data.flush()


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
