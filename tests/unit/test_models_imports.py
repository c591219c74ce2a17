"""What `scatterflow.models` imports: a job of one kind need not wait for the libraries of the others."""

import json
import subprocess
import sys

from scatterflow import models

CODE = """
import json, sys
found = []
for module in ("scatterflow.models", "scatterflow.models.frames", "scatterflow.models.particlemodel"):
    __import__(module)
    found.append([name for name in ("torch", "nflows", "lightning") if name in sys.modules])
print(json.dumps(found))
"""


def test_a_kind_imports_what_it_needs() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], ["torch"], ["torch", "nflows"]]


def test_public_names_are_there() -> None:
    assert dir(models) == sorted(models.__all__)
    homes = {name: getattr(models, name).__module__ for name in models.__all__}
    assert all(home == "scatterflow.models" or home.startswith("scatterflow.models.") for home in homes.values())
    assert not hasattr(models, "nothing")
