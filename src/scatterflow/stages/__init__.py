"""The stages of the workflow, one function `run` each. Those in a folder are of one kind of study."""

from __future__ import annotations

import importlib
from types import ModuleType

_OF_A_KIND = {
    "nanodiffraction": ("train", "baseline", "infer", "evaluate"),
    "particles": ("train", "baseline", "infer", "evaluate"),
}
_SKIPPED = {"nanodiffraction": ("cross-check",)}  # one engine; tests compare it with the published sum


def stage(name: str, kind: str) -> ModuleType:
    """The module of stage `name` ("cross-check") for studies of a kind."""
    place = f".{kind}" if name in _OF_A_KIND.get(kind, ()) else ""
    return importlib.import_module(f"scatterflow.stages{place}.{name.replace('-', '_')}")


def has(name: str, kind: str) -> bool:
    """True if studies of a kind go through stage `name`."""
    return name not in _SKIPPED.get(kind, ())
