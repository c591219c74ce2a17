"""The estimator of a watch, taken anew from its bundle whenever a training elsewhere has written a better one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scatterflow.errors import BundleError, ScatterflowError
from scatterflow.watching.answers import Estimator

_LOOK_S = 0.25  # between two looks at bundle.json
_AGAIN_S = 1.0  # before a bundle that could not be loaded is tried again: its weights may still be on the way
Load = Callable[[Path], Estimator]


class Refreshed:
    """The newest estimator of a bundle that could be loaded; a thread loads the next one while frames are answered.

    `current` changes between two reads of it only, so a batch is answered by one estimator.
    """

    def __init__(self, folder: Path, load: Load, say: Callable[[str], None]) -> None:
        """Load the first one. Raises BundleError where that is not possible."""
        self._folder, self._load, self._say = folder, load, say
        self._stamp = self._look()
        self.current = self._loaded()
        self.loaded, self.refused = 1, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="bundle", daemon=True)

    def __enter__(self) -> Refreshed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> tuple[int, int, int] | None:
        """What changes when bundle.json is written anew; None while it is not there."""
        try:
            found = (self._folder / "bundle.json").stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _loaded(self) -> tuple[Estimator, str]:
        """The estimator and its identity, after a first answer: later ones are faster, and a model of NaN is refused."""
        identity = self._identity()
        estimator = self._load(self._folder)
        frame = np.ones((1, *estimator.shape), dtype=np.float32)
        values, sd = estimator.predict(frame)
        shape = (1, len(estimator.names))
        if values.shape != shape or sd.shape != shape or not (np.isfinite(values).all() and np.isfinite(sd).all()):
            must = f"must answer a frame with {shape[1]} finite values and standard deviations"
            raise BundleError(f"bundle {self._folder}", must, "something else", "train the model again")
        if estimator.check is not None:
            estimator.check.deviance(frame, values, None)
        if identity != self._identity():
            raise BundleError(f"bundle {self._folder}", "must stay as it is while it is read", "a change")
        return estimator, identity

    def _identity(self) -> str:
        path = self._folder / "bundle.json"
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        except OSError as error:
            remedy = "give the folder of a trained model"
            raise BundleError(f"{path}", "must be readable", error.strerror, remedy) from None

    def _follow(self) -> None:
        wait, told = _LOOK_S, ""
        while not self._stop.wait(wait):
            stamp = self._look()
            if stamp is None or stamp == self._stamp:
                wait = _LOOK_S
                continue
            try:
                new = self._loaded()
                old = self.current[0]
                if (tuple(new[0].names), tuple(new[0].shape)) != (tuple(old.names), tuple(old.shape)):
                    must = f"must be for {', '.join(old.names)} of frames {' x '.join(map(str, old.shape))}"
                    raise BundleError(f"bundle {self._folder}", must, "another", "begin a new watch with it")
            except Exception as error:  # whatever is wrong with it, the old one answers on
                kind = "" if isinstance(error, ScatterflowError) else f"{type(error).__name__}: "
                wait, line = _AGAIN_S, " ".join(f"{kind}{error}".split())
                if line != told:
                    self.refused += 1
                    self._say(f"the new bundle cannot be used, the old one stays ({line})")
                told = line
                continue
            self.current, self._stamp = new, stamp
            self.loaded += 1
            wait, told = _LOOK_S, ""
            self._say(f"bundle {new[1]} answers from now on")
