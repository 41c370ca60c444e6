"""What is said where a package that nlpkd or an extra needs is missing, too old or too new."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT
from processes import run as run_program

from nlpkd.utils.packages import how_to_install

WITHOUT = """
import importlib.abc, importlib.util, json, sys
hidden = json.loads(sys.argv[1])
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in hidden else found(name, package)
"""
CASES = {
    "an adapter": ("peft", "peft", "from nlpkd import load_teacher; load_teacher('adapter')"),
    "a search": ("optuna", "tune", "from nlpkd.pipeline.tune import tune; tune('teacher', 'rows.csv', 'rows.csv')"),
    "the plan of a search": (
        "optuna",
        "tune",
        "from nlpkd.pipeline.dry_run import plan_search; plan_search('teacher', 'rows.csv', 'rows.csv')",
    ),
    "tensorboard": (
        "tensorboard",
        "tracking",
        "from nlpkd import DistillationConfig; DistillationConfig(output_dir='out', report_to='tensorboard')",
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_a_missing_package_is_named_with_its_extra(what, tmp_path):
    package, extra, program = CASES[what]
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    words = ["-c", WITHOUT + program, json.dumps([package, "tensorboardX"])]
    done = run_program(words, tmp_path, dict(os.environ), timeout=120, fresh=True)
    assert done.returncode == 1
    assert f"ImportError: {package} is missing" in done.stderr, done.stderr
    assert how_to_install(extra) in done.stderr


def test_what_to_type_for_an_extra_is_said_in_one_place():
    assert how_to_install("try") == 'pip install "nlpkd[try]", or in a clone pip install -c constraints.txt ".[try]"'
    code = {path: path.read_text() for path in (ROOT / "nlpkd").rglob("*.py")}
    assert [path.name for path, text in code.items() if re.search(r"nlpkd\[", text)] == ["packages.py"]


def installation(folder, *requirements):
    """Metadata of an installed nlpkd that needs other packages; its own are not looked at then."""
    info = folder / "nlpkd-99.0.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        "Name: nlpkd",
        "Version: 99.0",
        *(f"Requires-Dist: {each}" for each in requirements),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def run(program, environment, tmp_path):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)


def test_unmet_requirements_are_named_with_what_is_installed_before_anything_is_imported(tmp_path):
    environment = installation(
        tmp_path, "numpy>=99", "no-such-package>=1.5", "packaging>=1", "peft>=99; extra == 'peft'"
    )
    program = (
        "import sys, nlpkd\ntry: nlpkd.make_student\nexcept ImportError as error: print(error, 'torch' in sys.modules)"
    )
    said = run(program, environment, tmp_path).stdout
    assert "numpy>=99 (" in said and "no-such-package>=1.5 (nothing is installed)" in said and "pip install" in said
    assert "pip install 'numpy>=99' 'no-such-package>=1.5'" in said
    assert "packaging" not in said and "peft" not in said and said.strip().endswith("False")


@pytest.mark.parametrize("requirements", [[], ["numpy>=1", "packaging>=1"]])
def test_met_requirements_are_not_spoken_of(tmp_path, requirements):
    environment = installation(tmp_path, *requirements)
    # Of the names that are looked up with the requirements, the one that imports least.
    done = run("import nlpkd; print(nlpkd.only_run.__name__)", environment, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "only_run"), done.stderr
