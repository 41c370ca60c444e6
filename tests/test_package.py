"""What is published: an sdist, the wheel made of it, and what they say of themselves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.version import Version
from paths import ROOT

import nlpkd

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def run(*words: str, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=os.environ | variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel made of the sdist of this tree, which has all that it needs."""
    folder = tmp_path_factory.mktemp("package")
    source, dist = folder / "source", folder / "dist"
    shutil.copytree(ROOT / "nlpkd", source / "nlpkd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run("-c", BUILD, "build_sdist", str(dist), cwd=source)
    (packed,) = dist.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    run("-c", BUILD, "build_wheel", str(dist), cwd=folder / packed.name.removesuffix(".tar.gz"))
    return next(dist.glob("*.whl"))


def test_the_wheel_has_all_files_of_the_package_and_no_others(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        described = archive.read(metadata).decode()
    kinds = ("*.py", "*.html", "py.typed")
    assert names == {path.relative_to(ROOT).as_posix() for kind in kinds for path in (ROOT / "nlpkd").rglob(kind)}
    assert f"Version: {nlpkd.__version__}\n" in described and "# nlpkd" in described


def test_the_wheel_runs_where_it_is_installed_beside_nothing_of_this_tree(wheel, tmp_path):
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", "site", str(wheel))
    run(*pip, cwd=tmp_path)
    said = run("-m", "nlpkd", "doctor", cwd=tmp_path, PYTHONPATH="site", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert "torch" in said
    where = run("-c", "import nlpkd; print(nlpkd.__file__, nlpkd.__version__)", cwd=tmp_path, PYTHONPATH="site")
    assert where.split() == [str(tmp_path / "site/nlpkd/__init__.py"), nlpkd.__version__]


def test_version_changes_and_citation_go_together():
    written = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert written and nlpkd.__version__ == written[1]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    released = [Version(each) for each in headings if each != "Unreleased"]
    assert Version(written[1]) == released[0] and released == sorted(released, reverse=True)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() and "version" not in cited
