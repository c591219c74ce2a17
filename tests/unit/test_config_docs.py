"""The generated pages of the configuration, and that every option has its words and its unit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
from pydantic import BaseModel

from scatterflow.config import docs
from scatterflow.config.loading import load_run, parse_yaml

ROOT = Path(__file__).parents[2]
DEMO, PAPER = ROOT / "config" / "demo.yaml", ROOT / "config" / "paper.yaml"

UNIT_OF_NAME = {
    "_per_nm": "nm^-1",
    "_nm": "nm",
    "_mm": "mm",
    "_deg": "deg",
    "_px": "pixel",
    "_percentile": "percent",
    "_s": "s",
    "_minutes": "min",
    "_min": "min",
    "_hours": "h",
}


def test_every_section_and_option_is_explained() -> None:
    assert [path for path, section, _, _ in docs.options() if not section.__doc__] == []
    assert [path for path, _, _, field in docs.options() if not (field.description or "").strip()] == []


def test_every_option_with_a_physical_name_has_its_unit() -> None:
    wrong = []
    for path, _, name, field in docs.options():
        expected = next((unit for ending, unit in UNIT_OF_NAME.items() if name.endswith(ending)), None)
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if expected is not None and extra.get("unit") != expected:
            wrong.append((path, expected, extra.get("unit")))
    assert wrong == []


def test_a_section_that_is_left_out_is_one_that_is_left_empty() -> None:
    """Else setting one of its options would silently change the others."""
    defaults = {path: field.default for path, _, _, field in docs.options() if isinstance(field.default, BaseModel)}
    assert [path for path, section in defaults.items() if section != type(section)()] == []


def test_the_readme_has_a_row_for_every_option() -> None:
    text = docs.readme()
    for path, *_ in docs.options():
        assert f"| `{path.removeprefix('studies.<study>.')}` |" in text


def test_the_generated_files_are_in_sync() -> None:
    for path, text in docs.generate().items():
        assert (ROOT / path).read_text() == text, f"{path}: run python -m scatterflow.config.docs"


def test_check_says_in_one_line_what_is_out_of_sync(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scatterflow.config.docs", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run().returncode == 1  # no root of a repository
    (tmp_path / "pyproject.toml").touch()
    stale = run("--check")
    assert (stale.returncode, len(stale.stderr.splitlines())) == (1, 1)
    assert str(docs.README) in stale.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "pyproject.toml"], "--check wrote something"
    assert run().returncode == 0
    assert run("--check").returncode == 0
    (tmp_path / docs.SCHEMA).write_text("{}")
    assert str(docs.README) not in run("--check").stderr


def test_the_schema_accepts_what_loads_and_refuses_what_does_not() -> None:
    demo: dict[str, Any] = load_run(DEMO).model_dump(mode="json")
    study = demo["studies"]["multilayer"]
    schema = json.loads(docs.generate()[docs.SCHEMA])
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for path in (DEMO, PAPER):
        validator.validate(parse_yaml(path.read_text(), path.name))
    validator.validate(demo)
    assert not validator.is_valid(demo | {"seeed": 1})
    assert not validator.is_valid(demo | {"seed": "7"})
    wrong = study | {"instrument": study["instrument"] | {"wavelength_nm": 0}}
    assert not validator.is_valid(demo | {"studies": {"multilayer": wrong}})
