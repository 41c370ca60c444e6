"""The Space of the Hub that has the page to try a student on: what is in it, and how it gets there."""

from __future__ import annotations

import ast
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from hub_server import WRITE_TOKEN, HubServer, hub_environment
from processes import run as run_program
from samples import raw_rows, tried_models
from typer.testing import CliRunner

from nlpkd.cli import app
from nlpkd.hub.space import make_space
from nlpkd.models.small_models import TextCNNConfig

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason='needs Gradio: pip install "nlpkd[try]"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    return tried_models(tmp_path_factory.mktemp("try"), tokenizer)


MAKE_AND_RUN = """
import os, runpy
from pathlib import Path
from huggingface_hub import snapshot_download
from nlpkd.hub.space import make_space
print(make_space("alice/page", "alice/student", "alice/teacher@main"))
os.chdir(snapshot_download("alice/page", repo_type="space"))
page = runpy.run_path("app.py")["make_space_page"](Path("."))
parts = {each["props"].get("elem_id"): each["props"] for each in page.get_config_file()["components"]}
print(parts["given-0"]["label"], parts["given-1"]["label"], sep="\\n")
rows = parts["rows"]["samples"]
print(len(rows), "rows", "with" if any(row[1] for row in rows) else "without", "texts")
compare = next(each.fn for each in page.fns.values() if getattr(each.fn, "__name__", "") == "compare")
print(*(sorted(answer) for answer in compare("good", "")[2::3]), sep="\\n")
"""


def test_the_space_has_the_page_without_texts_and_needs_no_nlpkd(folder, tmp_path):
    # A teacher that does not say what its classes are called.
    teacher = shutil.copytree(folder / "teacher", tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    unnamed = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (teacher / "config.json").write_text(json.dumps(config | unnamed))
    with HubServer() as hub:
        hub.add_repo("alice/student", folder / "student")
        hub.add_repo("alice/teacher", teacher)
        environment = hub_environment(hub, tmp_path / "home", WRITE_TOKEN)
        done = run_program(["-c", MAKE_AND_RUN], tmp_path, environment)
        files = hub.files("alice/page", repo_type="space")
    said = f"{hub.url}/spaces/alice/page\nstudent: alice/student\nteacher: alice/teacher\n20 rows without texts\n"
    said += "['<b>neg</b>', 'pos']\n" * 2
    assert done.stdout == said, done.stderr
    assert set(files) == {".gitattributes", "README.md", "app.py", "models.json", "requirements.txt"}
    about = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert (about["sdk"], about["app_file"]) == ("gradio", "app.py")
    assert about["models"] == ["alice/student", "alice/teacher"]
    texts = raw_rows(30, seed=3)["text"]
    assert not [text for text in texts for content in files.values() if text.encode() in content]
    assert "nlpkd" not in {name.partition(".")[0] for name in imports_of(files["app.py"])}
    assert not [line for line in files["requirements.txt"].decode().split() if "nlpkd" in line or "+" in line]


def imports_of(code: bytes) -> set[str]:
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


def test_a_space_of_what_the_hub_can_not_run_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="the student .* is a path: nlpkd push it first"):
        make_space("alice/page", str(folder / "student"))
    monkeypatch.setattr("nlpkd.hub.space.load_config", lambda *_, **__: TextCNNConfig())
    with pytest.raises(ValueError, match="of the kind nlpkd_textcnn, which a Space without nlpkd can't load"):
        make_space("alice/page", "alice/cnn")


def test_the_command_refuses_to_publish_texts():
    done = CliRunner().invoke(app, ["try", "alice/student", "--space", "alice/page", "--data", "test.csv"])
    assert "a Space shows no texts of data" in str(done.exception)


MAKE = """
import json, sys
from nlpkd.hub.space import make_space
for given in json.loads(sys.argv[1]):
    try:
        print("SPACE", make_space(student="alice/student", **given))
    except (RuntimeError, ValueError) as error:
        print("ERROR", type(error).__name__, error)
"""


def test_a_space_is_sent_as_a_model_is_checked_tried_again_and_explained(folder, tmp_path):
    with HubServer() as hub:
        hub.add_repo("alice/student", folder / "student")
        (tmp_path / "page").mkdir()
        (tmp_path / "page" / "README.md").write_text("mine")
        hub.add_repo("alice/public", tmp_path / "page", repo_type="space")
        # The first one ends its push, so that the other is met by the next.
        hub.fail_next("commit", status=403, message="Forbidden")
        hub.fail_next("commit", status=503)
        given = [{"repo_id": "alice/public", "private": True}, {"repo_id": "alice/refused"}]
        given += [{"repo_id": "hidden", "private": True}, {"repo_id": "a/b/c"}]
        environment = hub_environment(hub, tmp_path / "home", WRITE_TOKEN)
        done = run_program(["-c", MAKE, json.dumps(given)], tmp_path, environment)
        public = hub.files("alice/public", repo_type="space")
        assert hub.repos["space", "alice/hidden"].private and "app.py" in hub.files("alice/hidden", repo_type="space")
        assert not hub.faults and ("space", "a/b/c") not in hub.repos
    said = [line for line in done.stdout.splitlines() if line.startswith(("SPACE", "ERROR"))]
    assert said[0].startswith("ERROR ValueError private=True, but alice/public exists and is public"), done.stderr
    assert public == {"README.md": b"mine"}, "nothing that is meant to be private was published"
    assert said[1].startswith("ERROR RuntimeError the Space was not pushed to alice/refused: the token's rights")
    assert said[2] == f"SPACE {hub.url}/spaces/alice/hidden"
    assert said[3].startswith("ERROR") and "a/b/c" in said[3] and len(said) == 4
