"""Kill jobs at random moments, resume them, compare bit for bit; run the fault tests; write README.md.

python tests/faults/soak.py --kills 50 --seed 0        (make soak)
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import jobs  # noqa: E402
from hub_server import WRITE_TOKEN, HubServer, hub_environment  # noqa: E402

from nlpkd.evaluation.report import EvaluationReport  # noqa: E402
from nlpkd.training.checkpoints import last_whole  # noqa: E402
from nlpkd.utils.disk.files import has_checksums  # noqa: E402

FIXED = [HERE / "test_faults.py", HERE.parent / "distributed" / "test_sigterm.py",
         HERE.parent / "distributed" / "test_two_hosts.py"]  # fmt: skip
STATES = {
    "nothing": "before anything was saved",
    "between": "between saves",
    "inside": "inside a save",
    "after": "after the last checkpoint: final save, evaluation, card",
    "done": "after all was written, or sent",
}
ALL = {**jobs.STAGES, **jobs.LATER}
WHOLE = {"rehearsal": True, "html_report": True, "latency_runs": 5, "bootstrap_samples": 100}
"""Settings of a distillation that does all that a user's does."""
MARKS = {"evaluation": "report.json", "compression": "compression.json"}
"""What such a job writes last but one."""


def state_of(stage: str, out: Path) -> str:
    """Say what a killed job left behind."""
    if stage == "caching":
        return "inside" if list(out.glob(".*.tmp")) else "between" if list(out.glob("shard-*")) else "nothing"
    if stage == "export":
        return "inside" if list(out.glob(".exporting*")) else "nothing"
    if stage in jobs.LATER:
        inside = [*out.glob(".*.tmp"), *out.glob(".saving-*")]
        return "inside" if inside else "done" if stage in MARKS and (out / MARKS[stage]).exists() else "nothing"
    found = list(out.glob("checkpoint-*"))
    if any(not has_checksums(path) for path in found):
        return "inside"
    return "nothing" if not found else "after" if (out / "checkpoint-12").exists() else "between"


def result(stage: str, out: Path, hub: HubServer) -> dict:
    """Give what a finished job leaves, in its folder and on the Hub."""
    return jobs.outcome(stage, out) | ({"on the Hub": hub.files(jobs.PUSHED_TO)} if stage == "push" else {})


def kill_and_resume(
    lab: jobs.Lab, stage: str, after_s: float, out: Path, expected: dict, hub: HubServer
) -> tuple[str, str]:
    """Kill a job some seconds after it starts to write, run it again, and compare.

    Returns:
        What it was killed in, and "equal", "lost" or "over" where it had ended before.
    """
    settings = WHOLE if stage == "distillation" else {}
    process = lab.start(stage, out, **settings)
    while not out.exists() and process.is_alive():
        time.sleep(0.002)
    time.sleep(after_s)
    process.kill()
    process.join()
    if process.exitcode == 0:
        return "", "over"
    state = state_of(stage, out)
    # What is there is whole: a report can be read, and the Hub has all files of a push or none.
    if (out / "report.json").exists():
        EvaluationReport.load(out)
    if stage == "push" and ("model", jobs.PUSHED_TO) in hub.repos:
        sent = hub.files(jobs.PUSHED_TO)
        assert sent.keys() == {".gitattributes"} or sent == expected["on the Hub"], sorted(sent)
        state = "inside" if len(sent) == 1 else "done"
    resumed_from = last_whole(out) if stage in ("teacher", "distillation") else None
    code, log = lab.finish(stage, out, resume_from_checkpoint=True, **settings)
    same = code == 0 and result(stage, out, hub) == expected
    if not same or (resumed_from is not None and f"Resuming from {resumed_from}." not in log):
        print(f"LOST: {stage}, {state}, exit code {code}\n{log}")
        return state, "lost"
    return state, "equal"


def soak(kills: int, seed: int) -> Counter:
    """Kill so many jobs of all stages in turn, at moments drawn from the time that each takes."""
    numbers, counts = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as place, HubServer() as hub:
        folder = Path(place)
        # Read as the jobs' server of forks imports huggingface_hub; it goes with the Hub.
        before = dict(os.environ)
        os.environ.update(hub_environment(hub, folder / "home", WRITE_TOKEN))
        os.environ.pop("HF_HUB_OFFLINE", None)
        lab, whole, seconds = jobs.Lab(jobs.prepare(folder)), {}, {}
        for stage in ALL:
            # The very first job starts the server too, and is timed again.
            for _ in range(1 if seconds else 2):
                shutil.rmtree(folder / stage, ignore_errors=True)
                hub.repos.clear()
                start = time.monotonic()
                code, log = lab.finish(stage, folder / stage, **(WHOLE if stage == "distillation" else {}))
                assert code == 0, log
                seconds[stage] = time.monotonic() - start
            whole[stage] = result(stage, folder / stage, hub)
            if stage == "evaluation":
                shutil.copytree(folder / "student", folder / "measured")
                shutil.copy(folder / stage / "report.json", folder / "measured")
        while sum(counts.values()) < kills:
            stage = list(ALL)[sum(counts.values()) % len(ALL)]
            out = folder / "killed"
            shutil.rmtree(out, ignore_errors=True)
            hub.repos.clear()
            state, came = kill_and_resume(lab, stage, numbers.uniform(0, seconds[stage]), out, whole[stage], hub)
            if came != "over":
                counts[stage, state, came] += 1
                print(f"{sum(counts.values())}/{kills}: {stage}, {STATES[state]}: {came}", flush=True)
        os.environ.clear()
        os.environ.update(before)
    return counts


def fixed_cases() -> tuple[list[tuple[str, str, str]], float]:
    """Run the fault tests: fault, case and result of each; and their seconds."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        start = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "--long", *map(str, FIXED), f"--junitxml={report.name}"]
        subprocess.run(command, check=False)
        cases = ElementTree.parse(report.name).iter("testcase")
        spent = time.monotonic() - start
        return [(*_named(case.attrib["name"]), _result(case)) for case in cases], spent


def _named(test: str) -> tuple[str, str]:
    name, _, case = test.partition("[")
    return name.removeprefix("test_").replace("_", " "), case.rstrip("]") or "-"


def _result(case: ElementTree.Element) -> str:
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "held")


def render(counts: Counter, cases: list[tuple[str, str, str]], spent_s: float, command: str) -> str:
    """Make the page."""
    tried, lost = sum(counts.values()), sum(n for (*_, came), n in counts.items() if came == "lost")
    lines = [
        "# Faults",
        "",
        f"Written by `{command}` on {date.today().isoformat()}; the fixed points took {spent_s:.0f} s of it.",
        "",
        f"## kill -9 at random moments: {tried} tried, {lost} lost",
        "",
        "Each job was killed, resumed, and compared with an uninterrupted one: weights, objectives' parameters and "
        "logged losses bit for bit, quality figures, cache shards, ONNX files, compressed models, what lies on the "
        "Hub. A report that was there after a kill could be read; of a push the Hub had all files or none. Dropout is "
        "on. A job that had ended before its moment came is not counted, and another one drawn.",
        "",
        "| stage | killed | tried | ended bit-equal | lost |",
        "|---|---|---|---|---|",
    ]
    for stage in ALL:
        for state, words in STATES.items():
            equal, gone = counts[stage, state, "equal"], counts[stage, state, "lost"]
            if equal + gone:
                lines.append(f"| {stage} | {words} | {equal + gone} | {equal} | {gone} |")
    failed = sum(result in ("failure", "error") for *_, result in cases)
    lines += [
        "",
        f"## Every fault at fixed points: {len(cases)} tried, {failed} lost",
        "",
        "| fault and outcome | stage or case | result |",
        "|---|---|---|",
        *(f"| {fault} | {case} | {result} |" for fault, case, result in cases),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Soak, test, and write the page beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts = soak(args.kills, args.seed)
    cases, spent_s = fixed_cases()
    command = f"python tests/faults/soak.py --kills {args.kills} --seed {args.seed}"
    page = render(counts, cases, spent_s, command)
    (HERE / "README.md").write_text(page, encoding="utf-8")
    if not re.search(r"tried, 0 lost\n(.|\n)*tried, 0 lost\n", page):
        raise SystemExit("something was lost: see above")


if __name__ == "__main__":
    main()
