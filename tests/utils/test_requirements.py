"""What is said where a package that nlpkd needs is missing, too old or too new."""

import os
import subprocess
import sys

import pytest
from paths import ROOT


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
