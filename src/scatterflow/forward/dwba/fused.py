"""Compiled functions where the machine has a compiler, the functions themselves where not."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from scatterflow.progress import say

_RECOMPILE_LIMIT = 64  # one per shape of a batch


@functools.cache
def compiler(device: str) -> str | None:
    """Name of the compiler for a device type, None without one; then says so, once."""
    if device == "cuda":
        found = "triton" if importlib.util.find_spec("triton") else None
    else:
        found = next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None)
    if found is None:
        say(f"engine dwba: no compiler for {device} on this machine, so it computes uncompiled, several times slower")
    return found


@functools.cache
def _give_up(reason: str) -> None:
    """Say, once per reason, that compiling does not work."""
    say(f"engine dwba: compiling failed ({reason}), so it computes uncompiled")


@functools.cache
def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of tensors, compiled on its first call; as it is, with one notice, if that fails."""
    compiled = torch.compile(function, dynamic=False, fullgraph=True)
    works = True

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        nonlocal works
        if works:
            try:
                with torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT):
                    return compiled(*args)
            except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
                works = False
                _give_up(type(error).__name__)
        return function(*args)

    return call
