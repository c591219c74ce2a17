"""What a user can get wrong. Every message says what, what it must be, what was found and how to mend it."""

from __future__ import annotations


class ScatterflowError(Exception):
    """Base of all errors that a user can mend; the CLI prints it in one line and exits 2.

    Parameters
    ----------
    what : the thing that is wrong, with its place ("simulate.shard_size in config/demo.yaml").
    must : what it must be ("must be a positive integer").
    got : what was found.
    remedy : what to do now.
    """

    def __init__(self, what: str, must: str = "", got: object = None, remedy: str = "") -> None:
        self.what, self.must, self.got, self.remedy = what, must, got, remedy
        text = f"{what} {must}".strip()
        if got is not None:
            text += f", got {got}"
        if remedy:
            text += f"; {remedy}"
        super().__init__(" ".join(text.split()))  # always one line, whatever the parts hold


class ConfigError(ScatterflowError):
    """A configuration file, an override or a command-line option is wrong."""


class FrameError(ScatterflowError):
    """A detector frame, its mask or its instrument cannot be used.

    `status` is what the inference reports for the frame: "unreadable", "masked-out" or "wrong-instrument".
    """

    def __init__(
        self, what: str, must: str = "", got: object = None, remedy: str = "", *, status: str = "unreadable"
    ) -> None:
        super().__init__(what, must, got, remedy)
        self.status = status


class StoreError(ScatterflowError):
    """A store, a shard or a manifest is missing, damaged or of another study."""


class SimulationError(ScatterflowError):
    """A forward model cannot compute a sample; names the row and the parameter."""


class BundleError(ScatterflowError):
    """A model bundle is missing, damaged or does not fit the data."""
