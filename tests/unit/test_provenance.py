"""Hashes that change when they must and only then."""

from pathlib import Path

import pytest

from scatterflow import provenance
from scatterflow.study import load_study

DEMO = Path(__file__).parents[2] / "config" / "demo.yaml"


def hash_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> str:
    """Source hash of a module with this code."""
    (tmp_path / "m.py").write_text(code)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    provenance.source_hash.cache_clear()
    try:
        return provenance.source_hash("scatterflow.m")
    finally:
        provenance.source_hash.cache_clear()


CODE = '"""Doc."""\n\ndef f(x):\n    """Doc."""\n    return x + 1\n'


@pytest.mark.parametrize(
    ("edited", "same"),
    [
        (CODE.replace("Doc", "Other words"), True),
        (CODE.replace("x + 1", "(x\n  + 1)  # why"), True),
        (CODE.replace("x + 1", "x + 2"), False),
        (CODE.replace("def f", "def g"), False),
        (CODE + "\nY = 'Doc.'\n", False),
    ],
)
def test_comments_layout_and_docstrings_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: str, same: bool
) -> None:
    assert (hash_of(tmp_path, monkeypatch, CODE) == hash_of(tmp_path, monkeypatch, edited)) is same


def identities(**overrides: object) -> tuple[str, str]:
    study = load_study(DEMO, "multilayer", {key.replace("__", "."): value for key, value in overrides.items()})
    return study.simulation_identity(), study.features_identity()


@pytest.mark.parametrize(
    ("override", "simulations", "features"),
    [
        ({"instrument.wavelength_nm": 0.14}, True, True),
        ({"sample.cross_correlation_length_nm": None}, True, True),
        ({"instrument.masked": []}, False, True),
        ({"observe.noise": "none"}, False, True),
        ({"preprocess.image_clip_percentile": 5.0}, False, True),
        ({"simulate.simulations": 5000}, False, False),
        ({"simulate.workers": 1}, False, False),
        ({"inference.samples": 500}, False, False),
        ({"sample.expert": []}, False, False),
    ],
)
def test_identity_covers_what_determines_the_content(
    override: dict[str, object], simulations: bool, features: bool
) -> None:
    before, after = identities(), identities(**override)
    assert (before[0] != after[0]) is simulations
    assert (before[1] != after[1]) is features


def test_digest_ignores_the_order_of_keys_and_refuses_nan() -> None:
    assert provenance.digest({"a": 1, "b": 2}) == provenance.digest({"b": 2, "a": 1})
    assert provenance.digest({"a": 1}) != provenance.digest({"a": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        provenance.digest({"a": float("nan")})


def test_every_module_named_for_a_stage_exists() -> None:
    from scatterflow import multilayer, nanodiffraction, study

    of_kinds = [modules for stages in provenance._KIND_MODULES.values() for modules in stages.values()]
    simulations = (multilayer.SIMULATION_MODULES, nanodiffraction.SIMULATION_MODULES)
    for modules in (*provenance._STAGE_MODULES.values(), *of_kinds, *simulations, study.FEATURE_MODULES):
        for module in modules:
            for path in provenance._source_files(module):
                assert path.is_file(), module


def test_versions_are_those_installed() -> None:
    import numpy as np

    found = provenance.versions()
    assert found["numpy"] == np.__version__
    assert found["bornagain"].startswith("25.")
