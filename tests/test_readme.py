"""The README's Python runs as it stands."""

import re

from paths import ROOT
from processes import run as run_program
from samples import raw_rows, tiny_bert

from nlpkd import DistillationTrainer
from nlpkd.objectives import CrossEntropyLoss


def test_the_readmes_python_runs_in_order(tmp_path, make_rows, settings, tokenizer):
    teacher = tiny_bert(layers=6, seed=1)
    DistillationTrainer(
        model=teacher, objectives=[CrossEntropyLoss()], train_dataset=make_rows(300, seed=5),
        processing_class=tokenizer, args=settings(num_train_epochs=6, learning_rate=5e-3),
    ).train()  # fmt: skip
    teacher.save_pretrained(tmp_path / "runs/quickstart/teacher")
    tokenizer.save_pretrained(tmp_path / "runs/quickstart/teacher")
    rows = raw_rows(300, seed=7).to_pandas()
    rows.rename(columns={"text": "review", "label": "stars"}).to_csv(tmp_path / "reviews.csv", index=False)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 6
    (tmp_path / "readme.py").write_text("\n".join(blocks))
    done = run_program(["readme.py"], tmp_path, timeout=600, fresh=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "eval_agreement" in done.stdout and "baseline" in done.stdout and "score" in done.stdout
