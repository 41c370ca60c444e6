"""The Python of README, guides and notebook runs as it stands, and commands and options are ones that nlpkd has.

Of the commands and options that errors and docstrings name the same holds.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from chat_models import save_chat_model
from paths import ROOT
from processes import run as run_program
from samples import raw_rows, tiny_bert

from nlpkd import DistillationConfig, DistillationTrainer, EvaluationReport, objectives
from nlpkd.cli import app
from nlpkd.cli.parsing import TrainingCommand
from nlpkd.objectives import CrossEntropyLoss, Objective
from nlpkd.objectives.presets import PRESETS

GUIDES = sorted((ROOT / "recipes" / "guides").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDES]

# README's first block is the demo, which takes minutes: here on a few of its tweets, two steps, a tiny backbone.
SHORTER = {
    "load_airline_tweets()": "few(load_airline_tweets())",
    "demo_backbone()": '"runs/small-encoder"',
    '"num_train_epochs": 3': '"max_steps": 2, "teacher_check": "off"',
}
# Options of accelerate, torchrun and shuf, and the word that stands for a field of DistillationConfig.
OF_OTHERS = {"--multi_gpu", "--num_processes", "--num_machines", "--machine_rank", "--mixed_precision", "--cpu"}
OF_OTHERS |= {"--dynamo_backend", "--config_file", "--nproc_per_node", "--field_name", "--random-source"}
# Of hf.
OF_OTHERS |= {"--local-dir"}
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
FEW = """
def few(splits):
    for name in splits:
        splits[name] = splits[name].shuffle(seed=0).select(range(40))
    return splits

"""


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code of a page in one language; "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


def test_the_python_of_readme_and_guides_runs_in_order(tmp_path, make_rows, settings, tokenizer):
    teacher = tiny_bert(layers=6, seed=1)
    DistillationTrainer(
        model=teacher, objectives=[CrossEntropyLoss()], train_dataset=make_rows(300, seed=5),
        processing_class=tokenizer, args=settings(num_train_epochs=6, learning_rate=5e-3),
    ).train()  # fmt: skip
    teacher.save_pretrained(tmp_path / "runs/quickstart/teacher")
    tokenizer.save_pretrained(tmp_path / "runs/quickstart/teacher")
    rows = raw_rows(300, seed=7).to_pandas()
    rows.rename(columns={"text": "review", "label": "stars"}).to_csv(tmp_path / "reviews.csv", index=False)
    # Those of the section without labels: texts, a chat model, a small encoder, and named validation rows.
    raw_rows(40, seed=8).remove_columns("label").to_csv(tmp_path / "texts.csv")
    raw_rows(20, seed=9).to_pandas().replace({"label": {0: "neg", 1: "pos"}}).to_csv(tmp_path / "dev.csv", index=False)
    save_chat_model(tmp_path / "runs/chat-model")
    tiny_bert(layers=3).save_pretrained(tmp_path / "runs/small-encoder")
    tokenizer.save_pretrained(tmp_path / "runs/small-encoder")
    readme = blocks(ROOT / "README.md", "python")
    # A guide goes on where the one before it in this list ended.
    pages = ("data", "objectives", "export", "publish")
    guides = [blocks(ROOT / f"recipes/guides/{name}.md", "python") for name in pages]
    assert [len(readme), *map(len, guides)] == [3, 1, 3, 2, 1]
    assert sum(len(blocks(page, "python")) for page in PAGES) == 10
    for written, shorter in SHORTER.items():
        assert written in readme[0]
        readme[0] = readme[0].replace(written, shorter)
    notebook = cells_of(ROOT / "recipes/quickstart.ipynb")
    for written, shorter in SHORTER.items():
        assert any(written in cell for cell in notebook)
        notebook = [cell.replace(written, shorter) for cell in notebook]
    text = FEW + "\n".join([*readme, *(block for page in guides for block in page), *notebook])
    (tmp_path / "readme.py").write_text(text)
    done = run_program(["readme.py"], tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "The student keeps" in done.stdout and (tmp_path / "runs/student/report.json").exists()
    unlabelled = EvaluationReport.load(tmp_path / "runs/no-labels")
    assert (tmp_path / "whole.csv").read_text() == (tmp_path / "reviews.csv").read_text()
    assert "calls: 1" in done.stdout and {"teacher", "student"} <= unlabelled.candidates.keys()
    assert (tmp_path / "runs/notebook/student/report.md").exists() and done.stdout.count("The student keeps") == 3
    assert "eval_agreement" in done.stdout and "same start" in done.stdout and "score" in done.stdout


def cells_of(notebook: Path) -> list[str]:
    """The code of a notebook's cells, in order; one that was run would show what it printed elsewhere."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    return ["".join(cell["source"]) for cell in cells]


def commands(page: Path) -> list[list[str]]:
    """The commands of a page in its blocks without a language, a list of words each."""
    lines = "\n".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_each_pipeline_that_a_page_shows_cuts_texts_longer_than_the_model_reads():
    shown = [code for page in PAGES for code in blocks(page, "python") if 'pipeline("text-classification"' in code]
    assert len(shown) == 2 and all("truncation=True)" in code for code in shown)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_of_a_page_is_one_that_nlpkd_takes(page):
    known = typer.main.get_command(app).commands
    for words in [each for each in commands(page) if each[0] == "nlpkd"]:
        known[words[1]].make_context(words[1], words[2:])


def test_each_option_that_a_page_names_is_one_of_a_command_or_a_recipe():
    commands_of_nlpkd = typer.main.get_command(app).commands.values()
    known = {
        option for each in commands_of_nlpkd for param in each.params for option in param.opts + param.secondary_opts
    }
    known |= {f"--{each.name}" for each in fields(DistillationConfig)}
    recipes = "".join(path.read_text() for path in (ROOT / "recipes").glob("*.py"))
    known |= {f"--{name}" for name in re.findall(r"^    (\w+): ", recipes, flags=re.MULTILINE)}
    benchmarks = "".join(path.read_text() for path in (ROOT / "tests/benchmarks").glob("*.py"))
    known |= set(re.findall(r'"(--[\w-]+)"', recipes + benchmarks))
    known = {each.replace("_", "-") for each in known | OF_OTHERS}
    pages = [*PAGES, ROOT / "recipes/README.md", ROOT / "model_cards/README.md"]
    code = "\n".join(part for page in pages for part in re.findall(r"```.*?```|`[^`]+`", page.read_text(), re.DOTALL))
    named = set(OPTION.findall(code))
    assert {each for each in named if each.replace("_", "-") not in known} == set()


def texts_of(module: Path) -> list[str]:
    """The texts in a module's code, its docstrings among them; X stands for what is filled in."""
    found, parts = [], set()
    # From the outside in, so that a text is met before its parts.
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts.update(map(id, node.values))
            found.append("".join(each.value if isinstance(each, ast.Constant) else "X" for each in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            found.append(node.value)
    return found


def advised(text: str) -> list[list[str]]:
    """The commands of nlpkd that a text names, each as its words: in backticks, as a paragraph, or "run nlpkd X"."""
    paragraphs = map(str.strip, re.split(r"\n\s*\n", text))
    shown = [each for each in paragraphs if " --" in each and "`" not in each]
    shown += re.findall(r"`+([^`]+)`+", text) + re.findall(r"(?:[Rr]un |\()(nlpkd [a-z][a-z-]*)", text)
    return [words[1:] for each in shown if (words := each.split())[:1] == ["nlpkd"] and len(words) > 1]


def flags_of(command: typer.core.TyperCommand) -> set[str]:
    """The options of a command with dashes, the fields of `DistillationConfig` where it takes them among them."""
    own = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    taken = [f"--{each.name}" for each in fields(DistillationConfig)] if isinstance(command, TrainingCommand) else []
    return {flag.replace("_", "-") for flag in (*own, *taken, "--help", "--set")}


MODULES = sorted((ROOT / "nlpkd").rglob("*.py"))


def test_each_command_that_an_error_a_docstring_or_a_page_names_has_these_options():
    known = typer.main.get_command(app).commands
    pages = [*PAGES, ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *(ROOT / "recipes").glob("*.md")]
    texts = [(page, re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)) for page in pages]
    texts += [(module, text) for module in MODULES for text in texts_of(module)]
    wrong, checked = [], set()
    for place, text in texts:
        for name, *words in advised(text):
            flags = {word.split("=")[0].rstrip(".,;)").replace("_", "-") for word in words if word[:2] == "--"}
            lacking = flags - flags_of(known[name]) if name in known else {name}
            wrong += [(place.name, name, lacking)] if lacking else []
            checked.add(name)
    assert wrong == []
    assert len(checked) > 12, "few were found"


def test_each_option_that_an_error_or_a_docstring_names_is_one_of_a_command():
    known = {flag for command in typer.main.get_command(app).commands.values() for flag in flags_of(command)}
    known |= {each.replace("_", "-") for each in OF_OTHERS} | {"--version"}
    # Names that begin so are variables of style sheets there.
    modules = [module for module in MODULES if module.name != "charts.py"]
    named = [(module.name, flag) for module in modules for text in texts_of(module) for flag in OPTION.findall(text)]
    assert [each for each in named if each[1].replace("_", "-") not in known] == []
    assert len(named) > 100, "few were found"


def test_each_recipe_and_target_that_a_page_names_is_there():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for words in [each for page in PAGES for each in commands(page)]:
        assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/")), words
        assert words[0] != "make" or words[1] in targets, words


def test_readme_counts_presets_and_objectives_as_they_are():
    kinds = [kind for name in objectives.__all__ if inspect.isclass(kind := getattr(objectives, name))]
    concrete = [kind for kind in kinds if issubclass(kind, Objective) and not inspect.isabstract(kind)]
    counted = f"There are {len(PRESETS)} presets and {len(concrete)} objectives"
    assert counted in " ".join((ROOT / "README.md").read_text().split())


def test_readme_is_short_and_each_guide_starts_with_a_command():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    readme = (ROOT / "README.md").read_text()
    for page in GUIDES:
        assert re.match(r"# [^\n]+\n\n```\n", page.read_text()), page.name
        assert f"recipes/guides/{page.name}" in readme, page.name
