"""Every Markdown file and notebook, as GitHub shows it: links lead somewhere, code fits the page, badges are true."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest
from paths import ROOT

FILES = sorted(
    path for place in ("*", "recipes/**/*", "model_cards/*", "tests/**/*") for path in ROOT.glob(f"{place}.md")
)
NOTEBOOKS = sorted((ROOT / "recipes").glob("*.ipynb"))
# Cards are written by nlpkd, with the command of their run on one line.
CARDS = [path for path in FILES if path.parent.name == "model_cards" and path.name != "README.md"]

# A column of GitHub's page holds 97 characters of code.
CODE_WIDTH = 97
FENCED = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)


def text_of(path: Path) -> str:
    """The text of a page without its code."""
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
        return "\n\n".join("".join(cell["source"]) for cell in cells)
    return FENCED.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives the headings of a page: a repeated heading gets a number."""
    titles = re.findall(r"^#{1,6} +(.*?)[ #]*$", text_of(path), flags=re.MULTILINE)
    shown = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    names = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in shown]
    seen: Counter[str] = Counter()
    found = set()
    for name in names:
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def links(path: Path) -> list[str]:
    """Where the links and pictures of a page lead, those of badges too."""
    text = re.sub(r"`[^`\n]*`", "", text_of(path))
    return re.findall(r"\]\(\s*([^)\s]+)", text) + re.findall(r"(?:src|href|srcset)=\"([^\"]+)\"", text)


@pytest.mark.parametrize("page", [*FILES, *NOTEBOOKS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_link_leads_to_a_file_of_the_project_and_to_a_heading_of_it(page):
    for target in links(page):
        if target.startswith("https://"):
            continue
        name, _, heading = unquote(target).partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists() and found.is_relative_to(ROOT), target
        assert not heading or heading in anchors(found), f"{target}: {sorted(anchors(found))}"


def test_a_repeated_heading_is_linked_by_its_number(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `code`, and [more](x.md)\n\n## Again\n\n```\n# no heading\n```\n\n## Again\n")
    assert anchors(page) == {"a-code-and-more", "again", "again-1"}


@pytest.mark.parametrize(
    "page", [path for path in FILES if path not in CARDS], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_code_fits_the_width_that_github_has_for_it(page):
    lines = [line for block in FENCED.findall(page.read_text()) for line in block.splitlines()]
    assert [line for line in lines if len(line) > CODE_WIDTH] == []


def test_badges_say_what_the_package_says_of_itself():
    project = dict(re.findall(r'^([\w-]+) = "(.*)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))
    badges = dict(
        re.findall(r"\[!\[([^\]]+)\]\(https://img\.shields\.io/badge/([^)]+)\)\]", (ROOT / "README.md").read_text())
    )
    least = project["requires-python"].removeprefix(">=")
    assert badges == {
        f"License: {project['license']}": f"license-{project['license'].replace('-', '--')}-blue",
        f"Python {least} or later": f"python-%E2%89%A5_{least}-blue",
    }
