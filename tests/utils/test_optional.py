"""A package of an extra that is missing is named with its extra, before anything is computed."""

from __future__ import annotations

import json
import os
import re

import pytest
from paths import ROOT
from processes import run as run_program

from nlpkd.utils.optional import how_to_install

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
    assert [path.name for path, text in code.items() if re.search(r"nlpkd\[", text)] == ["optional.py"]
