"""scatterflow: from a detector frame to trusted sample parameters. The public interface; everything else may move."""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scatterflow.frames import read_frame
    from scatterflow.models import load_model
    from scatterflow.study import Study, load_study

__version__ = _version("scatterflow")
__all__ = ["Study", "__version__", "load_model", "load_study", "read_frame"]

_HOME = {
    "Study": "scatterflow.study",
    "load_study": "scatterflow.study",
    "load_model": "scatterflow.models",
    "read_frame": "scatterflow.frames",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the command line starts without torch, readers of frames without BornAgain."""
    if name not in _HOME:
        raise AttributeError(f"module 'scatterflow' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
