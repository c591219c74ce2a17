"""Model bundles: a folder with weights (safetensors), bundle.json and card.md. Loading runs nothing from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from scatterflow.config.model import ModelConfig
from scatterflow.data import Inputs
from scatterflow.errors import BundleError, ConfigError
from scatterflow.models.bundlefile import AGAIN, read_bundle, write_bundle
from scatterflow.models.estimator import Estimator
from scatterflow.models.networks import Networks
from scatterflow.models.posterior import ModeFit
from scatterflow.prior import prior_from_spec

FORMAT = 1
KIND = "multilayer"
_EXTRA = "extra."  # prefix of arrays that are no weights of the networks


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds: the estimator, extra arrays by name, and `meta`, plain JSON of the caller."""

    estimator: Estimator
    arrays: Mapping[str, NDArray[np.float32]]
    meta: Mapping[str, Any]


def save_bundle(
    folder: Path,
    estimator: Estimator,
    meta: Mapping[str, Any],
    arrays: Mapping[str, NDArray[np.float32]] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write the bundle `folder`, complete or not at all; returns the path of its bundle.json.

    `texts` are further files by name (card.md, history.csv). Raises StoreError where the disk refuses.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in estimator.networks.state_dict().items()}
    for name, array in (arrays or {}).items():
        tensors[_EXTRA + name] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    content: dict[str, Any] = {
        "format": FORMAT,
        "kind": KIND,
        "model": estimator.config.model_dump(mode="json"),
        "inputs": asdict(estimator.inputs),
        "prior": estimator.prior.spec(),
        "modes": {mode: asdict(fit) for mode, fit in estimator.fits.items()},
        "meta": dict(meta),
    }
    return write_bundle(folder, content, tensors, texts)


def load_bundle(folder: str | Path) -> Bundle:
    """Read a bundle. Raises BundleError, in one line, where it is missing, damaged, of another format or kind."""
    place = f"bundle {folder}"
    content, tensors = read_bundle(folder, KIND, FORMAT)
    try:
        config: ModelConfig = TypeAdapter[ModelConfig](ModelConfig).validate_python(content["model"])
        inputs = Inputs(int(content["inputs"]["points"]), _pair(content["inputs"]["image_shape"]))
        prior = prior_from_spec(content["prior"])
        fits = {str(mode): mode_fit(fit) for mode, fit in content["modes"].items()}
        networks = Networks(config, inputs, len(prior.names))
        meta = dict(content["meta"])
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError, ConfigError) as error:
        raise BundleError(place, "must describe a model", " ".join(str(error).split())[:200], AGAIN) from None
    expected = {name: tensor.shape for name, tensor in networks.state_dict().items()}
    found = {name: tensor.shape for name, tensor in tensors.items() if not name.startswith(_EXTRA)}
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise BundleError(f"weights of {place}", "must fit its model", f"{len(odd)} others: {odd[0]}", AGAIN)
    networks.load_state_dict({name: tensors[name] for name in expected})
    networks.eval().requires_grad_(False)
    arrays = {name.removeprefix(_EXTRA): tensors[name].numpy() for name in tensors if name.startswith(_EXTRA)}
    return Bundle(Estimator(config, prior, inputs, networks, fits), arrays, meta)


def mode_fit(told: Mapping[str, Any]) -> ModeFit:
    """What validation rows fixed for a mode. Raises ValueError or TypeError where it makes no sense."""
    widths, shares = (tuple(map(float, told[name])) for name in ("widths", "shares"))
    if len(widths) != len(shares) or not widths or min(*widths, *shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError("widths and shares of the base must be positive, the shares with sum 1")
    return ModeFit(**{**told, "widths": widths, "shares": shares})


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
