"""Check nlpkd on a GPU: the same results as on the CPU, and how fast it trains there.

    make gpu                                                      # all parts, under eight minutes on one card
    python tests/gpu/check.py --parts training speed              # some of them
    python tests/gpu/check.py --tiny --device cpu                 # on a machine without a card

Each part writes `PART.json` into the output folder when it is done. Started again, the command goes on with the parts
that are missing. It ends with a table of everything that was held to a limit, and with exit status 1 where a limit was
not kept.
"""

import argparse
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path[:0] = [str(Path(__file__).parents[level]) for level in (2, 1, 0)]
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import accelerate  # noqa: E402
import datasets  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from correctness import PARTS as CORRECTNESS  # noqa: E402
from findings import Findings, Setup  # noqa: E402
from speed import PARTS as SPEED  # noqa: E402

PARTS = CORRECTNESS | SPEED


def main() -> int:
    """Run the parts that are asked for and not done yet, and print the table of all that are done."""
    arguments = parse()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        torch.device(arguments.device), arguments.tiny, arguments.train_file, arguments.tokenizer, folder / "work"
    )
    for name in arguments.parts:
        path = folder / f"{name}.json"
        if path.exists() and not arguments.again:
            print(f"{name}: done before, in {path}", file=sys.stderr)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        record = run(name, setup)
        record |= machine(setup.device)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {record['seconds']:.0f} s", file=sys.stderr, flush=True)
    return summarise(folder)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="models and data of a test's size")
    parser.add_argument(
        "--train_file", help="labelled text whose lengths the speed is measured on; the tweets without"
    )
    parser.add_argument("--tokenizer", help="folder of the tokenizer for it; the embedded one without")
    parser.add_argument("--output", default="runs/gpu", help="folder of the records")
    parser.add_argument("--again", action="store_true", help="run parts that are done once more")
    return parser.parse_args()


def run(name: str, setup: Setup) -> dict:
    """Run one part; an error in it is recorded, so that the other parts still run."""
    findings, start = Findings(), time.perf_counter()
    try:
        PARTS[name](setup, findings)
    except Exception as error:
        traceback.print_exc()
        findings.failed(f"{name} ends without an error", f"{type(error).__name__}: {error}"[:300])
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()
    record = {"part": name, "seconds": round(time.perf_counter() - start, 2), "tiny": setup.tiny}
    return record | {"checks": findings.checks, "figures": findings.figures}


def machine(device: torch.device) -> dict:
    """Describe the card and the versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    modules = (torch, transformers, accelerate, datasets)
    return {"device": name, "versions": {module.__name__: module.__version__ for module in modules}}


def summarise(folder: Path) -> int:
    """Print every part's checks and figures as Markdown, write them to `table.md`, and return the exit status."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    lines = ["| part | check | found | limit | |", "|---|---|---|---|---|"]
    for record in records:
        for check in record["checks"]:
            verdict = {True: "ok", False: "FAILED", None: "not run"}[check["ok"]]
            lines.append(f"| {record['part']} | {check['name']} | {check['found']} | {check['limit']} | {verdict} |")
    lines += ["", "| part | figure | value |", "|---|---|---|"]
    for record in records:
        lines += [f"| {record['part']} | {name} | {value} |" for name, value in record["figures"].items()]
    lines += ["", *sorted({f"{record['device']}, {record['versions']}" for record in records})]
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return int(any(check["ok"] is False for record in records for check in record["checks"]))


if __name__ == "__main__":
    sys.exit(main())
