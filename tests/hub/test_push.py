"""Save, push and pull against a Hub on loopback, over real HTTP, each process fresh: HF_ENDPOINT is read at import."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from hub_server import READ_TOKEN, WRITE_TOKEN, HubServer, hub_environment, hub_fixture  # noqa: F401
from huggingface_hub import ModelCard, metadata_load, parse_eval_result_entries
from huggingface_hub.utils import filter_repo_objects
from processes import run as run_program
from safetensors.torch import load_file
from samples import tiny_onnx, tiny_report
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from nlpkd.hub.model_card import build_model_card
from nlpkd.hub.push import PUSH_ALLOW_PATTERNS, files_to_push, push_student
from nlpkd.hub.saving import save_student
from nlpkd.utils.disk.files import digest_of

PUSH = """
import json, logging, shlex, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from nlpkd.cli import app
from nlpkd import push_student
advice = []
for arguments in json.loads(sys.argv[1]):
    try:
        if isinstance(arguments, int):
            app(shlex.split(advice[arguments])[1:], standalone_mode=False)
        else:
            print("URL", push_student(**arguments))
    except (RuntimeError, ValueError) as error:
        logging.exception("push failed")
        advice.append(str(error).partition("to finish: ")[2])
        print("ERROR", type(error).__name__, error)
"""

LOAD = """
import json, sys
import torch
from datasets import load_dataset
from huggingface_hub import snapshot_download
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
first, last, data_revision = sys.argv[1:]
model, info = AutoModelForSequenceClassification.from_pretrained("alice/student", output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained("alice/student")
torch.save(model.state_dict(), "state.pt")
old = AutoModelForSequenceClassification.from_pretrained("alice/student", revision=first)
branch = AutoModelForSequenceClassification.from_pretrained("alice/student", revision="v2")
data = load_dataset("alice/reviews", data_dir="data")
at = load_dataset("lab/tables", revision=data_revision)
print(json.dumps({
    "keys": sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]])),
    "tokens": tokenizer("good film")["input_ids"],
    "label": pipeline("text-classification", model="alice/student")("good film")[0]["label"],
    "old": float(old.classifier.bias[0]), "branch": float(branch.classifier.bias[0]),
    "tokenizer_at": len(AutoTokenizer.from_pretrained("alice/student", revision=first)),
    "rows": {split: data[split].to_list() for split in data},
    "parquet": {split: at[split].to_list() for split in at},
    "snapshot": snapshot_download("alice/student", revision=last),
}))
"""


def python(hub: HubServer, home: Path, script: str, *arguments: str, token: str | None = None) -> str:
    """Run a script in a fresh process, and return all it printed; the canary tokens must not be in it."""
    home.mkdir(exist_ok=True)
    done = run_program(["-c", script, *arguments], home, hub_environment(hub, home, token), timeout=120)
    assert done.returncode == 0, done.stderr
    for secret in (WRITE_TOKEN, READ_TOKEN):
        assert secret not in done.stdout + done.stderr
    return done.stdout


def push(hub: HubServer, home: Path, *calls: dict[str, Any] | int, token: str | None = WRITE_TOKEN) -> list[str]:
    """Push in a fresh process, and return a line for each call: `URL ...` or `ERROR ...`.

    A number runs the command that ends the error of that number, which prints the address alone.
    """
    out = python(hub, home, PUSH, json.dumps(calls, default=str), token=token)
    return [line for line in out.splitlines() if line.startswith(("URL ", "ERROR ", hub.url))]


def tiny_model(bias: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    config.id2label, config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    model = BertForSequenceClassification(config)
    model.classifier.bias.data = torch.tensor([bias, bias])
    return model


def tiny_tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """Give a run's directory: a student with its report, and beside it all that must never be published."""
    directory = save_student(tiny_model(), tmp_path / "student", tiny_tokenizer())
    tiny_report().save(directory)
    for name in ("training_args.bin", "optimizer.pt", "model.pkl", "objectives.safetensors", "train.csv", ".env"):
        (directory / name).write_bytes(b"secret")
    (directory / "onnx").mkdir()
    for name in ("model.onnx", "model_int8.onnx", "secret.txt", "optimizer.pt"):
        (directory / "onnx" / name).write_bytes(b"graph")
    (directory / "onnx" / "export.json").write_text(json.dumps({"weights_sha256": {}, "files": {}}))
    for folder in ("checkpoint-5", "baseline"):
        shutil.copytree(directory, directory / folder, ignore=shutil.ignore_patterns("checkpoint-*", "baseline"))
    return directory


PUBLISHED = {
    "onnx/model.onnx",
    "onnx/model_int8.onnx",
    "onnx/export.json",
    "README.md",
    "config.json",
    "model.safetensors",
    "report.json",
    "report.md",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_pushed_student_loads_by_id_bit_equal_and_data_loads_by_id(
    hub: HubServer, student: Path, tmp_path: Path
) -> None:
    build_model_card(tiny_report(), model_name="student").save(student / "README.md")
    (line,) = push(hub, tmp_path / "home", {"directory": student, "repo_id": "alice/student"})
    first = hub.commits("alice/student")[-1].sha
    assert line == f"URL {hub.url}/alice/student/commit/{first}"
    assert set(hub.files("alice/student")) == PUBLISHED | {".gitattributes"}
    assert b"secret" not in b"".join(hub.files("alice/student").values())
    assert b"/home/canary" not in b"".join(hub.files("alice/student").values())
    assert str(tmp_path).encode() not in b"".join(hub.files("alice/student").values())
    card = metadata_load(student / "README.md")
    assert card is not None and hub.files("alice/student")["README.md"] == (student / "README.md").read_bytes()
    (result,) = card["model-index"][0]["results"]
    assert result["dataset"] == {"type": "alice/reviews", "name": "alice/reviews", "split": "test"}
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"accuracy": 0.8, "f1": 0.75}
    assert ModelCard.load(student / "README.md").data.model_name == "alice/student"
    assert 'nlpkd.load("alice/student")' in (student / "README.md").read_text(), "exported after the card was written"

    save_student(tiny_model(bias=1.0), student, tiny_tokenizer())
    calls = {"directory": student, "repo_id": "alice/student"}
    push(hub, tmp_path / "home", calls, calls | {"revision": "v2"})
    assert [len(hub.commits("alice/student"))] == [3], "creation, first push, second push; the branch v2 has no change"
    state = load_file(student / "model.safetensors")

    tables = tmp_path / "tables"
    (tables / "data").mkdir(parents=True)
    (tables / "data" / "train.csv").write_text("text,label\ngood film,1\nbad film,0\n")
    (tables / "data" / "test.csv").write_text("text,label\nfilm,0\n")
    hub.add_repo("alice/reviews", tables, "dataset")
    rows = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
    columns = tmp_path / "columns"
    columns.mkdir()
    Dataset.from_list(rows).to_parquet(columns / "train.parquet")
    old_data = hub.add_repo("lab/tables", columns, "dataset")
    Dataset.from_list(rows[:1]).to_parquet(columns / "train.parquet")
    hub.add_repo("lab/tables", columns, "dataset")

    last = hub.commits("alice/student")[-1].sha
    found = json.loads(python(hub, tmp_path / "fresh", LOAD, first, last, old_data).splitlines()[-1])
    loaded = torch.load(tmp_path / "fresh" / "state.pt", weights_only=True)
    assert found["keys"] == [] and set(state) == set(loaded)
    assert all(torch.equal(state[name], loaded[name]) for name in state)
    assert found["tokens"] == [2, 5, 7, 3] and found["label"] in ("bad", "good") and found["tokenizer_at"] == 8
    assert (found["old"], found["branch"]) == (0.0, 1.0)
    train = [{"text": "good film", "label": 1}, {"text": "bad film", "label": 0}]
    assert found["rows"] == {"train": train, "test": [{"text": "film", "label": 0}]}
    assert found["parquet"] == {"train": rows}
    snapshot = Path(found["snapshot"])
    pulled = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert pulled == PUBLISHED | {".gitattributes"}


EVAL_RESULTS = """
import dataclasses, sys
from pathlib import Path
from samples import tiny_report
from nlpkd.hub.eval_results import write_eval_results
report = tiny_report()
for name in sys.argv[1:]:
    name, _, config = name.partition(":")
    data = dataclasses.replace(report.run.data, name=name, config=config or None)
    run = dataclasses.replace(report.run, data=data)
    print("WROTE", write_eval_results(dataclasses.replace(report, run=run), Path("."), "alice/student"))
"""


def test_the_figure_of_a_benchmark_of_the_hub_comes_along_and_no_other(
    hub: HubServer, student: Path, tmp_path: Path
) -> None:
    def benchmark(name: str, *tasks: dict[str, str]) -> None:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "eval.yaml").write_text(yaml.safe_dump({"name": name, "tasks": list(tasks)}))
        hub.add_repo(name, folder, "dataset")

    test = {"id": "reviews_test", "config": "default", "split": "test"}
    benchmark("alice/reviews", test | {"id": "reviews_dev", "split": "dev"}, test)
    benchmark("alice/twice", test, test | {"id": "again"})
    benchmark("alice/film", {"id": "film", "config": "film", "split": "test"})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/eval.yaml").write_text("a: [")
    hub.add_repo("alice/broken", tmp_path / "broken", "dataset")
    hub.add_repo("alice/plain", student, "dataset")

    (line,) = push(hub, tmp_path / "home", {"directory": student, "repo_id": "student"})
    assert line.startswith("URL "), line
    files = hub.files("alice/student")
    assert set(files) == PUBLISHED | {".gitattributes", ".eval_results/reviews.yaml"}
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/reviews.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("alice/reviews", "reviews_test", 0.8)
    assert (entry.source_url, entry.notes) == (f"{hub.url}/alice/student", "accuracy")

    names = ["alice/film:film", "alice/film", "alice/twice", "alice/broken", "alice/plain", "alice/nowhere", "./a.csv"]
    out = python(hub, tmp_path / "home", EVAL_RESULTS, *names, token=WRITE_TOKEN)
    wrote = [line.partition(" ")[2] for line in out.splitlines() if line.startswith("WROTE")]
    assert wrote == [".eval_results/film.yaml", *["None"] * 6]


def test_faults_are_retried_and_leave_one_commit(hub: HubServer, student: Path, tmp_path: Path) -> None:
    hub.fail_next("commit", status=500, times=2)
    (line,) = push(hub, tmp_path / "home", {"directory": student, "repo_id": "alice/student"})
    assert line.startswith("URL ") and len(hub.commits("alice/student")) == 2
    hub.fail_next("commit", "drop")
    (line,) = push(hub, tmp_path / "home", {"directory": student, "repo_id": "alice/dropped"})
    assert line.startswith("URL ") and len(hub.commits("alice/dropped")) == 2
    assert b'model="alice/dropped"' in hub.files("alice/dropped")["README.md"], "the unedited card names its new home"
    hub.fail_next("commit", "lose")
    hub.fail_next("create", "drop")
    lost = {"directory": student, "repo_id": "alice/lost"}
    lines = push(hub, tmp_path / "home", lost, lost)
    assert [line.startswith("URL ") for line in lines] == [True, True] and len(hub.commits("alice/lost")) == 2
    assert set(hub.files("alice/lost")) == PUBLISHED | {".gitattributes"}


def test_uploads_that_are_slow_or_dropped_arrive_whole_and_one_that_fails_for_good_is_told(
    hub: HubServer, student: Path, tmp_path: Path
) -> None:
    shutil.rmtree(student / "onnx")
    call = {"directory": student, "repo_id": "alice/student"}
    hub.fail_next("put", status=400, message="the content does not have the checksum")
    hub.fail_next("put", "drop")
    hub.fail_next("put", "slow", seconds=1.0)
    hub.fail_next("commit", "slow", seconds=0.5)
    lines = push(hub, tmp_path / "home", call, call)
    assert lines[0].startswith("ERROR RuntimeError") and "status 400" in lines[0] and "Nothing is lost" in lines[0]
    assert lines[1].startswith("URL ") and not hub.faults
    assert [method for method, path in hub.requests if path.startswith("/lfs/")] == ["PUT"] * 3
    assert hub.files("alice/student")["model.safetensors"] == (student / "model.safetensors").read_bytes()
    assert len(hub.commits("alice/student")) == 2


def test_lasting_server_error_and_refusals_say_what_happened_and_how_to_finish(
    hub: HubServer,
    student: Path,
    tmp_path: Path,
) -> None:
    hub.add_repo("bob/theirs", student)
    hub.add_repo("alice/student", student / "baseline")
    hub.fail_next("commit", status=500, times=3)
    hub.fail_next("commit", status=429)
    hub.fail_next("commit", status=412)
    call = {"directory": student, "repo_id": "alice/student"}
    lines = push(
        hub,
        tmp_path / "home",
        call,
        call,
        call,
        call | {"token": READ_TOKEN},
        call | {"token": "hf_wrong"},
        call | {"repo_id": "bob/theirs"},
        call | {"private": True},
        call | {"repo_id": "alice/new", "revision": "v1"},
    )
    lines += push(hub, tmp_path / "other", call, token=None)
    expected = [
        "status 500",
        "rate limit",
        "somebody else committed",
        "read-only",
        "did not accept the token",
        "the name belongs to somebody else: the token is of alice, lab, and not of bob",
        "exists and is public",
        "",
        "there is no token",
    ]
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert words in line
        if line.startswith("ERROR RuntimeError"):
            assert f"nlpkd push {student} --repo-id " in line and str(student) in line.split("Nothing is lost")[1]
    assert [line.split()[1] for line in lines if line.startswith("ERROR")] == ["RuntimeError"] * 6 + [
        "ValueError",
        "RuntimeError",
    ]
    posts = [path for method, path in hub.requests if method == "POST" and "/commit/" in path]
    assert posts.count("/api/models/alice/student/commit/main") == 3 + 1 + 1, "4xx are not retried"
    assert len(hub.commits("alice/student")) == len(hub.commits("bob/theirs")) == 1
    assert set(hub.files("alice/new", "v1")) == PUBLISHED | {".gitattributes"}
    assert set(hub.files("alice/new")) == {".gitattributes"}


def test_refusals_are_told_apart_and_the_advice_keeps_every_choice(
    hub: HubServer,
    student: Path,
    tmp_path: Path,
) -> None:
    shutil.rmtree(student / "onnx")
    folder = student.rename(tmp_path / "my student")
    storage = "Private repository storage limit reached, please upgrade your plan"
    # Each fault ends its push, so that it meets no other one.
    cases: list[tuple[str, int, str, dict[str, Any], str, str]] = [
        ("create", 500, "", {"private": True}, "status 500", " --private"),
        ("lfs", 402, "", {}, "the account's storage or plan does not allow it", ""),
        ("lfs", 403, storage, {"revision": "v2"}, f"plan (the server said: {storage})", " --revision v2"),
        ("put", 413, "", {}, "a file is larger than the Hub takes", ""),
        (
            "put",
            403,
            "",
            {},
            f"localhost:{hub.url.rpartition(':')[2]}, which stores files for the Hub, refused one",
            "",
        ),
        ("commit", 403, "Forbidden", {}, "the token's rights do not cover writing to alice/", ""),
        ("commit", 409, "", {"private": False, "create_pr": True}, "in conflict", " --no-private --create-pr"),
    ]
    calls: list[dict[str, Any] | int] = []
    for number, (action, status, message, options, _, _) in enumerate(cases):
        hub.fail_next(action, status=status, message=message, times=3 if status == 500 else 1)
        calls.append({"directory": folder, "repo_id": f"alice/r{number}", **options})
    lines = push(hub, tmp_path / "home", *calls, 0)
    assert len(lines) == len(cases) + 1 and not hub.faults
    for number, (line, (*_, words, flags)) in enumerate(zip(lines, cases, strict=False)):
        assert line.startswith("ERROR RuntimeError") and words in line and "somebody else" not in line, line
        said = f"everything is in {folder}; to finish: nlpkd push '{folder}' --repo-id alice/r{number}{flags}"
        assert line.endswith(said), line
    assert lines[-1] == f"{hub.url}/alice/r0/commit/{hub.commits('alice/r0')[-1].sha}"
    assert hub.repos["model", "alice/r0"].private


@pytest.mark.parametrize("action", ["create", "preupload", "lfs", "commit"])
def test_a_web_page_in_place_of_an_answer_is_told_as_a_log_in(action, hub: HubServer, student: Path, tmp_path: Path):
    hub.fail_next(action, "page", times=3)
    (line,) = push(hub, tmp_path / "home", {"directory": student, "repo_id": "alice/student"})
    assert line.startswith("ERROR RuntimeError") and "what answered is not the Hub, perhaps this network's" in line
    assert line.endswith(f"to finish: nlpkd push {student} --repo-id alice/student")


def test_private_repo_stays_private_and_a_pull_request_is_opened_once(
    hub: HubServer,
    student: Path,
    tmp_path: Path,
) -> None:
    (student / "README.md").write_text("---\nlicense: mit\n---\n\nMy own words.\n")
    call = {"directory": student, "repo_id": "lab/student", "private": True, "create_pr": True}
    hub.fail_next("commit", "lose")
    lines = push(hub, tmp_path / "home", call, call)
    assert lines[0].startswith("ERROR RuntimeError") and lines[1] == f"URL {hub.url}/lab/student/discussions/2"
    repo = hub.repos["model", "lab/student"]
    assert repo.private and set(repo.branches) == {"main", "refs/pr/1", "refs/pr/2"}
    assert b"My own words." in hub.files("lab/student", "refs/pr/2")["README.md"]


def test_saved_student_is_safetensors_and_replaces_what_was_there(tmp_path: Path) -> None:
    directory = tmp_path / "student"
    directory.mkdir()
    (directory / "model-00001-of-00002.safetensors").write_bytes(b"old shard")
    (directory / "keep.txt").write_text("mine")
    assert save_student(tiny_model(), directory, tiny_tokenizer()) == directory
    names = {path.name for path in directory.iterdir()}
    written = {"config.json", "model.safetensors", "checksums.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == written | {"keep.txt"}
    saved = load_file(directory / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in tiny_model().state_dict().items())


def test_failure_while_saving_leaves_the_previous_student_whole(tmp_path: Path) -> None:
    directory = save_student(tiny_model(), tmp_path / "student", tiny_tokenizer())
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    class FullDisk:
        def save_pretrained(self, folder: str) -> None:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_student(tiny_model(bias=1.0), directory, FullDisk())
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_model_that_cannot_save_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Linear has no save_pretrained"):
        save_student(torch.nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_directory_without_a_whole_student_is_refused(student: Path, missing: str) -> None:
    (student / missing).unlink()
    with pytest.raises(ValueError, match=f"no whole student: {missing}"):
        push_student(student, "alice/student")


def test_missing_shard_truncated_weights_and_bad_arguments_are_refused(student: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="create_pr"):
        push_student(student, "alice/student", revision="v1", create_pr=True)
    with pytest.raises(ValueError, match="a/b/c"):
        push_student(student, "a/b/c")
    with pytest.raises(ValueError, match="no directory"):
        push_student(tmp_path / "nowhere", "alice/student")
    whole = (student / "model.safetensors").read_bytes()
    (student / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="damaged"):
        push_student(student, "alice/student")
    (student / "model.safetensors").rename(student / "model-00001-of-00002.safetensors")
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (student / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is missing"):
        push_student(student, "alice/student")


def test_allow_patterns_take_shards_and_onnx_and_no_state() -> None:
    wanted = ["model-00001-of-00002.safetensors", "model.onnx", "onnx/model_int8.onnx", "merges.txt", "vocab.txt"]
    refused = ["objectives.safetensors", "training_args.bin", "baseline/model.safetensors", "checkpoint-1/config.json"]
    refused += ["onnx/config.json", "scheduler.pt", "rng_state.pth", "trainer_state.json", "train.jsonl"]
    assert list(filter_repo_objects(wanted + refused, allow_patterns=PUSH_ALLOW_PATTERNS)) == wanted


def test_onnx_files_of_other_weights_are_not_pushed(student: Path) -> None:
    (student / "onnx" / "export.json").write_text(
        json.dumps({"weights_sha256": {"model.safetensors": "0" * 64}, "files": {}})
    )
    with pytest.raises(ValueError, match="made from other weights"):
        push_student(student, "alice/student")


def test_a_report_of_other_weights_is_not_pushed(student: Path) -> None:
    weights = {"model.safetensors": digest_of(student / "model.safetensors")}
    report = tiny_report()
    replace(report, run=report.run.updated({"student": {"weights_sha256": weights}})).save(student)
    assert "report.json" in files_to_push(student, "alice/student")
    tiny_model(bias=1.0).save_pretrained(student)
    (student / "checksums.json").unlink()
    for send in (push_student, files_to_push):
        with pytest.raises(ValueError, match="report was measured of other weights than those in .*: measure these"):
            send(student, "alice/student")


def test_student_without_card_and_report_is_pushed_with_a_warning(
    hub: HubServer, student: Path, tmp_path: Path
) -> None:
    (student / "report.json").unlink()
    assert "/home/canary" in (student / "report.md").read_text(), (
        "a page that nothing takes the paths out of stays here"
    )
    call = {"directory": str(student), "repo_id": "student"}
    out = python(hub, tmp_path / "home", PUSH, json.dumps([call]), token=WRITE_TOKEN)
    assert f"WARNING:nlpkd.hub.push:{student} has neither README.md nor report.json" in out
    left = PUBLISHED - {"README.md", "report.json", "report.md"}
    assert set(hub.files("alice/student")) == left | {".gitattributes"}


COMMANDS = """
import json, sys
from nlpkd.cli import app
for command in json.loads(sys.argv[1]):
    app(command, standalone_mode=False)
"""


def earlier(folder: Path, readme: str) -> Path:
    """What a repository has of an earlier student, and of others."""
    theirs = [{"dataset": {"id": "a/b", "task_id": "t"}, "value": 1.0, "source": {"url": "a", "name": "leaderboard"}}]
    ours = [theirs[0] | {"source": {"url": "a", "name": "nlpkd report"}}]
    results = {f".eval_results/{name}.yaml": yaml.safe_dump(each) for name, each in (("b", ours), ("c", theirs))}
    for name, text in (dict.fromkeys(OWNED | OTHERS, "earlier") | results | {"README.md": readme}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


OWNED = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "model.safetensors", "report.json"}
OWNED |= {"report.html", "compression.json", "vocab.txt", "onnx/model.onnx", "onnx/export.json", "model.onnx"}
OWNED |= {"onnx/model.onnx.data", ".eval_results/b.yaml", "README.md"}
OTHERS = {"pytorch_model.bin", "notes.txt", "fp16/model.onnx", "onnx/config.json", ".eval_results/c.yaml"}
SENT = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_after_a_push_the_repository_has_of_what_nlpkd_owns_what_the_folder_has(
    hub: HubServer, tmp_path: Path
) -> None:
    folder = save_student(tiny_model(), tmp_path / "student", tiny_tokenizer())
    readme = str(build_model_card(tiny_report(), model_name="alice/old"))
    for name in ("alice/student", "alice/branch", "alice/asked"):
        hub.add_repo(name, earlier(tmp_path / "earlier", readme))
    calls = [{"repo_id": "alice/student"}, {"repo_id": "alice/branch", "revision": "v2"}]
    calls += [{"repo_id": "alice/asked", "create_pr": True}]
    gone = sorted(OWNED - SENT)
    dry_run = ["push", str(folder), "--dry-run", "--repo-id"]
    commands = [["alice/student"], ["alice/branch", "--revision", "v2"], ["alice/asked", "--create-pr"]]
    commands = [dry_run + each for each in commands]
    out = python(hub, tmp_path / "home", COMMANDS, json.dumps(commands), token=WRITE_TOKEN)
    assert sorted(line.split()[-1] for line in out.splitlines() if "deleted there" in line) == sorted(3 * gone)
    assert not [path for method, path in hub.requests if method in ("POST", "PUT")], "a dry run changes nothing"

    hub.fail_next("commit", "lose")
    given = [{"directory": str(folder)} | each for each in calls]
    out = python(hub, tmp_path / "home", PUSH, json.dumps(given), token=WRITE_TOKEN)
    assert out.count("URL ") == 3
    for name, revision in (("alice/student", "main"), ("alice/branch", "v2"), ("alice/asked", "refs/pr/1")):
        files = hub.files(name, revision)
        assert set(files) == SENT | OTHERS, name
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert len(hub.commits(name)) == 2, "one commit"
        said = [line for line in out.splitlines() if f"{name} has files that are not in the folder" in line]
        assert said and all(each in said[0] for each in gone)
    assert set(hub.files("alice/branch")) == set(hub.files("alice/asked")) == OWNED | OTHERS


def test_a_readme_that_somebody_edited_in_the_repository_stays_unless_the_folder_has_one_too(
    hub: HubServer, student: Path, tmp_path: Path
) -> None:
    hub.add_repo("alice/student", earlier(tmp_path / "earlier", "My own words."))
    call = {"directory": str(student), "repo_id": "alice/student"}
    out = python(hub, tmp_path / "home", PUSH, json.dumps([call]), token=WRITE_TOKEN)
    assert "README.md of alice/student is kept as it is" in out
    assert set(hub.files("alice/student")) == PUBLISHED | OTHERS
    assert hub.files("alice/student")["README.md"] == b"My own words."
    (student / "README.md").write_text("Other words.")
    push(hub, tmp_path / "home", call)
    assert hub.files("alice/student")["README.md"] == b"Other words."


def test_a_push_is_refused_whole_where_the_repository_ignores_a_file_of_it(
    hub: HubServer, student: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / ".gitignore").write_text("*.safetensors\nonnx\n")
    (there / "model.safetensors").write_bytes(b"earlier")
    for name in ("alice/student", "alice/asked"):
        hub.add_repo(name, there)
    calls: list[Any] = [{"repo_id": "alice/student"}, {"repo_id": "alice/asked", "create_pr": True}]
    told = push(hub, tmp_path / "home", *({"directory": student} | each for each in calls))
    for line, name in zip(told, ("alice/student", "alice/asked"), strict=True):
        assert line.startswith(f"ERROR RuntimeError the student was not pushed to {name}: ")
        assert "(the Hub leaves out model.safetensors, onnx/export.json, onnx/model.onnx, " in line
        assert "onnx/model_int8.onnx, which .gitignore in the repository names: take that out of it)" in line
        assert f"Nothing is lost, everything is in {student}" in line
        assert len(hub.commits(name)) == 1, "no commit of the other files"
    dry_run = ["push", str(student), "--dry-run", "--repo-id", "alice/student"]
    done = run_program(["-c", COMMANDS, json.dumps([dry_run])], tmp_path, hub_environment(hub, tmp_path / "home"))
    assert "alice/student has a .gitignore" in done.stderr and "the push is refused" in done.stderr

    (there / ".gitignore").write_text("*.pkl\n")
    hub.add_repo("alice/student", there)
    assert push(hub, tmp_path / "home", {"directory": student} | calls[0])[0].startswith("URL ")
    assert set(hub.files("alice/student")) == PUBLISHED | {".gitignore"}
    assert hub.files("alice/student")["model.safetensors"] == (student / "model.safetensors").read_bytes()


def test_a_dry_run_refuses_what_the_push_refuses_and_says_what_it_can_not_ask(
    hub: HubServer, student: Path, tmp_path: Path
) -> None:
    refused = [{"create_pr": True, "revision": "v1"}, {"commit_message": " "}, {"repo_id": "a/b/c"}]
    for options in refused:
        given = {"repo_id": "alice/student"} | options
        with pytest.raises(ValueError) as by_push:
            push_student(student, **given)
        with pytest.raises(ValueError) as by_dry_run:
            files_to_push(student, **given)
        assert str(by_push.value) == str(by_dry_run.value)

    hub.add_repo("alice/public", student)
    dry_run = ["push", str(student), "--dry-run", "--repo-id"]
    program = "import sys; from nlpkd.cli import main; main()"

    def said(*arguments: str, token: str | None = WRITE_TOKEN) -> tuple[int, str]:
        environment = hub_environment(hub, tmp_path / "home", token)
        done = run_program(["-c", program, *dry_run, *arguments], tmp_path, environment, timeout=120)
        return done.returncode, done.stdout + done.stderr

    status, out = said("alice/public", "--private")
    assert status == 2 and "private=True, but alice/public exists and is public" in out
    status, out = said("alice/new", "--private")
    assert status == 0 and "can't be asked" not in out and "deleted" not in out
    hub.fail_next("info", status=500)
    status, out = said("alice/new")
    assert status == 0 and "alice/new can't be asked from here" in out and "bytes  model.safetensors" in out
    assert len(hub.commits("alice/public")) == 1


def test_external_weights_go_with_their_onnx_file_and_no_other_file_does(hub: HubServer, tmp_path: Path) -> None:
    folder = save_student(tiny_model(), tmp_path / "student", tiny_tokenizer())
    (folder / "onnx").mkdir()
    for name in ("model.onnx", "model_int8.onnx"):
        tiny_onnx(folder / "onnx" / name, external=name == "model.onnx")
    for name in ("model_int8.onnx.data", "model.onnx.data.pkl", "weights.bin"):
        (folder / "onnx" / name).write_bytes(b"secret")
    (line,) = push(hub, tmp_path / "home", {"directory": folder, "repo_id": "alice/student"})
    sent = {f"onnx/{name}" for name in ("model.onnx", "model.onnx.data", "model_int8.onnx")}
    assert line.startswith("URL ") and set(hub.files("alice/student")) == SENT | sent | {".gitattributes"}
    data = (folder / "onnx/model.onnx.data").read_bytes()
    assert hub.files("alice/student")["onnx/model.onnx.data"] == data


@pytest.mark.parametrize(
    "place", ["weights.bin", "../.env", "/etc/passwd", "gone.onnx.data", "a" * 200 + ".onnx.data"]
)
@pytest.mark.parametrize("send", [push_student, files_to_push])
def test_an_onnx_file_whose_weights_do_not_go_with_it_is_not_pushed(student: Path, place: str, send: Any) -> None:
    onnx = pytest.importorskip("onnx")
    (student / "onnx/weights.bin").write_bytes(b"secret")
    model = onnx.load(tiny_onnx(student / "onnx/model.onnx", external=True), load_external_data=False)
    # The numbers of a branch are in no list of the whole graph.
    tensor = onnx.TensorProto.FromString(model.graph.initializer[0].SerializeToString())
    next(each for each in tensor.external_data if each.key == "location").value = place
    branch = onnx.helper.make_graph([], "branch", [], [], [tensor])
    model.graph.node.append(onnx.helper.make_node("If", ["a"], ["b"], then_branch=branch, else_branch=branch))
    (student / "onnx/model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        ValueError, match="have weights in .*, which a push does not send: save|lies outside of it"
    ) as refused:
        send(student, "alice/student")
    assert place in str(refused.value)


def test_no_error_about_a_snapshot_tells_to_write_into_the_cache_of_the_hub(student: Path, tmp_path: Path) -> None:
    report = tiny_report()
    measured = replace(
        report, run=report.run.updated({"student": {"weights_sha256": {"model.safetensors": "0" * 64}}})
    )
    of_others = {"weights_sha256": {"model.safetensors": "0" * 64}, "config_sha256": "0" * 64, "files": {}}
    of_settings = of_others | {"weights_sha256": {}}

    def damaged(folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")

    def exported(record: str) -> Any:
        return lambda folder: (folder / "onnx/export.json").write_text(record)

    wrong = [measured.save, damaged, *map(exported, ("{", json.dumps(of_others), json.dumps(of_settings)))]
    for number, spoil in enumerate(wrong):
        for parent in ("snapshots", "folders"):
            folder = tmp_path / parent / str(number)
            shutil.copytree(student, folder)
            spoil(folder)
            with pytest.raises(ValueError) as refused:
                files_to_push(folder, "alice/student")
            said = str(refused.value)
            told = any(each in said for each in (f"export {folder}", f"evaluate {folder}", f"delete {folder}"))
            assert told == (parent == "folders"), said
