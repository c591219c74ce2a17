"""Lock, conda files, profiles and Makefile agree with pyproject.toml and with what the README promises."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)")


def lock() -> dict[str, str]:
    """Version of every package in the lock."""
    lines = (ROOT / "envs" / "requirements.lock").read_text().splitlines()
    return {found[1].lower(): found[2] for line in lines if (found := PIN.match(line))}


def dependencies(extra: str | None = None) -> set[str]:
    """Names of the packages that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {re.split(r"[^A-Za-z0-9._-]", name, maxsplit=1)[0].lower() for name in names}


def test_lock_pins_every_dependency_with_a_hash_except_torch() -> None:
    text = (ROOT / "envs" / "requirements.lock").read_text()
    assert (dependencies() | dependencies("dev")) - set(lock()) == {"torch"}
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.split("\n", 2)[2])
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert re.search(r"https?:|file:|^-e |^--|(?<![\w.])/\w", text, re.MULTILINE) is None, "an index or a path leaked"


def test_lock_is_lean() -> None:
    unwanted = {name for name in lock() if name.startswith(("nvidia", "cuda", "triton", "vtk", "netcdf4"))}
    assert unwanted == set()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_conda_files_have_the_versions_of_the_lock(kind: str) -> None:
    content = yaml.safe_load((ROOT / "envs" / f"environment.{kind}.yaml").read_text())
    pip = content["dependencies"][-1]["pip"]
    pins = {found[1]: found[2] for line in pip if (found := PIN.match(re.sub(r"\[.*?\]", "", line)))}
    assert set(pins) == dependencies() - {"torch"}
    assert {name: lock()[name] for name in pins} == pins
    torch = re.search(r"^torch==(\S+)", (ROOT / "envs" / "requirements.in").read_text(), re.MULTILINE)
    assert torch is not None
    assert f"pytorch-{kind}={torch[1]}" in content["dependencies"]


@pytest.mark.parametrize("name", ["default", "slurm"])
def test_every_key_of_a_profile_is_explained(name: str) -> None:
    lines = (ROOT / "profiles" / name / "config.yaml").read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"[a-z]", line)]
    assert keys, "snakemake ignores an empty profile"
    assert [lines[number] for number in keys if not lines[number - 1].startswith("#")] == []


def test_literal_slurm_profile_is_found_from_the_root() -> None:
    link = ROOT / "slurm"
    assert link.is_symlink()
    assert link.readlink() == Path("profiles/slurm")


def test_make_lists_its_targets_and_readme_names_only_these() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^make (\S+)", listed, re.MULTILINE))
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets == phony
    named = set(re.findall(r"(?<![a-z])make ([a-z][a-z-]*)", _commands("README.md") + _commands("CONTRIBUTING.md")))
    assert {"demo", "test", "data"} <= named <= targets


def test_scatterflow_commands_in_the_documents_exist() -> None:
    named = set(
        re.findall(r"(?<!import )scatterflow ([a-z]+)", _commands("README.md") + _commands("docs/architecture.md"))
    )
    usage = subprocess.run(
        [str(Path(sys.executable).parent / "scatterflow"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    known = set(re.findall(r"^\W*([a-z]+)\s", usage, re.MULTILINE))
    assert named
    assert named <= known


def _commands(document: str) -> str:
    """Code of a document: blocks and inline."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", (ROOT / document).read_text(), re.DOTALL))
