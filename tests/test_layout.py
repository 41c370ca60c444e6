"""How the package is laid out: imports point down, files stay small, importing is cheap, nothing is unpickled."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nlpkd
from nlpkd import objectives
from nlpkd.objectives.base import Objective

PACKAGE = Path(nlpkd.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
LONGEST_MODULE = 600

# From the bottom up: a module may import those of the lines above its own.
FLOORS = [
    "small_models reshaped disk lock dropout",
    "task windows interruption anchor compact shards layers capture config sampler labels loading metrics report "
    "sources demo record charts objectives.temperature compression",
    "onnx_classifier first_token ensemble",
    "frozen",
    "guard html_report columns benchmark scoring calibration objectives.base model_card teacher narrow",
    "soft_labels targets compression.record budget model_source serving",
    "compression.low_rank compression.quantize compression.vocabulary",
    "student",
    "streaming",
    "loader checkpoints",
    "data hub objectives.labels objectives.logits objectives.correlation objectives.hidden "
    "objectives.attention objectives.relation objectives.examples objectives.weighting",
    "lean augment compression.onnx compression.prune memory",
    "compression.int8 compression.litert",
    "cache prediction objectives.features objectives.adversarial objectives.together",
    "objectives.presets matching evaluation",
    "objectives teaching",
    "publishing",
    "trainer",
    "run",
    "prepare",
    "pipeline exporting plan caching tuning compare doctor compression.job",
    "verify",
    "cli.options",
    "cli.training cli.measuring cli.publishing cli.information",
    "cli",
]
FLOOR = {f"nlpkd.{name}": floor for floor, names in enumerate(FLOORS) for name in names.split()}


def imports_of(path: Path) -> set[str]:
    """The modules of nlpkd that a file imports when it runs, inside functions too, and not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    ]
    found = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative imports are not used here"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found & set(MODULES)


def code_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_module_has_its_floor():
    assert set(FLOOR) == set(MODULES) - {"nlpkd"}


@pytest.mark.parametrize("module", sorted(FLOOR))
def test_imports_only_point_down(module):
    upwards = {name for name in imports_of(MODULES[module]) if FLOOR.get(name, len(FLOORS)) >= FLOOR[module]}
    assert not upwards, f"{module} imports {sorted(upwards)}, which stand on its own floor or above"


@pytest.mark.parametrize("module", ["report", "disk"])
def test_the_report_needs_the_standard_library_only(module):
    tree = code_of(PACKAGE / f"{module}.py")
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names - {"nlpkd.disk"}} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_grows_out_of_hand(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_is_pickled_or_unpickled_and_the_library_prints_nothing(module):
    tree = code_of(MODULES[module])
    for node in ast.walk(tree):
        imported = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        imported += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve"} & set(imported)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save"), ("np", "load")}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and module != "nlpkd.cli":
            assert node.func.id != "print", f"{module}:{node.lineno}"


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(below) for below in kind.__subclasses__()))


def concrete_objectives() -> list[type[Objective]]:
    known = {c for c in subclasses(Objective) if c.__module__.startswith("nlpkd.")}
    return sorted((c for c in known if not inspect.isabstract(c)), key=lambda c: c.__name__)


@pytest.mark.parametrize("objective", concrete_objectives(), ids=lambda objective: objective.__name__)
def test_an_objective_says_what_it_takes_needs_and_comes_from(objective):
    description = inspect.getdoc(objective)
    assert "\nArgs:\n" in description and objective.__doc__ is not Objective.__doc__
    for name in inspect.signature(objective).parameters:
        assert re.search(rf"^    (\*\*)?{name}: ", description, re.MULTILINE), (
            f"{objective.__name__} does not explain {name}"
        )
    assert objective.needs and objective.needs <= objectives.base.KINDS
    assert objective.citation or objective is objectives.CrossEntropyLoss


def test_the_concrete_objectives_are_the_public_ones():
    names = {objective.__name__ for objective in concrete_objectives()}
    assert "CrossEntropyLoss" in names and names <= set(objectives.__all__)


def test_importing_nlpkd_is_cheap():
    program = "import sys, nlpkd; print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize("name", nlpkd.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    found = getattr(nlpkd, name)
    assert inspect.getdoc(found)
    assert name in dir(nlpkd)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'nlpkd' has no attribute 'Distiller'"):
        nlpkd.Distiller  # noqa: B018
