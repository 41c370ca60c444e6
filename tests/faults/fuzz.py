"""Damage the files that nlpkd reads back, run every command that reads them: each must end well, or with one line.

python tests/faults/fuzz.py --seconds 600 --seed 0        (make fuzz)
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import typer  # noqa: E402
import yaml  # noqa: E402
from processes import run as run_program  # noqa: E402
from samples import WORDS, fine_tuned_teacher, raw_rows  # noqa: E402
from transformers import BertTokenizer  # noqa: E402

from nlpkd.cli import app  # noqa: E402
from nlpkd.cli.labelling import labelling_teacher  # noqa: E402
from nlpkd.comparison.points import Point  # noqa: E402
from nlpkd.comparison.student import FrontierStudent  # noqa: E402
from nlpkd.comparison.table import FrontierReport  # noqa: E402
from nlpkd.compression.onnx import export_record  # noqa: E402
from nlpkd.data.collator import DistillationCollator  # noqa: E402
from nlpkd.evaluation import charts  # noqa: E402
from nlpkd.evaluation.html_report import training_curves  # noqa: E402
from nlpkd.evaluation.records import Interval  # noqa: E402
from nlpkd.evaluation.report import EvaluationReport  # noqa: E402
from nlpkd.hub.model_card import build_model_card  # noqa: E402
from nlpkd.hub.public_report import public_report  # noqa: E402
from nlpkd.hub.saving import renewed_card  # noqa: E402
from nlpkd.labelling.answer import Answer, key_of  # noqa: E402
from nlpkd.labelling.answers import AnswerFile  # noqa: E402
from nlpkd.models.loading import load_classifier, load_tokenizer  # noqa: E402
from nlpkd.models.onnx_classifier import refuse_stale  # noqa: E402
from nlpkd.models.source import ModelSource  # noqa: E402
from nlpkd.pipeline.claims import report_claims, rows_claim, weights_claim  # noqa: E402
from nlpkd.pipeline.compress import _earlier_records  # noqa: E402
from nlpkd.pipeline.verify import Verification, card_claims  # noqa: E402
from nlpkd.serving.cascade import CascadeRecord  # noqa: E402
from nlpkd.teachers import DecisionTeacher  # noqa: E402
from nlpkd.teachers.shards import ShardFolder  # noqa: E402
from nlpkd.training.checkpoints import RUN_RECORD, last_whole  # noqa: E402
from nlpkd.training.resuming import resolve_resume_checkpoint  # noqa: E402
from nlpkd.utils.disk.files import CHECKSUMS, refuse_damaged, write_checksums  # noqa: E402

LIMIT_S = 60.0
IMPORTED = (
    "jinja2", "matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.pyplot", "onnx", "onnxruntime",
    "pydantic", "datasets.io.parquet", "torch.profiler", "transformers.models.bert.modeling_bert",
    "nlpkd.evaluation.memory", "nlpkd.pipeline.compress", "nlpkd.pipeline.dry_run", "nlpkd.pipeline.export",
    "nlpkd.pipeline.label", "nlpkd.pipeline.verify", "nlpkd.teachers.decision",
)  # fmt: skip
DATA = ["--data", "rows.csv", "--max-length", "32"]
QUICK = [*DATA, "--latency-runs", "0"]
TRAIN = ["--teacher", "teacher", "--student", "layers:1", "--train", "rows.csv", "--validation", "rows.csv",
         "--max-length", "32", "--batch-size", "8", "--objectives", "hinton"]  # fmt: skip
SHORT = ["--max-steps", "4", "--save-steps", "2", "--logging-steps", "2", "--bf16", "False", "--report-to", "none",
         "--disable-tqdm", "True"]  # fmt: skip
LABEL = ["label", "--data", "texts.csv", "--decision-model", "judge", "--question", "question.yaml",
         "--decision-url", "http://127.0.0.1:9", "--output", "labelled.parquet"]  # fmt: skip
CACHE = ["cache", "--teacher", "teacher", "--student", "layers:1", "--train", "rows.csv", "--validation", "rows.csv",
         "--max-length", "32", "--output-dir", "outputs"]  # fmt: skip
RESUME = ["distill", *TRAIN, *SHORT, "--output-dir", "student", "--resume-from-checkpoint", "True"]

QUESTION = {"type": "noul", "instructions": "Is it good?"}

EVALUATE = ["evaluate", "student", *QUICK]
BESIDE = ["evaluate", "student", "--teacher", "teacher", *QUICK, "--output-dir", "student"]
ONNX = ["evaluate", "student/onnx/model.onnx", *QUICK]
VERIFY = ["verify", "student", "--data", "rows.csv"]
PUSH = ["push", "student", "--repo-id", "alice/student", "--dry-run"]
COMPRESS = ["compress", "student", "--method", "half", *DATA, "--output-dir", "smaller"]
PLAN = ["distill", *TRAIN, "--output-dir", "planned", "--dry-run"]
LIKE = ["distill", "--teacher", "student", *TRAIN[2:], "--output-dir", "planned", "--dry-run"]

READERS: dict[str, list[list[str]]] = {
    "student/report.json": [VERIFY, BESIDE, PUSH],
    "student/README.md": [VERIFY, PUSH],
    "student/compression.json": [COMPRESS, PUSH],
    "student/onnx/export.json": [ONNX, PUSH],
    "student/checksums.json": [EVALUATE, PUSH],
    "student/config.json": [EVALUATE, PUSH, LIKE],
    "student/tokenizer.json": [EVALUATE],
    "student/tokenizer_config.json": [EVALUATE, PUSH],
    "student/cascade.json": [PUSH],
    "student/trainer_state.json": [BESIDE],
    "student/checkpoint-4/trainer_state.json": [RESUME],
    "student/checkpoint-4/distillation_run.json": [RESUME],
    "student/checkpoint-4/checksums.json": [RESUME],
    "student/run.yaml": [["distill", "--config", "student/run.yaml", "--dry-run"]],
    "evaluate.yaml": [["evaluate", "--config", "evaluate.yaml"]],
    "outputs/manifest.json": [CACHE],
    "question.yaml": [[*LABEL, "--dry-run"]],
    "labelled.parquet.answers.jsonl": [[*LABEL, "--dry-run"], LABEL],
    "frontier/frontier.json": [],
    "frontier/students/static/job.json": [],
}
"""Every file that nlpkd reads back, and the commands that do; without one it is read from Python, or by a training."""

# What ends a terminal's line, a table, an expression, an integer; none of it may be obeyed or end in a traceback.
HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 0.5, 10**400, -(10**30), 2**63, 1e308, float("nan"), float("inf"), "", " ", "x",
    "0.9", "true", "\x1b[31mEVIL\x07", "\x9b31mEVIL", "\ud800", "a\nb", "../../etc/passwd", "/etc/passwd",
    "é" * 50_000, "<script>alert(1)</script>", "a\u202eb", "| `x` |", "{0}%s\\1", [], {}, [[]], [None], [1, "a"],
    {"a": None}, {"": {"": ""}}, ["x"] * 5_000,
]  # fmt: skip
BOMB: list[Any] = reduce(lambda inner, _: [inner] * 9, range(10), ["x"])


def prepare(folder: Path) -> None:
    """Run the jobs whose files are read back: a distillation, an evaluation, an export, a cache, a labelling."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)
    fine_tuned_teacher(folder / "teacher", tokenizer, layers=2)
    raw_rows(40, seed=2).to_csv(folder / "rows.csv", index=False)
    (folder / "texts.csv").write_text("text\ngood film\nbad film\n")
    (folder / "question.yaml").write_text(yaml.safe_dump(QUESTION))
    jobs = [
        ["distill", *TRAIN, *SHORT, "--output-dir", "student", "--baseline", "--num-seeds", "1"],
        ["export", "student"],
        ["compress", "student", "--method", "half", *DATA, "--output-dir", "half"],
        CACHE,
        [*BESIDE[:-1], "eval"],
        ["cascade", "--student", "student", "--teacher", "teacher", "--data", "rows.csv", "--target-agreement", "0.5"],
    ]
    for words in jobs:
        done = run_program(["nlpkd", *words], folder, fresh=False)
        assert done.returncode == 0, done
    shutil.copy(folder / "half" / "compression.json", folder / "student")
    shutil.copy(folder / "outputs" / "manifest.json", folder)
    shutil.copy(folder / "eval" / "evaluate.yaml", folder)
    frontier, job = folder / "frontier", folder / "frontier" / "students" / "static" / "job.json"
    job.parent.mkdir(parents=True)
    points = [Point(name, Interval(0.8, 0.7, 0.9), ms, ms, 9.0, 1.0, [0.8, 0.7], name) for name, ms in
              (("teacher", 9.0), ("static", 0.1))]  # fmt: skip
    FrontierReport("accuracy", 40, points, {"bilstm": "ValueError"}, run={"command": "nlpkd"}).save(frontier)
    job.write_text(json.dumps({"asked": {"seed": 42}, "finished": 1, "error": None}))
    # Answers as a server would have given them: nobody is asked.
    answers = AnswerFile(folder / "labelled.parquet.answers.jsonl", _judge())
    with answers._append(answers.path) as file:
        for text, answer in (
            ("good film", Answer([0.1, 0.9], 3, 1)), ("bad film", Answer([0.8, 0.2], expected_tokens=[3, 0])),
            ("odd film", Answer(None, expected_tokens=[3, 0], refusal="a filter")),
        ):  # fmt: skip
            file.write(json.dumps([key_of(text), *answer.as_line()]).encode() + b"\n")


def _judge() -> DecisionTeacher:
    return DecisionTeacher("judge", QUESTION, base_url="http://127.0.0.1:9")


def damage(content: bytes, name: str, numbers: random.Random) -> bytes:
    """Change something of a file's content: mostly one value of what it says, else its bytes."""
    if numbers.random() < 0.2:
        return _damage_bytes(content, numbers)
    text = content.decode()
    if name.endswith(".jsonl"):
        lines = text.splitlines()
        at = numbers.randrange(len(lines))
        lines[at] = _as_json(_damage_value(json.loads(lines[at]), numbers), numbers)
        return _encoded("\n".join(lines) + "\n")
    if name.endswith(".json"):
        return _encoded(_as_json(_damage_value(json.loads(text), numbers), numbers))
    # YAML, of a card between its first two marks.
    head, body = ("", "") if not name.endswith(".md") else ("---\n", "\n---\n" + text.split("---\n", 2)[2])
    metadata = text if not head else text.split("---\n", 2)[1]
    # One in twenty has a value of nine to the tenth entries, in half a kilobyte.
    value = _damage_value(yaml.safe_load(metadata), numbers, [BOMB] if numbers.random() < 0.05 else HOSTILE)
    changed = yaml.safe_dump(value, allow_unicode=numbers.random() < 0.5)
    return _encoded(head + changed + body)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _as_json(value: Any, numbers: random.Random) -> str:
    return json.dumps(value, ensure_ascii=numbers.random() < 0.5)


def _damage_bytes(content: bytes, numbers: random.Random) -> bytes:
    at = numbers.randrange(len(content) + 1)
    return numbers.choice([
        lambda: b"",
        lambda: content[:at],
        lambda: content[:at] + bytes([numbers.randrange(256)]) + content[at + 1 :],
        lambda: content[:at] + numbers.randbytes(8) + content[at:],
        lambda: content * 2,
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.decode().encode("utf-16"),
        lambda: b"[" * 100_000,
        lambda: b'{"a":' * 100_000,
        lambda: content.replace(b'"', b"'"),
    ])()  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """List each container with each of its keys or indices."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _damage_value(value: Any, numbers: random.Random, values: Sequence[Any] = HOSTILE) -> Any:
    """Replace, remove, rename, add or repeat one entry of parsed JSON or YAML, or all of it; sometimes two."""
    places = _places(value)
    if not places or numbers.random() < 0.03:
        return numbers.choice(values)
    for _ in range(numbers.choice((1, 1, 1, 2))):
        container, key = numbers.choice(places)
        if (key not in container) if isinstance(container, dict) else (key >= len(container)):
            continue
        hostile = numbers.choice(values)
        how = numbers.choice(("replace", "replace", "replace", "remove", "rename", "add", "other"))
        if how == "replace":
            container[key] = hostile
        elif how == "remove":
            del container[key]
        elif how == "other":
            there, other = numbers.choice(places)
            if (other in there) if isinstance(there, dict) else (other < len(there)):
                container[key] = copy.deepcopy(there[other])
        elif isinstance(container, dict):
            name = str(numbers.choice(HOSTILE))[:40]
            container[name] = container.pop(key) if how == "rename" else hostile
        else:
            container.insert(key, hostile)
    return value


# What the readers of a file call, in this process: hundreds of cases a second, where a command takes seconds.


def _report(folder: Path) -> None:
    report = EvaluationReport.load(folder)
    for shown in (report, public_report(report)):
        shown.to_markdown()
        json.dumps(shown.to_dict(), allow_nan=False).encode()
        EvaluationReport.from_dict(shown.to_dict())
        build_model_card(shown, model_name="student").content.encode()
    measured = EvaluationReport.load(folder.parent / "eval")
    claims = [weights_claim(report, folder), rows_claim(report, measured, same_data=True)]
    Verification("student", [*claims, *report_claims(report, measured, "")]).to_markdown()


def _card(folder: Path) -> None:
    report = EvaluationReport.load(folder.parent / "eval")
    Verification("student", card_claims(report, report, folder)).to_markdown()
    renewed_card(report, folder, "student")


def _onnx(folder: Path) -> None:
    export_record(folder)
    refuse_stale(folder)


def _tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    DistillationCollator(tokenizer)([dict(tokenizer("good film", truncation=True))])


def _curves(folder: Path) -> None:
    for each in training_curves(folder):
        charts.curves(each.values)


def _resume(checkpoint: Path) -> None:
    record = json.loads((checkpoint.parents[1] / "student" / "checkpoint-2" / RUN_RECORD).read_text())
    last_whole(checkpoint.parent, record)
    resolve_resume_checkpoint(True, str(checkpoint.parent), record)


def _cache(folder: Path) -> None:
    kept = json.loads((folder.parent / "manifest.json").read_text())
    shards = ShardFolder.open(folder, kept["parts"], kept["explanations"])
    for path in shards.found().values():
        shards.problem(path)
    len(shards.load())


def _answers(folder: Path) -> None:
    AnswerFile(folder / "labelled.parquet.answers.jsonl", _judge()).read()


def _frontier(folder: Path) -> None:
    kept = FrontierReport.load(folder)
    kept.to_markdown()
    kept.save(folder.with_name("again"))


def _question(folder: Path) -> None:
    labelling_teacher("judge", folder / "question.yaml", "http://127.0.0.1:9")


def _options(name: str, *words: str) -> None:
    # A usage error, of click or of what typer has in place of it.
    with suppress(typer.Exit, *typer.BadParameter.__bases__):
        typer.main.get_command(app).commands[name].make_context(name, [*words])  # type: ignore[attr-defined]


CALLED: dict[str, Callable[[Path], None]] = {
    "student/report.json": _report,
    "student/README.md": _card,
    "student/compression.json": lambda folder: None if _earlier_records(ModelSource.of(folder)) else None,
    "student/onnx/export.json": lambda folder: _onnx(folder.parent),
    "student/checksums.json": refuse_damaged,
    "student/config.json": lambda folder: None if load_classifier(folder) else None,
    "student/tokenizer.json": _tokenizer,
    "student/tokenizer_config.json": _tokenizer,
    "student/trainer_state.json": _curves,
    "student/checkpoint-4/trainer_state.json": _resume,
    "student/checkpoint-4/distillation_run.json": _resume,
    "student/checkpoint-4/checksums.json": _resume,
    "student/run.yaml": lambda folder: _options("distill", "--config", str(folder / "run.yaml")),
    "evaluate.yaml": lambda folder: _options("evaluate", "--config", str(folder / "evaluate.yaml")),
    "outputs/manifest.json": _cache,
    "question.yaml": _question,
    "labelled.parquet.answers.jsonl": _answers,
    "student/cascade.json": lambda folder: None if CascadeRecord.load(folder) else None,
    "frontier/frontier.json": _frontier,
    "frontier/students/static/job.json": lambda folder: (
        None if FrontierStudent.of("static", folder, {"seed": 42}, {}) else None
    ),
}
"""What reads each file, given its folder."""


def _too_long(*_: Any) -> None:
    raise TimeoutError("no end")


def call(folder: Path, file: str) -> str | None:
    """Let the functions behind the commands read a file; say what is wrong with how that ends."""
    if file not in CALLED:
        return None
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(10)
    try:
        CALLED[file]((folder / file).parent)
    except TimeoutError:
        return "no end within 10 s"
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        # RecursionError is a RuntimeError, and no answer.
        if isinstance(error, RecursionError) or not str(error).strip():
            return traceback.format_exc()
        if str(folder) not in str(error) and Path(file).name not in str(error):
            return f"an error that names no file: {type(error).__name__}: {error!s:.2000}"
    except Exception:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return None


def problem(code: int, out: str, err: str) -> str | None:
    """Say what is wrong with the end of a command; None where it ended well, or with one line that says why."""
    said = out + err
    if "Traceback (most recent call last)" in said:
        return "a traceback"
    if code not in (0, 1, 2, 3):
        return f"exit status {code}"
    if found := re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]|\x1b\[31mEVIL", said):
        return f"a control character, {found[0]!r}"
    lines = [line for line in err.splitlines() if line.strip()]
    # click says in a frame what is wrong with an option.
    if code == 2 and not (lines and (lines[-1].startswith("nlpkd: ") or "Error" in err)):
        return "an error without a line that says so"
    if code == 2 and lines[-1].startswith("nlpkd: ") and len(lines[-1]) > 4_000:
        return f"an error of {len(lines[-1]):,} letters"
    return None


def run(folder: Path, words: list[str]) -> tuple[str | None, str]:
    """Run a command: what is wrong with its end, or None, and what it said."""
    start = time.monotonic()
    done = run_program(["nlpkd", *words], folder, fresh=False, timeout=LIMIT_S, imported=IMPORTED)
    if time.monotonic() - start > LIMIT_S:
        return f"no end within {LIMIT_S:.0f} s", done.stderr
    return problem(done.returncode, done.stdout, done.stderr), done.stdout[-2000:] + done.stderr[-4000:]


def fuzz(
    seconds: float, seed: int, first: int = 0, most: int | None = None, each: int = 20
) -> tuple[Counter, list[str]]:
    """Damage one file after the other until the time is over.

    Args:
        seconds: how long.
        seed: of what is damaged.
        first: number of the first case.
        most: stop after so many cases.
        each: a command is run for one of so many cases; 0 for none.

    Returns:
        How many cases of each file were run, and what went wrong, with all that is needed to see it again.
    """
    tried: Counter = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder, base = Path(place) / "files", Path(place) / "base"
        base.mkdir()
        prepare(base)
        deadline, number = time.monotonic() + seconds, first
        shutil.copytree(base, folder)
        while time.monotonic() < deadline and (most is None or number < first + most):
            numbers = random.Random(f"{seed} {number}")
            file = list(READERS)[number % len(READERS)]
            kept, seals = (base / file).read_bytes(), (base / file).with_name(CHECKSUMS)
            (folder / file).write_bytes(damage(kept, file, numbers))
            if "checkpoint-" in file and not file.endswith(CHECKSUMS):
                # As somebody would who wants it to be read.
                write_checksums((folder / file).parent)
            words = numbers.choice(READERS[file] or [[]])
            found, said = call(folder, file), ""
            tried[file, "read"] += file in CALLED
            if found is None and words and each and number // len(READERS) % each == 0:
                found, said = run(folder, words)
                tried[file, "commands"] += 1
                shutil.rmtree(folder)
                shutil.copytree(base, folder)
            if found is not None:
                again = f"--seed {seed} --first {number} --most 1 --each 1"
                wrong.append(f"WRONG {file} ({again}): nlpkd {' '.join(words)}\n{found}\n{said}")
                print(wrong[-1], flush=True)
            (folder / file).write_bytes(kept)
            if seals.exists():
                shutil.copy(seals, folder / seals.relative_to(base))
            number += 1
    return tried, wrong


def main() -> None:
    """Fuzz, and say what was tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--most", type=int, help="stop after so many cases")
    parser.add_argument("--each", type=int, default=20, help="run a command for each so many cases")
    args = parser.parse_args()
    tried, wrong = fuzz(args.seconds, args.seed, args.first, args.most, args.each)
    print(f"{'read':>8}{'commands':>10}  file")
    for file in READERS:
        print(f"{tried[file, 'read']:8}{tried[file, 'commands']:10}  {file}")
    print(f"{sum(tried.values()):,} ends, {len(wrong)} of them neither a result nor one line that says what is wrong.")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
