"""Estimators of nanodiffraction as users meet them: configuration, data, bundles, errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from scatterflow.config.nanodiffraction import FilmConfig, NanobeamConfig
from scatterflow.config.regressor import DonutConfig, LeanConfig, RegressorConfig
from scatterflow.errors import BundleError, ConfigError, FrameError
from scatterflow.forward.nanodiffraction import intensities, kinematics
from scatterflow.models.donut import DECODER_RATE, Donut
from scatterflow.models.nanobeam import NanobeamNN
from scatterflow.models.nanophysics import Box
from scatterflow.models.regressor import build, load_regressor
from scatterflow.models.regressor_training import ONE_SD, Labelled, Noisy, train_regressor
from scatterflow.progress import quiet
from scatterflow.provenance import digest

BEAM, FILM = NanobeamConfig(shape=(40, 36)), FilmConfig()
BOX = Box(("strain", "omega_deg", "chi_deg"), (-5e-3, -0.01, -0.02), (5e-3, 0.01, 0.02))
QUICK = {"epochs": 2, "batch_size": 16, "block": 32}
CONFIGS = {
    "lean": {"components": 12, "hidden": 8, "training": QUICK, "frames": {"epochs": 1, "batch_size": 8}},
    "lean, one step": {"network": "lean", "components": 12, "hidden": 8, "scoring_steps": 1, "training": QUICK},
    "donut": {"channels": [2, 4], "dropout": 0.1, "passes": 3, "training": QUICK},
    "donut, code": {"network": "donut", "recipe": "code", "channels": [2, 4], "train_on": "both", "training": QUICK},
    "donut, frames": {"network": "donut", "channels": [2, 4], "train_on": "frames", "training": QUICK},
    "nanobeam": {"training": QUICK},
}
UNION = TypeAdapter[RegressorConfig](RegressorConfig)


def simulated(n: int, seed: int) -> Labelled:
    unit = 2 * np.random.default_rng(seed).random((n, 3)) - 1
    theta = unit * BOX.half.numpy()
    return Labelled(intensities(kinematics(BEAM, FILM), torch.from_numpy(theta)).numpy(), theta)


TRAIN, VALIDATION = simulated(80, 1), simulated(24, 2)
COUNTS = np.random.default_rng(3).poisson(np.maximum(VALIDATION.frames, 0) * 0.01 + 0.2).astype(np.uint16)


def trained(name: str, folder: Path, **options) -> Path:
    config = UNION.validate_python({"network": name} | CONFIGS[name] | options)
    return train_regressor(
        config, BEAM, FILM, BOX, TRAIN, VALIDATION, 7.0, folder, seed=4, frames=COUNTS, identity="of the caller",
        meta={"study": "tiny"}, log=lambda _: None, tracker=quiet,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("lean", tmp_path_factory.mktemp("lean") / "bundle").parent


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_trained_is_loaded(name: str, tmp_path: Path) -> None:
    path = trained(name, tmp_path / "bundle")
    regressor = load_regressor(path.parent)
    values, sd = regressor.predict(COUNTS)
    assert values.shape == sd.shape == (len(COUNTS), 3)
    assert values.dtype == sd.dtype == np.float64
    assert np.isfinite(values).all()
    assert (sd > 0).all()
    assert regressor.identity == "of the caller"
    assert regressor.meta == {"study": "tiny"}
    again, sd_again = load_regressor(path.parent).predict(COUNTS)
    np.testing.assert_array_equal(again, values)
    np.testing.assert_array_equal(sd_again, sd)
    # as many errors lie within one standard deviation as the calibration is for, within one estimate
    estimates = len(VALIDATION.theta) * regressor.scores["draws"]
    assert regressor.scores["coverage"] == pytest.approx([ONE_SD] * 3, abs=1 / estimates)
    # the same training from nothing has the same weights; in the same folder it finds itself done
    weights = (path.parent / "weights.safetensors").read_bytes()
    assert (trained(name, tmp_path / "other").parent / "weights.safetensors").read_bytes() == weights
    assert (trained(name, tmp_path / "bundle").parent / "weights.safetensors").read_bytes() == weights


def test_errors_are_calibrated_on_several_draws_of_the_noise(bundle: Path) -> None:
    """With other noise as many errors are within one standard deviation, to four errors of what calibrates and judges."""
    regressor = load_regressor(bundle)
    rows, draws = (regressor.scores[name] for name in ("rows", "draws"))
    assert (rows, draws) == (len(VALIDATION.theta), 10)
    repeated = Labelled(*(np.tile(part, (100, *[1] * (part.ndim - 1))) for part in VALIDATION))
    judged = len(repeated.theta)
    counts, unit = Noisy(repeated, BOX, 7.0, 99, judged, fresh=False).block(0, 0).tensors
    values, sd = regressor.predict(counts.numpy())
    coverage = (np.abs(values - BOX.from_unit(unit).numpy()) <= sd).mean(0)
    error = np.sqrt(ONE_SD * (1 - ONE_SD) * (1 / (rows * draws) + 1 / judged))
    assert (np.abs(coverage - ONE_SD) < 4 * error).all()


def test_a_box_that_a_prediction_used_first_can_be_trained_with() -> None:
    """What torch makes in inference mode can never be part of a gradient; the box keeps its constants."""
    box = Box(BOX.names, BOX.low, BOX.high)
    with torch.inference_mode():
        box.from_unit(torch.zeros(1, 3))
    unit = torch.zeros(1, 3, requires_grad=True)
    box.from_unit(unit).sum().backward()
    assert unit.grad is not None
    np.testing.assert_allclose(unit.grad[0], box.half, rtol=1e-6)


def test_four_parameters(tmp_path: Path) -> None:
    names = (*BOX.names, "film_thickness_nm")
    box = Box(names, (*BOX.low, 10.7), (*BOX.high, 12.7))
    theta = np.hstack([TRAIN.theta, np.linspace(10.7, 12.7, len(TRAIN.theta))[:, None]])
    frames = intensities(kinematics(BEAM, FILM), torch.from_numpy(theta)).numpy()
    for name in ("lean", "donut"):
        config = UNION.validate_python({"network": name} | CONFIGS[name])
        rows = Labelled(frames, theta)
        path = train_regressor(
            config, BEAM, FILM, box, rows, rows, 7.0, tmp_path / name, seed=0, log=lambda _: None, tracker=quiet
        )
        assert load_regressor(path.parent).predict(COUNTS)[0].shape == (len(COUNTS), 4)


def test_the_published_networks_have_the_published_size() -> None:
    def weights(module: torch.nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters())

    beam = NanobeamConfig()
    assert weights(NanobeamNN(beam.shape, 3)) == 27771  # Luo et al. 2025, as counted in its code
    assert weights(Donut(DonutConfig(), beam, FILM, BOX)) == pytest.approx(4.13e6, rel=2e-3)
    assert DonutConfig(recipe="code").training.batch_size == 256
    assert DonutConfig().training.batch_size == 16
    assert DonutConfig(recipe="code", training={"batch_size": 8}).training.batch_size == 8


@pytest.mark.parametrize("recipe", ["paper", "code"])
def test_the_decoder_learns_more_slowly(recipe: str) -> None:
    """The first step of AdamW moves every weight by the learning rate."""
    torch.manual_seed(0)
    donut = Donut(DonutConfig(recipe=recipe, channels=(2, 4)), BEAM, FILM, BOX)
    layers = donut.encoder[0], donut.decoder[-1]
    before = [layer.weight.detach().clone() for layer in layers]
    optimizer = torch.optim.AdamW(donut.parameters(), lr=1e-3, weight_decay=0)
    donut.loss(torch.from_numpy(COUNTS.astype(np.float32))).mean().backward()
    optimizer.step()
    moved = [float((layer.weight.detach() - old).abs().median()) for layer, old in zip(layers, before, strict=True)]
    assert moved[0] == pytest.approx(1e-3, rel=0.01)
    assert moved[1] == pytest.approx(DECODER_RATE[recipe] * 1e-3, rel=0.01)


def test_noise_depends_on_epoch_and_block_only() -> None:
    source = Noisy(TRAIN, BOX, 7.0, 5, 30, (0.5, 2.0))
    assert source.borders() == [0, 27, 54, 80]
    first, again, later = (source.block(epoch, 1).tensors for epoch in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], later[0])
    seen = torch.cat([source.block(3, number).tensors[1][:, 0] for number in range(source.blocks)])
    expected = BOX.to_unit(torch.from_numpy(TRAIN.theta))[:, 0]
    torch.testing.assert_close(seen.sort()[0], expected.float().sort()[0])
    fixed = Noisy(TRAIN, BOX, 7.0, 5, 30, fresh=False)
    assert torch.equal(fixed.block(0, 1).tensors[0], fixed.block(9, 1).tensors[0])
    torch.testing.assert_close(fixed.block(0, 1).tensors[1], BOX.to_unit(torch.from_numpy(TRAIN.theta[1::3])).float())


def test_frames_have_the_expected_counts() -> None:
    """Mean and variance over many epochs are those of the expected counts, mirrored where the label is."""
    source = Noisy(Labelled(TRAIN.frames[:1], TRAIN.theta[:1]), BOX, 7.0, 0, 8)
    draws = [source.block(epoch, 0).tensors for epoch in range(400)]
    truth = BOX.to_unit(torch.from_numpy(TRAIN.theta[:1])).float()[0]
    frames = torch.stack(
        [x[0].flip(1) if torch.sign(unit[0, 2]) != torch.sign(truth[2]) else x[0] for x, unit in draws]
    )
    mirrored = [bool(unit[0, 2] * truth[2] < 0) for _, unit in draws]
    assert 100 < sum(mirrored) < 300
    expected = torch.from_numpy(source.expected(slice(0, 1))[0])
    assert float(expected.max()) == pytest.approx(7)
    deviation = (frames.mean(0) - expected) / (expected / len(draws)).sqrt().clamp_min(1e-3)
    assert float(deviation.abs().max()) < 6
    bright = expected > 1
    assert float((frames.var(0)[bright] / expected[bright]).mean()) == pytest.approx(1, abs=0.03)


def test_a_frame_is_seen_several_times_and_mirrored_in_turns() -> None:
    """Each row of an epoch is a drawn frame or its mirror image with the other chi; each stands there `looks` times."""
    once, thrice = (Noisy(TRAIN, BOX, 7.0, 5, 30, looks=looks) for looks in (1, 3))
    assert (len(thrice), thrice.borders()) == (240, [0, 81, 162, 240])
    counts, unit = once.block(2, 1).tensors
    seen, labels = thrice.block(2, 1).take(torch.arange(81))
    for turn, mirror in enumerate((1, -1, 1)):
        rows = slice(27 * turn, 27 * (turn + 1))
        assert torch.equal(seen[rows], counts if mirror > 0 else counts.flip(2))
        assert torch.equal(labels[rows], unit * torch.tensor([1, 1, mirror]))
    assert torch.equal(thrice.block(2, 1).take(torch.arange(27))[0], counts)  # what was handed out has changed nothing
    aside = Box(BOX.names, BOX.low, (*BOX.high[:2], 0.03))  # chi and -chi are not as likely
    turned = Noisy(TRAIN, aside, 7.0, 5, 30, looks=2).block(0, 0)
    assert torch.equal(turned.take(torch.tensor([0]))[0], turned.take(torch.tensor([27]))[0])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.ones((2, 40, 35)), "must be counts"),
        (np.ones((40, 36)), "must be counts"),
        (np.full((2, 40, 36), "7"), "must be counts"),
        (np.full((2, 40, 36), np.nan), "frame 0 must be finite"),
        (np.concatenate([np.ones((70, 40, 36)), np.zeros((1, 40, 36))]), "frame 70 must have counts"),
        (np.concatenate([np.ones((1, 40, 36)), np.full((1, 40, 36), -1)]), "frame 1 must not have negative"),
    ],
)
def test_bad_frames_are_named(bundle: Path, frames: np.ndarray, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        load_regressor(bundle).predict(frames)


def test_no_frames_have_no_values(bundle: Path) -> None:
    values, sd = load_regressor(bundle).predict(np.zeros((0, 40, 36), dtype=np.uint16))
    assert values.shape == sd.shape == (0, 3)


def damaged(folder: Path, **changes) -> None:
    """Change bundle.json as someone who also knows how its checksum is made."""
    content = json.loads((folder / "bundle.json").read_text())
    content.pop("sha256")
    content |= changes
    (folder / "bundle.json").write_text(json.dumps({**content, "sha256": digest(content)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "must have format 1, got 99"),
        ({"kind": "multilayer"}, "must be of kind nanodiffraction"),
        ({"network": {"network": "resnet"}}, "must describe an estimator"),
        ({"network": {"network": "lean", "hidden": 2**20}}, "must fit its network"),
        ({"box": {"names": ["a"], "low": [0], "high": [1]}}, "must describe an estimator"),
        ({"sd_factor": [1, 1]}, "must describe an estimator"),
        ({"sd_factor": [1, 1, -1]}, "must describe an estimator"),
        ({"meta": None}, "must describe an estimator"),
        ({"weights": None}, "must be as it was written"),
    ],
)
def test_a_bundle_that_makes_no_sense(bundle: Path, tmp_path: Path, changes: dict, message: str) -> None:
    folder = copied(bundle, tmp_path)
    damaged(folder, **changes)
    refused(folder, message)


def test_a_damaged_bundle(bundle: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "must exist")
    folder = copied(bundle, tmp_path)
    text = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(text.replace("of the caller", "of another"))
    refused(folder, "must be as it was written")
    (folder / "bundle.json").write_text(text[:-10])
    refused(folder, "must be valid JSON")
    (folder / "bundle.json").write_text(text)
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[:-1])
    refused(folder, "must be as it was written")
    (folder / "weights.safetensors").unlink()
    refused(folder, "must exist")


def copied(bundle: Path, to: Path) -> Path:
    folder = to / "bundle"
    folder.mkdir()
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def refused(folder: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as error:
        load_regressor(folder)
    assert "\n" not in str(error.value)


def test_the_card_tells_errors(bundle: Path) -> None:
    text, content = (bundle / "card.md").read_text(), json.loads((bundle / "bundle.json").read_text())
    for number, name in enumerate(BOX.names):
        assert f"| {name} |" in text
        assert f"{content['scores']['rms'][number]:.3g}" in text


@pytest.mark.parametrize(
    "options",
    [
        {"network": "lean", "hiden": 3},
        {"network": "lean", "exposure": [2, 1]},
        {"network": "lean", "scoring_steps": 2},
        {"network": "donut", "passes": 5},
        {"network": "donut", "passes": 1, "dropout": 0.1},
        {"network": "donut", "recipe": "mine"},
    ],
)
def test_bad_options(options: dict) -> None:
    with pytest.raises(ValidationError):
        UNION.validate_python(options)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be at least 36 pixels for NanobeamNN"):
        build(UNION.validate_python({"network": "nanobeam"}), NanobeamConfig(shape=(64, 35)), FILM, BOX)
    with pytest.raises(ConfigError, match="must be at least 64 pixels for DONUT"):
        build(DonutConfig(), BEAM, FILM, BOX)
    with pytest.raises(ConfigError, match="must be strain, omega_deg, chi_deg"):
        Box(("strain",), (0,), (1,))
    with pytest.raises(ConfigError, match="must have low < high"):
        Box(BOX.names, BOX.low, BOX.low)

    def run(config: RegressorConfig, train: Labelled | None, frames: np.ndarray | None = None) -> None:
        train_regressor(config, BEAM, FILM, BOX, train, VALIDATION, 7.0, tmp_path / "b", seed=0, frames=frames)

    with pytest.raises(ConfigError, match="simulations must be"):
        run(LeanConfig(), Labelled(TRAIN.frames[:, :30], TRAIN.theta))
    with pytest.raises(ConfigError, match="parameters of simulations must lie between"):
        run(LeanConfig(), Labelled(TRAIN.frames, TRAIN.theta * 2))
    with pytest.raises(ConfigError, match="train must hold simulations"):
        run(LeanConfig(), None)
    with pytest.raises(ConfigError, match="frames must be given"):
        run(UNION.validate_python({"network": "donut"} | CONFIGS["donut, frames"]), None)
    with pytest.raises(FrameError, match="frame 0 must have counts"):
        run(LeanConfig(), TRAIN, np.zeros((3, 40, 36)))
    with pytest.raises(FrameError, match="expected counts must be finite"):
        run(LeanConfig(), Labelled(np.full_like(TRAIN.frames, np.nan), TRAIN.theta))
