"""How the package is laid out: imports point down, files stay small, importing is cheap, nothing is unpickled."""

import ast
import inspect
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
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
LONGEST_MODULE = 400
FULLEST_ROOM = 13
READABLE_ALONE = [
    *("evaluation/report", "evaluation/report_text", "evaluation/records", "evaluation/origin"),
    *("evaluation/figures/reading", "evaluation/figures/damage", "evaluation/figures/names"),
]

# From the bottom up: a room may import those before its own. Inside a room modules form no circle.
ROOMS = [
    *("utils", "tasks", "config", "data", "models", "augment", "objectives", "teachers", "evaluation", "labelling"),
    *("serving", "compression", "students", "hub", "training", "pipeline", "comparison", "cli", "__main__"),
]


def imports_of(path: Path) -> set[str]:
    """The modules of nlpkd that a file imports: inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(code_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative imports are not used here"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found & set(MODULES)


def room_of(module: str) -> str:
    return module.split(".")[1]


def code_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_module_is_in_a_room():
    assert {room_of(module) for module in MODULES if module != "nlpkd"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_can_be_overlooked(room):
    modules = [path for path in PACKAGE.glob(f"{room}/*.py") if path.stem != "__init__"]
    assert len(modules) <= (20 if room == "objectives" else FULLEST_ROOM)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"nlpkd"}))
def test_imports_between_rooms_only_point_down(module):
    upwards = {
        name
        for name in imports_of(MODULES[module]) - {"nlpkd"}
        if ROOMS.index(room_of(name)) > ROOMS.index(room_of(module))
    }
    assert not upwards, f"{module} imports {sorted(upwards)}, of a room above its own"


def test_modules_import_each_other_in_no_circle():
    # A package's `__init__` gives names of its modules; who imports it needs them all.
    graph = {module: imports_of(path) - {module, "nlpkd"} for module, path in MODULES.items() if module != "nlpkd"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {error.args[1]}")


@pytest.mark.parametrize("module", [*READABLE_ALONE, "utils/disk/files", "utils/disk/full_disk", "utils/disk/links"])
def test_the_report_needs_the_standard_library_only(module):
    tree = code_of(PACKAGE / f"{module}.py")
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"nlpkd.utils.disk.files", "nlpkd.utils.disk.full_disk", "nlpkd.utils.disk.links", "nlpkd.evaluation"}
    allowed |= {f"nlpkd.{module.replace('/', '.')}" for module in READABLE_ALONE}
    assert {name.split(".")[0] for name in names - allowed} <= set(sys.stdlib_module_names)


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
    assert objective().needs and objective().needs <= objectives.base.KINDS
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
