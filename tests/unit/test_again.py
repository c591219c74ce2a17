"""What .ci/run does with a few failed tests: once more, each by its name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAKY = """
from pathlib import Path

def test_late():
    flag = Path("flag")
    was = flag.exists()
    flag.touch()
    assert was

def test_good():
    pass
"""
BAD = "\n".join(f"def test_{number}():\n    assert False\n" for number in range(4))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("text", "first", "again", "said"),
    [(FLAKY, 1, 0, "1 failed"), (BAD, 1, 1, "4 failed"), ("def test_good():\n    pass\n", 0, 1, "0 failed")],
)
def test_few_failed_tests_run_once_more(tmp_path: Path, text: str, first: int, again: int, said: str) -> None:
    (tmp_path / "test_some.py").write_text(text)
    assert run(tmp_path, "pytest", "-q", "--rootdir", str(tmp_path)).returncode == first
    done = run(tmp_path, "tests.again", "-q", "--rootdir", str(tmp_path))
    assert done.returncode == again, done.stdout + done.stderr
    assert said in done.stdout
    assert ("1 passed" in done.stdout) == (again == 0)
