"""The configuration: what is refused, and with which words."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from scatterflow.config.loading import MAX_BYTES, load_run, parse_run, parse_yaml
from scatterflow.config.study import RunConfig
from scatterflow.errors import ConfigError

ROOT = Path(__file__).parents[2]
DEMO, PAPER = ROOT / "config" / "demo.yaml", ROOT / "config" / "paper.yaml"
STUDY = "studies.multilayer"
Path_ = tuple[str | int, ...]


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    """The demo with every option written out."""
    content: dict[str, Any] = load_run(DEMO).model_dump(mode="json")
    return content


def refusal(content: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_run(content, "demo.yaml")
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def file_refusal(folder: Path, content: str | bytes) -> str:
    path = folder / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    assert len(str(caught.value).splitlines()) == 1
    assert "run.yaml" in str(caught.value)
    return str(caught.value)


def changed(content: Any, path: Path_, change: dict[str, Any] | Any, drop: str | None = None) -> Any:
    """A copy of `content` with the value at `path` replaced; a dict `change` is merged after `drop` is taken out."""
    copy = json.loads(json.dumps(content))
    place = copy
    for part in path[:-1]:
        place = place[part]
    if drop is None:
        place[path[-1]] = change
    else:
        place[path[-1]] = {key: value for key, value in place[path[-1]].items() if key != drop} | change
    return copy


def sections(model: BaseModel, path: Path_ = ()) -> Iterator[tuple[Path_, BaseModel]]:
    """Every section of a run with its path, through names and lists."""
    yield path, model
    for name in type(model).model_fields:
        value = getattr(model, name)
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else []
        children = [((*path, name), value), *[((*path, name, key), item) for key, item in items]]
        for where, child in children:
            if isinstance(child, BaseModel):
                yield from sections(child, where)


def test_demo_and_paper_load() -> None:
    assert load_run(DEMO).run == "demo"
    assert load_run(PAPER).run == "paper"


def test_a_misspelt_option_names_its_neighbour_at_every_depth(demo: dict[str, Any]) -> None:
    tried = 0
    for path, section in sections(load_run(DEMO)):
        for name in type(section).model_fields:
            place: Any = demo
            for part in path:
                place = place[part]
            wrong = {f"{name}x": place[name]}
            content = changed({"root": demo}, ("root", *path), wrong, drop=name)["root"]
            text = refusal(content)
            dotted = ".".join(map(str, (*path, f"{name}x")))
            assert f"option {dotted} in demo.yaml is unknown; did you mean '{name}'" in text, text
            tried += 1
    assert tried > 100


def test_an_unknown_option_without_neighbour_lists_the_known_ones(demo: dict[str, Any]) -> None:
    text = refusal(changed(demo, ("zzz",), 1))
    assert all(name in text for name in RunConfig.model_fields)


def test_a_missing_option_is_named(demo: dict[str, Any]) -> None:
    content = changed({"root": demo}, ("root",), {}, drop="run")["root"]
    assert refusal(content).startswith("option run in demo.yaml is missing; add it")


MATERIAL = ("studies", "multilayer", "sample", "materials", "Ta")
VIEW = ("studies", "multilayer", "instrument", "views", "profile")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("run",), "../../etc", ["run", "../../etc"]),
        (("run",), "/tmp/x", ["run"]),
        (("run",), ".", ["run"]),
        (("run",), "a\n", ["run"]),
        (("run",), "", ["run"]),
        (("seed",), "7", ["seed", "valid integer", "'7'"]),
        (("seed",), True, ["seed", "valid integer", "True"]),
        (("seed",), 1.5, ["seed", "valid integer", "1.5"]),
        (("seed",), -1, ["seed", "greater than or equal to 0", "-1"]),
        (("seed",), None, ["seed", "valid integer", "nothing"]),
        (("seed",), [7], ["seed", "valid integer", "[7]"]),
        (("seed",), {"a": 7}, ["seed", "valid integer", "a mapping"]),
        (("seed",), 2**31, ["seed", "less than"]),
        (("studies",), {}, ["studies", "at least 1"]),
        (("studies",), [], ["studies", "got []"]),
        ((*MATERIAL, "delta"), [4e-5, 1e-5], ["Ta", "delta must ascend", "lower bound first"]),
        ((*MATERIAL, "delta"), [1e-5], ["Ta.delta"]),
        ((*MATERIAL, "delta"), [1e-5, 2e-5, 3e-5], ["Ta.delta"]),
        ((*MATERIAL, "delta"), [1e-5, "2e-5"], ["Ta.delta.1", "valid number", "'2e-5'"]),
        ((*MATERIAL, "thickness_nm"), [-1.0, 4.0], ["thickness_nm must be positive", "-1.0"]),
        ((*MATERIAL, "hurst"), [0.1, 1.5], ["hurst must lie in (0, 1)"]),
        ((*MATERIAL, "delta"), [float("nan"), 1.0], ["Ta.delta.0", "finite"]),
        ((*MATERIAL, "delta"), [1e-5, float("inf")], ["Ta.delta.1", "finite"]),
        (("studies", "multilayer", "sample", "fixed", 0, "thickness_nm"), -3.0, ["fixed.0.thickness_nm", "-3"]),
        (
            ("studies", "multilayer", "sample", "layers"),
            ["TaO", "Tungsten"],
            ["layers must name materials", "Tungsten"],
        ),
        (("studies", "multilayer", "instrument", "wavelength_nm"), 0, ["wavelength_nm", "greater than 0", "got 0"]),
        (("studies", "multilayer", "instrument", "incidence_deg"), 90, ["incidence_deg", "less than 90"]),
        (("studies", "multilayer", "instrument", "beam"), "direkt", ["beam", "'specular' or 'direct'", "'direkt'"]),
        ((*VIEW, "rows"), [[20, 10]], ["must ascend"]),
        ((*VIEW, "sampling"), [1, "gauss4"], ["profile.sampling.1", "valid integer or", "'gauss3'", "'gauss4'"]),
        ((*VIEW, "columns"), [200, 9999], ["view profile must lie on the detector"]),
        (("studies", "multilayer", "simulate", "shard_size"), 7, ["shard_size=7 must divide"]),
        (("studies", "multilayer", "forward", "engine"), "dwba2", ["forward.engine"]),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be(
    demo: dict[str, Any], path: Path_, value: Any, words: list[str]
) -> None:
    text = refusal(changed(demo, path, value))
    assert "demo.yaml" in text
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize("name", ["../up", "/root", "a b", ".hidden", "-rf", "", "a" * 65, "a.b", "ä", "a\n"])
@pytest.mark.parametrize("place", ["studies", "models"])
def test_names_that_become_folders_are_plain(demo: dict[str, Any], name: str, place: str) -> None:
    if place == "studies":
        content = changed(demo, ("studies",), {name: demo["studies"]["multilayer"]})
    else:
        models = demo["studies"]["multilayer"]["models"]
        content = changed(demo, ("studies", "multilayer", "models"), {name: next(iter(models.values()))})
    assert "must consist of" in refusal(content)


@pytest.mark.parametrize("name", ["examples", "experiment", "frames", "manifest", "abc-kde", "abc-regression"])
def test_names_of_results_are_not_for_models(demo: dict[str, Any], name: str) -> None:
    models = demo["studies"]["multilayer"]["models"]
    content = changed(demo, ("studies", "multilayer", "models"), {name: next(iter(models.values()))})
    assert f"the name {name!r} is taken" in refusal(content)


def test_several_problems_are_counted(demo: dict[str, Any]) -> None:
    content = changed(changed(demo, ("seed",), -1), ("run",), "..")
    assert refusal(content).endswith("(1 more problem)")


@pytest.mark.parametrize("text", ["1e5", "1E5", "100000", "1.0e+5", "1e+05"])
def test_whole_numbers_may_be_written_as_people_do(text: str) -> None:
    run = load_run(DEMO, {f"{STUDY}.simulate.simulations": parse_yaml(text, "test")})
    assert run.studies["multilayer"].simulate.simulations == 10**5


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", ".1e-4", "0.00001"])
def test_1e_5_is_a_number(text: str) -> None:
    assert parse_yaml(text, "test") == 1e-5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["must be a mapping", "nothing"]),
        ("# only a comment\n", ["must be a mapping"]),
        ("just text", ["must be a mapping", "'just text'"]),
        ("- 1\n- 2\n", ["must be a mapping", "[1, 2]"]),
        ("run: a\nrun: b\n", ["line 2", "key 'run' is given twice"]),
        ("studies:\n  a: {x: 1}\n  a: {x: 2}\n", ["line 3", "key 'a' is given twice"]),
        ("run: [1, 2\n", ["line", "must be valid YAML"]),
        ("run: a\n\tseed: 1\n", ["line 2", "must be valid YAML"]),
        ("run: *nowhere\n", ["line 1", "must be valid YAML", "nowhere"]),
        ("run: !!python/object/apply:os.system ['touch pwned']\n", ["must be valid YAML", "python/object"]),
        ("run: !!python/name:os.system\n", ["must be valid YAML"]),
        ("run: !include /etc/passwd\n", ["must be valid YAML", "!include"]),
        ("run: !!int abc\n", ["must be valid YAML"]),
        ("run: 2020-13-45\n", ["must be valid YAML"]),
        ("run: 2020-01-01\nstudies: {}\n", ["a date"]),
        ("run: !!binary aGVsbG8=\nstudies: {}\n", ["a bytes"]),
        ("? [1, 2]\n: 3\n", ["keys must be text", "a list or mapping"]),
        ("1: 2\n", ["keys must be text", "'1'"]),
        ("yes: 2\n", ["keys must be text", "'yes'"]),
        ("a: &a [*a]\n", ["must not hold itself"]),
        ("run: a\n---\nrun: b\n", ["must be valid YAML"]),
        (b"\x00\x01\x02\xff\xfe", ["must be a readable text file"]),
        (b"\x89PNG\r\n\x1a\n", ["must be a readable text file"]),
        (b"run: \x00\n", ["must be valid YAML"]),
        ("run: " + "[" * 100 + "]" * 100, ["must not be nested deeper"]),
        ("run: " + "[" * 100_000, ["must not be nested deeper"]),
        ("run: " + "a" * MAX_BYTES, ["must be smaller"]),
        ('run: "\\ud800"\nstudies: {}\n', ["must hold valid text"]),
    ],
)
def test_files_that_are_no_configuration_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = file_refusal(tmp_path, content)
    assert [word for word in words if word not in text] == [], text
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"], "reading a file did something"


def test_a_few_lines_of_aliases_cannot_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert "must not hold more than" in file_refusal(tmp_path, "\n".join(lines))
    lines = ["a0: &a0 {k0: 1, k1: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 30)]
    assert "must not hold more than" in file_refusal(tmp_path, "\n".join(lines))


@pytest.mark.parametrize("path", ["missing.yaml", ".", "/dev/zero", "a\0b"])
def test_paths_that_are_no_file_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="configuration"):
        load_run(tmp_path / path)


def test_anchors_and_merges_work_in_any_order_of_depth(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: {deep: &base {x: 1, y: 2}}\nb: &over {<<: *base, y: 3}\nc: {<<: *over, z: 4}\n")
    merged = parse_yaml(path.read_text(), "test")
    assert merged == {"a": {"deep": {"x": 1, "y": 2}}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 3, "z": 4}}


def test_a_byte_order_mark_is_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + DEMO.read_bytes())
    assert load_run(path) == load_run(DEMO)


def test_overrides_replace_single_options() -> None:
    run = load_run(DEMO, {"seed": 7, f"{STUDY}.instrument.pixel_mm": np.float64(0.1)})
    assert (run.seed, run.studies["multilayer"].instrument.pixel_mm) == (7, 0.1)
    assert load_run(DEMO, {f"{STUDY}.instrument.shape": np.array([1024, 512]).tolist()}) == load_run(DEMO)


def test_an_override_reaches_one_study_only_even_where_studies_share_their_parts() -> None:
    run = load_run(PAPER)
    first, second, *_ = run.studies
    over = load_run(PAPER, {f"studies.{first}.instrument.background": 1.0})
    assert over.studies[first].instrument.background == 1.0
    assert over.studies[second] == run.studies[second]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({f"{STUDY}.simulate.simulatoins": 1}, "did you mean 'simulations'"),
        ({"seed.deeper": 1}, "override 'seed.deeper' must name an option"),
        ({"seed": object()}, "must hold numbers, text, lists and mappings only, got a object"),
        ({"seed": float("nan")}, "seed"),
        ({"": 1}, "is unknown"),
    ],
)
def test_wrong_overrides_are_refused(override: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_run(DEMO, override)


def test_a_run_survives_its_own_dump(demo: dict[str, Any]) -> None:
    assert parse_run(demo) == load_run(DEMO)
    assert parse_run(yaml.safe_load(yaml.safe_dump(demo))) == load_run(DEMO)


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_run(DEMO).seed = 3  # type: ignore[misc]  # that it is forbidden is what is tested


# --- anything that a slip of the finger makes of the demo: it loads, or a ConfigError says why ---

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10_000, 10_000),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from([[], {}, [[]], [None], {"a": 1}, 1e300, -0.0, 5e-324, "1e-5", "nan", "../..", "\x00", "\ud800"]),
    st.lists(st.one_of(st.integers(-100, 2000), st.floats(), st.text(max_size=3)), max_size=4),
)


def places(content: Any, path: Path_ = ()) -> Iterator[Path_]:
    if path:
        yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else []
    for key, value in items:
        yield from places(value, (*path, key))


PARSED = parse_yaml(DEMO.read_text(), DEMO.name)
PLACES = list(places(PARSED))


def loads_or_says_why(content: Any) -> None:
    try:
        assert isinstance(parse_run(content), RunConfig)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - both outcomes are right


@settings(max_examples=200, deadline=None)
@given(edits=st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=3))
def test_wrong_values_anywhere_never_end_in_another_exception(edits: list[tuple[Path_, Any]]) -> None:
    content = copy.deepcopy(PARSED)
    for path, junk in edits:
        place = content
        for part in path[:-1]:
            place = place[part] if isinstance(place, dict | list) and _holds(place, part) else {}
        if isinstance(place, dict) or (isinstance(place, list) and _holds(place, path[-1])):
            place[path[-1]] = junk
    loads_or_says_why(content)


def _holds(place: Any, part: str | int) -> bool:
    return part in place if isinstance(place, dict) else isinstance(part, int) and part < len(place)


@settings(max_examples=100, deadline=None)
@given(path=st.sampled_from(PLACES), name=st.one_of(st.none(), st.text(max_size=10)))
def test_lost_and_renamed_options_never_end_in_another_exception(path: Path_, name: str | None) -> None:
    content = copy.deepcopy(PARSED)
    place = content
    for part in path[:-1]:
        place = place[part]
    value = place.pop(path[-1])
    if name is not None and isinstance(place, dict):
        place[name] = value
    loads_or_says_why(content)


@settings(max_examples=60, deadline=None)
@given(
    cut=st.tuples(st.floats(0, 1), st.integers(0, 30)),
    text=st.one_of(st.text(max_size=8), st.text("{}[]:,-&*!|>'\"#%@`\n\t <e1", max_size=8)),
)
def test_slips_in_the_text_never_end_in_another_exception(
    tmp_path_factory: pytest.TempPathFactory, cut: tuple[float, int], text: str
) -> None:
    whole = DEMO.read_text()
    start = int(cut[0] * len(whole))
    path = tmp_path_factory.getbasetemp() / "slip.yaml"
    path.write_text(whole[:start] + text + whole[start + cut[1] :], encoding="utf-8", errors="surrogatepass")
    try:
        assert isinstance(load_run(path), RunConfig)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - both outcomes are right
