"""A trained estimator of nanodiffraction: frames of counts in, parameters with calibrated standard deviations out.

The networks are in `lean`, `donut` and `nanobeam`. What one learnt is kept as a bundle, a folder with weights
(safetensors), bundle.json and card.md; loading runs nothing from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save as save_safetensors

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.config.regressor import DonutConfig, LeanConfig, RegressorConfig
from scatterflow.errors import BundleError, ConfigError, FrameError
from scatterflow.forward.nanodiffraction import Kinematics, kinematics
from scatterflow.models.bundlefile import read_bundle_json, read_bundle_weights
from scatterflow.models.donut import Donut
from scatterflow.models.lean import Lean
from scatterflow.models.nanobeam import NanobeamNN
from scatterflow.models.nanophysics import Box
from scatterflow.products import replacing
from scatterflow.provenance import digest

FORMAT = 1
KIND = "nanodiffraction"
UNITS = {"strain": "1", "omega_deg": "deg", "chi_deg": "deg", "film_thickness_nm": "nm"}
Network = Lean | Donut | NanobeamNN
Values = NDArray[np.float64]
_AGAIN = "train it again, or copy the bundle again"
_BATCH = 64  # frames at a time: they and what a network makes of them stay in the processor's cache


def build(config: RegressorConfig, beam: NanobeamConfig, film: FilmConfig, box: Box) -> Network:
    """The untrained network of a configuration. Raises ConfigError where the frames are too small for it."""
    if isinstance(config, LeanConfig):
        return Lean(config, beam, film, box)
    if isinstance(config, DonutConfig):
        return _channels_last(Donut(config, beam, film, box))
    return NanobeamNN(beam.shape, len(box.names))


def _channels_last(network: Network) -> Network:
    """The same, its convolutions laid out as a CPU is fastest with."""
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return network


@dataclass(frozen=True)
class Regressor:
    """A network with what it was trained for; `sd_factor` (parameter,) calibrates its errors on validation rows.

    `scores` are plain JSON: errors and coverage on validation rows. `identity` is the caller's, `meta` his plain JSON.
    """

    config: RegressorConfig
    beam: NanobeamConfig
    film: FilmConfig
    box: Box
    network: Network
    max_counts: float
    sd_factor: tuple[float, ...] = ()
    scores: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1

    def predict(self, frames: NDArray[Any]) -> tuple[Values, Values]:
        """Values and standard deviations (frame, parameter) of counts (frame, z, y), in the units of the box's names.

        Memory beside the frames is that of 64 of them. Raises FrameError for another shape, for a pixel that is not
        finite or is negative, and for a frame without counts.
        """
        frames = self.checked(frames)
        device = next(self.network.parameters()).device
        values = np.empty((len(frames), len(self.box.names)))
        spread = np.empty_like(values)
        self.network.eval()
        with torch.inference_mode(), limited_threads(self.threads), self._same_dropout():
            for start in range(0, len(frames), _BATCH):
                part = slice(start, start + _BATCH)
                found = self.network(torch.from_numpy(np.array(frames[part], dtype=np.float32)).to(device))
                values[part], spread[part] = (each.cpu().numpy() for each in found)
        theta = self.box.from_unit(torch.from_numpy(values)).numpy()
        sd = spread * self.box.half.numpy()
        if isinstance(self.config, LeanConfig) and self.config.scoring_steps:
            from scatterflow.baselines import likelihood  # only where it is asked for

            with limited_threads(self.threads):
                box = np.array([self.box.low, self.box.high])
                theta, sd = likelihood.step(np.asarray(frames, dtype=np.float32), self._kinematics(), theta, box)
        return theta, sd * np.array(self.sd_factor or (1.0,) * len(self.box.names))

    @contextmanager
    def _same_dropout(self) -> Iterator[None]:
        """Random numbers of Monte-Carlo dropout: the same frames give the same answer. Others need none, and the time."""
        if not (isinstance(self.config, DonutConfig) and self.config.passes):
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield

    def _kinematics(self) -> Kinematics:
        return kinematics(self.beam, self.film)

    def checked(self, frames: NDArray[Any]) -> NDArray[Any]:
        """The same counts (frame, z, y), if they can be used. Raises FrameError as `predict` does."""
        frames = np.asarray(frames)
        if frames.ndim != 3 or frames.shape[1:] != self.beam.shape or frames.dtype.kind not in "uif":
            raise FrameError("frames", f"must be counts (frame, {', '.join(map(str, self.beam.shape))})", frames.shape)
        for start in range(0, len(frames), _BATCH):
            part = frames[start : start + _BATCH]
            least, most = part.min((1, 2)), part.max((1, 2))  # both NaN where a pixel is
            for bad, must in (
                (~(np.isfinite(least) & np.isfinite(most)), "must be finite"),
                (least < 0, "must not have negative counts"),
                (most == 0, "must have counts"),
            ):
                if bad.any():
                    raise FrameError(f"frame {start + int(bad.argmax())}", must, remedy="mask or leave out such frames")
        return frames

    def save(self, folder: Path, texts: Mapping[str, str] | None = None) -> Path:
        """Write the bundle `folder`, complete or not at all; returns the path of its bundle.json.

        `texts` are further files by name. Raises StoreError where the disk refuses.
        """
        weights = save_safetensors(
            {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        )
        content: dict[str, Any] = {
            "format": FORMAT,
            "kind": KIND,
            "network": self.config.model_dump(mode="json"),
            "beam": self.beam.model_dump(mode="json"),
            "film": self.film.model_dump(mode="json"),
            "box": asdict(self.box) | {"units": [UNITS[name] for name in self.box.names]},
            "frames": {"dims": ["frame", "z", "y"], "shape": self.beam.shape, "unit": "counts"},
            "preprocessing": "none: the network itself scales counts",
            "max_counts": self.max_counts,
            "sd_factor": self.sd_factor,
            "scores": dict(self.scores),
            "identity": self.identity,
            "meta": dict(self.meta),
            "weights": {"file": "weights.safetensors", "sha256": hashlib.sha256(weights).hexdigest()},
        }
        content = json.loads(json.dumps(content, allow_nan=False))
        content["sha256"] = digest(content)
        with replacing(folder) as temporary:
            temporary.mkdir()
            (temporary / "weights.safetensors").write_bytes(weights)
            for name, text in {"card.md": card(self), **(texts or {})}.items():
                (temporary / name).write_text(text, encoding="utf-8")
            (temporary / "bundle.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return folder / "bundle.json"


def load_regressor(folder: str | Path) -> Regressor:
    """Read a bundle. Raises BundleError, in one line, where it is missing, damaged, of another format or kind."""
    folder = Path(folder)
    content = read_bundle_json(folder / "bundle.json")
    place = f"bundle {folder}"
    if content.get("format") != FORMAT:
        remedy = "use the version of scatterflow that wrote it"
        raise BundleError(place, f"must have format {FORMAT}", content.get("format"), remedy)
    if content.get("kind") != KIND:
        raise BundleError(place, f"must be of kind {KIND}", content.get("kind"), "choose another bundle")
    if content.pop("sha256", None) != digest(content):
        raise BundleError(f"{folder / 'bundle.json'}", "must be as it was written", "another checksum", _AGAIN)
    tensors = read_bundle_weights(folder / "weights.safetensors", content)
    try:
        config: RegressorConfig = TypeAdapter[RegressorConfig](RegressorConfig).validate_python(content["network"])
        beam = NanobeamConfig.model_validate(content["beam"])
        film = FilmConfig.model_validate(content["film"])
        box = Box(*(tuple(content["box"][name]) for name in ("names", "low", "high")))
        factor = tuple(map(float, content["sd_factor"]))
        if len(factor) != len(box.names) or not all(0 < each < float("inf") for each in factor):
            raise ValueError("sd_factor must be positive, one per parameter")
        max_counts, scores, meta = float(content["max_counts"]), dict(content["scores"]), dict(content["meta"])
        identity = str(content["identity"])
        with torch.device("meta"):  # no memory is taken, whatever sizes a bundle claims
            network = build(config, beam, film, box)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ValidationError, ConfigError) as error:
        raise BundleError(place, "must describe an estimator", " ".join(str(error).split())[:200], _AGAIN) from None
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise BundleError(f"weights of {place}", "must fit its network", f"{len(odd)} others: {odd[0]}", _AGAIN)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise BundleError(f"weights of {place}", "must be finite", remedy=_AGAIN)
    network.load_state_dict(tensors, assign=True)
    network = _channels_last(network).eval().requires_grad_(False)
    return Regressor(config, beam, film, box, network, max_counts, factor, scores, identity, meta)


def card(regressor: Regressor) -> str:
    """What a person must know of an estimator (Markdown)."""
    names, scores, config = regressor.box.names, regressor.scores, regressor.config
    recipe = f" (recipe: {config.recipe})" if isinstance(config, DonutConfig) else ""
    lines = [
        f"# Estimator `{config.network}`{recipe}",
        "",
        f"Reads frames of {regressor.beam.shape[0]} x {regressor.beam.shape[1]} pixels (z, y) in counts; trained for "
        f"about {regressor.max_counts:g} expected counts in the brightest pixel, at {regressor.beam.energy_kev:g} keV, "
        f"for a film of {regressor.film.thickness_nm:g} nm.",
        "",
        "| parameter | unit | trained from | to | rms error | within 1 sd |",
        "|---|---|---|---|---|---|",
    ]
    for number, name in enumerate(names):
        told = [f"{scores[key][number]:.3g}" if key in scores else "-" for key in ("rms", "coverage")]
        low, high = regressor.box.low[number], regressor.box.high[number]
        lines.append(f"| {name} | {UNITS[name]} | {low:g} | {high:g} | {told[0]} | {told[1]} |")
    lines += [
        "",
        f"Errors are those on {scores.get('rows', 0)} validation frames, simulated, {scores.get('draws', 1)} times with "
        "other noise; they also calibrate the standard deviations: 68.3 % of them lie within one. Outside the ranges "
        "above, and where the sample is no such film, the answer means nothing.",
        "",
    ]
    return "\n".join(lines)


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """A fixed number of threads: as fast for small batches, and the same bits on a busy machine."""
    before = torch.get_num_threads()
    if before == number:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
