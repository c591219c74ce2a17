"""What tests of every kind share: the real frames, the browser, and commands run with an ordinary user's rights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[1]
# One thread per process: pytest-xdist already fills the cores, and results must not depend on their number.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


def _missing(what: str) -> NoReturn:
    """Skip with the reason; in CI nothing may be skipped, so fail there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} (CI must run this test: see .ci/run)")
    pytest.skip(what)  # the reason is `what`: a machine without frames or browser still runs everything else


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the science tests measured: by how much a comparison holds is worth knowing when it holds, too."""
    reports = [each for each in terminalreporter.stats.get("passed", []) if each.nodeid.startswith("tests/science/")]
    lines = [line for each in reports for line in each.capstdout.splitlines() if line.strip()]
    if lines:
        terminalreporter.section("measured by the science tests")
        for line in sorted(lines):
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def frames_dir() -> Path:
    """Folder of the real detector frames: SCATTERFLOW_DATA, by default ../shared/data beside the repository."""
    folder = Path(os.environ.get("SCATTERFLOW_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "p03_pilatus2m").is_dir():
        _missing(f"no real frames in {folder}: set SCATTERFLOW_DATA or run `make data`")
    return folder


@pytest.fixture(scope="session")
def as_user() -> list[str]:
    """Prefix of a command that makes file permissions bind: empty for an ordinary user, without capabilities for root.

    `subprocess.run([*as_user, "scatterflow", ...])`
    """
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        _missing("no setpriv (Debian: util-linux), so root cannot give up its rights for this test")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A headless Chromium (selenium WebDriver) that records its console and every network request."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        _missing("no chromium or chromedriver (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    profile = tmp_path_factory.mktemp("chromium")
    for argument in (
        "--headless",
        "--no-sandbox",  # root, as in CI, cannot start Chromium otherwise
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-quic",
        "--no-first-run",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield window
    finally:
        window.quit()
