"""Label texts with a teacher once, and keep every answer as it comes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from nlpkd.config import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.data.labels.classes import Classes
from nlpkd.data.sources import Source, read_splits, refuse_as_output, without_training_words
from nlpkd.evaluation.records import METRIC_NAMES, percent
from nlpkd.evaluation.report_text import markdown_table
from nlpkd.evaluation.scoring import headline_of
from nlpkd.labelling.answers import AnswerFile
from nlpkd.labelling.budget import Budget, LabelPlan, Prices
from nlpkd.labelling.rounds import RoundFile
from nlpkd.labelling.rows import PROBABILITIES, answers_beside, save_rows, texts_to_label, with_answers
from nlpkd.labelling.selection import SELECTIONS, labels_saved, margins, select_texts
from nlpkd.models.source import ModelSource, identity_of_model
from nlpkd.models.structure import readable
from nlpkd.objectives.objective_set import ObjectiveSet, with_settings
from nlpkd.objectives.presets import resolve
from nlpkd.pipeline.prepare import prepare_job
from nlpkd.tasks import MULTI_LABEL
from nlpkd.teachers.base import FunctionTeacher, LabelingTeacher, batches_by_length, classes_of_function
from nlpkd.training.checkpoints import LENGTH, describe_lessons
from nlpkd.utils.files import write_atomic
from nlpkd.utils.fingerprints import hash_value

__all__ = ["LabelPlan", "label"]

logger = logging.getLogger(__name__)


def label(
    teacher: LabelingTeacher | Callable[[list[str]], Any],
    source: Source,
    *,
    output: str | Path,
    text_column: str | None = None,
    classes: Sequence[str] | None = None,
    max_requests: int | None = None,
    max_cost: float | None = None,
    prices: Prices | tuple[float, float] | None = None,
    dry_run: bool = False,
    budget: int | None = None,
    select: str = "uncertainty",
    rounds: int = 5,
    student: Any = None,
    test: Source | None = None,
    against_random: bool = False,
    **keywords: Any,
) -> Path | LabelPlan:
    """Label texts with a teacher, and write them with its probabilities: a training file for `nlpkd.distill`.

    Each answer is kept in `OUTPUT.answers.jsonl` as it comes. A run that was stopped, killed or failed goes on there,
    and asks nothing again that has been answered; `output` is written when all rows have answers.

    Args:
        teacher: one of `nlpkd.teachers`, or any function from a list of texts to `(texts, classes)` probabilities. A
            function is known by its name: where it has changed, give another `output`, or a
            `FunctionTeacher(function, classes, name=...)` with another name.
        source: the texts: a file, a Hub id or rows in memory; its train split, without a label column.
        output: the parquet file: the source's columns and those of `nlpkd.labelling.rows.with_answers`.
        text_column: the text's column; recognised by its usual names if None.
        classes: names of the classes, of a function, in the order of its columns. A bound method of an estimator that
            has `classes_`, such as scikit-learn's `predict_proba`, has that order, and may not have other names.
        max_requests: stop with an error after so many requests of this run; what was answered is kept.
        max_cost: stop likewise before all answers in the file have cost more than this, those of earlier runs
            included. Before a server has counted a prompt's tokens they are estimated from its letters.
        prices: of a million tokens of prompts and of answers, in any currency.
        dry_run: ask nothing, and return what would be asked.
        budget: label so many rows only, chosen in rounds: the first ones by chance, the next ones by what a student
            that learned from those before is unsure of. `output` has the chosen rows alone, `OUTPUT.curve.md` and
            `OUTPUT.curve.json` the student's quality after each round.
        select: of a budget: `uncertainty`, `diversity` or `random`; see `nlpkd.labelling.selection.select_texts`.
        rounds: of a budget, how many.
        student: of a budget, as for `nlpkd.distill`: a path, a Hub id or a model.
        test: of a budget, rows with gold labels on which the student is measured after each round.
        against_random: of a budget, measure a random choice of as many rows too, whose labels are bought as well.
        **keywords: of a budget, how the student is trained: fields of `nlpkd.data.arguments.DataArguments`
            (`max_length`, ...) and of `DistillationConfig` (`learning_rate`, `seed`, ...), and `objectives`
            (`"hinton"` if left out).

    Returns:
        The output file; of a dry run the plan.

    Raises:
        ValueError: if the source can't be read or is the output, the answers that are there are another teacher's, an
            answer is no distribution (its row is named), or a limit was reached.
    """
    teacher = _as_teacher(teacher, classes)
    output = Path(output)
    if output.suffix != ".parquet":
        raise ValueError(f"output must be a .parquet file, got {output}")
    refuse_as_output(output, source=source, test=test)
    priced = Prices(*prices) if isinstance(prices, (tuple, list)) else prices
    limits = Budget(max_requests, max_cost, priced)
    with without_training_words(source):
        rows = read_splits(source)[0]["train"]
        texts = texts_to_label(rows, "train", text_column)
    answers = answers_beside(output, teacher)
    of_a_budget = {"student": student, "test": test, "against_random": against_random or None, **keywords}
    if budget is None and (given := [name for name, value in of_a_budget.items() if value is not None]):
        raise ValueError(
            "student, test, against_random, columns of labels and settings of a training are of a budget, and "
            f"{', '.join(given)} came without one: give budget=, or leave it out"
        )
    if budget is not None:
        # A wrong setting is refused before anything is paid for.
        _training(output, **keywords)
    if dry_run:
        return answers.plan(texts if budget is None else texts[:budget], priced)
    if kept := answers.kept(texts):
        told = "%d texts were answered by an earlier run of %s, whose answers are taken from %s."
        logger.warning(told, kept, teacher.describe()["name"], answers.path)
    if budget is not None:
        chosen = label_in_rounds(
            answers, rows, teacher, output, budget=budget, limits=limits, select=select, rounds=rounds,
            student=student, test=test, against_random=against_random, texts=texts, **keywords,
        )  # fmt: skip
        rows, texts = rows.select(chosen), [texts[row] for row in chosen]
    save_rows(with_answers(rows, texts, answers.ask(texts, limits), teacher, priced), output)
    logger.warning("%d rows labelled by %s: %s", len(rows), teacher.describe()["name"], output)
    return output


def label_in_rounds(
    answers: AnswerFile,
    rows: Dataset,
    teacher: LabelingTeacher,
    output: Path,
    *,
    texts: Sequence[str],
    budget: int,
    limits: Budget | None = None,
    select: str = "uncertainty",
    rounds: int = 5,
    student: Any = None,
    test: Source | None = None,
    against_random: bool = False,
    **keywords: Any,
) -> list[int]:
    """Choose the rows that are worth a label, ask about them round by round, and keep the curve beside the output.

    The arguments are those of `label`. Each round's rows are kept in `OUTPUT.rounds.json` before they are asked about,
    so that a run which was stopped goes on with the same rows; one of other texts, another teacher or student or other
    settings does not take them.

    Returns:
        The numbers of the chosen rows.

    Raises:
        ValueError: if the budget, the selection or the number of rounds does not fit, there is no student, or the
            rounds that are kept are others.
    """
    # Equal texts are one text.
    distinct = list({text: row for row, text in reversed(list(enumerate(texts)))}.values())[::-1]
    if not 2 <= rounds <= budget <= len(distinct):
        raise ValueError(
            f"a budget is spent in 2 or more rounds, and is at most the {len(distinct)} texts that differ: got "
            f"budget={budget} and rounds={rounds}"
        )
    if select not in SELECTIONS or student is None:
        raise ValueError(
            f"select must be one of {', '.join(SELECTIONS)}, and student a model; got {select!r}, {student}"
        )
    kinds = [select, "random"] if against_random and select != "random" else [select]
    depends_on = _describe_rounds(answers, output, texts, student, **keywords)
    path = output.with_name(output.name + ".rounds.json")
    kept = RoundFile(path, {"budget": budget, "rounds": rounds} | depends_on)
    curves: dict[str, list[tuple[int, float]]] = {}
    for kind in kinds:
        generator, learner = np.random.default_rng(keywords.get("seed", 42)), None
        chosen: list[int] = []
        for number in range(rounds):
            # What the student that was trained last is unsure of; by chance at first.
            count, taken, name = budget * (number + 1) // rounds - len(chosen), set(chosen), f"{kind} {number}"
            pool = [row for row in distinct if row not in taken]
            by_chance = generator.choice(len(pool), count, replace=False).tolist()
            picked = kept.rows(name, count, pool)
            if picked is None:
                places = by_chance
                if learner is not None and kind != "random":
                    probabilities, embeddings = learner.read([texts[row] for row in pool])
                    places = select_texts(kind, count, margins(probabilities, teacher.problem_type), embeddings)
                picked = [pool[place] for place in places]
                kept.keep(name, picked)
            chosen += picked
            # Buy them, learn from all so far, and measure.
            own = rows.select(chosen)
            bought = answers.ask([texts[row] for row in chosen], limits)
            if test is None and number == rounds - 1:
                break
            labelled = with_answers(own, [texts[row] for row in chosen], bought, teacher)
            learner = _Learner.of(student, labelled, test, output, teacher, **keywords)
            if test is not None:
                curves.setdefault(kind, []).append((len(chosen), learner.measure()))
        if kind == select:
            result = chosen
    if learner is not None and test is not None:
        _save_curves(output, curves, select, learner.metric)
    return result


def _describe_rounds(
    answers: AnswerFile, output: Path, texts: Sequence[str], student: Any, objectives: Any = "hinton", **keywords: Any
) -> dict[str, Any]:
    """Describe what the rows that rounds choose depend on: the texts, the teacher, the student and its training."""
    data_args, args, _ = _training(output, objectives, **keywords)
    lessons = ObjectiveSet(with_settings(resolve(objectives)[-1].objectives, {}), args.weighting)
    told = {"teacher": hash_value(answers.owner), "student": str(ModelSource.of(student).describe()["name"])}
    told |= {f"the student's {name}": value for name, value in identity_of_model(student).items()}
    told |= asdict(data_args) | {name: getattr(args, name) for name in LENGTH}
    return told | describe_lessons(args, None, lessons, Dataset.from_dict({"text": list(texts)}), ["text"])


def _training(
    output: Path, objectives: Any = "hinton", **keywords: Any
) -> tuple[DataArguments, DistillationConfig, set[str]]:
    """Return how a round's student reads text and is trained, and the names of the settings that are given.

    Raises:
        ValueError: for what is no setting, or one of a wrong value.
    """
    data_args, settings = DataArguments.split_of_training(label, keywords)
    if "output_dir" in settings:
        raise ValueError("output_dir: a student of a budget is kept beside the output, so leave it out")
    resolve(objectives)
    quiet_ones = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none"}
    folder = str(output.with_name(output.name + ".student"))
    return data_args, DistillationConfig(folder, **quiet_ones | settings), set(settings)


@dataclass(frozen=True)
class _Learner:
    """A student that has learned from the labels so far."""

    trainer: Any
    tokenizer: Any
    max_length: int
    metric: str

    @classmethod
    def of(
        cls, student: Any, labelled: Dataset, test: Source | None, output: Path, teacher: LabelingTeacher,
        objectives: Any = "hinton", **keywords: Any,
    ) -> _Learner:  # fmt: skip
        """Train the student, for 100 steps or three epochs, whichever is more, unless the settings say otherwise."""
        data_args, args, settings = _training(output, objectives, **keywords)
        data_args = replace(
            data_args, soft_label_column=PROBABILITIES, label_names=teacher.classes, problem_type=teacher.problem_type
        )
        if not {"num_train_epochs", "max_steps"} & settings:
            args = replace(args, max_steps=max(100, 3 * len(labelled) // args.per_device_train_batch_size))
        job = prepare_job(
            args, None, student, labelled, labelled if test is None else test, objectives=objectives,
            data_args=data_args,
        )  # fmt: skip
        if "learning_rate" not in settings:
            args = replace(args, learning_rate=job.learning_rate)
        trainer = job.trainer(job.student_to_train(args.seed), args, job.stages[-1])
        trainer.train()
        labels = np.asarray(job.data["validation"]["labels"][:])
        metric = "" if test is None else headline_of(job.data.problem_type, labels)
        return cls(trainer, job.tokenizer, job.data.max_length, metric)

    def measure(self) -> float:
        """Measure the student on the test rows."""
        return float(self.trainer.evaluate()[f"eval_{self.metric}"])

    def read(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Run the student: its probabilities, and the mean of its last hidden states over the tokens."""
        model = self.trainer.model.eval()
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)
        order: list[int] = []
        found: list[torch.Tensor] = []
        means: list[torch.Tensor] = []
        several = model.config.problem_type == MULTI_LABEL
        with torch.inference_mode():
            for batch in batches_by_length([len(each) for each in encoded["input_ids"]], 64):
                columns = {name: [values[number] for number in batch] for name, values in encoded.items()}
                inputs = self.tokenizer.pad(columns, return_tensors="pt").to(model.device)
                output = model(**readable(model, inputs), output_hidden_states=True)
                mask = inputs["attention_mask"][..., None].float()
                logits = output.logits.float()
                order += batch
                found.append((logits.sigmoid() if several else logits.softmax(-1)).cpu())
                means.append(((output.hidden_states[-1].float() * mask).sum(1) / mask.sum(1)).cpu())
        back = np.argsort(order)
        return torch.cat(found).numpy()[back], torch.cat(means).numpy()[back]


def _save_curves(output: Path, curves: Mapping[str, Sequence[tuple[int, float]]], select: str, metric: str) -> None:
    """Write the curves as JSON and as a table, with what the selection saves against random."""
    saved = labels_saved(curves[select], curves["random"]) if len(curves) > 1 else None
    cells = [
        [str(points[0][0]), *(f"{value:.3f}" for _, value in points)] for points in zip(*curves.values(), strict=True)
    ]
    parts = [f"# {METRIC_NAMES.get(metric, metric)} of the student by labels bought"]
    parts.append(markdown_table(["labels", *curves], cells))
    if saved is not None:
        parts.append(f"{select} saves {percent(saved, 0)} of the labels that random needs for its last value.")
    elif len(curves) > 1:
        parts.append(f"{select} does not reach the last value of random: it saves nothing.")
    write_atomic(output.with_name(output.name + ".curve.md"), ("\n\n".join(parts) + "\n").encode())
    record = {"metric": metric, "curves": curves, "labels_saved": saved}
    write_atomic(output.with_name(output.name + ".curve.json"), (json.dumps(record, indent=2) + "\n").encode())


def _as_teacher(teacher: Any, classes: Sequence[str] | None) -> LabelingTeacher:
    if isinstance(teacher, LabelingTeacher):
        return teacher
    if not callable(teacher) or classes is None:
        raise ValueError(
            f"teacher must be one of nlpkd.teachers, or a function on a list of texts with classes= beside it; got "
            f"{teacher!r:.100} and classes={classes!r}"
        )
    made, known = FunctionTeacher(teacher, classes), classes_of_function(teacher)
    if known is not None:
        # Its columns have an order of their own, whatever that of the names.
        try:
            order = known.positions_in(Classes.of(made.classes))
        except ValueError:
            raise ValueError(
                f"classes={list(made.classes)} are not those of {made.name}, whose columns are {known}: give these "
                "names, in any order"
            ) from None
        made.classes = made.classes if order is None else [made.classes[place] for place in order]
    return made
