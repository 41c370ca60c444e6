"""The README's Python runs as it stands."""

import re

from chat_models import save_chat_model
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
    # Those of the section without labels: texts, a chat model, a small encoder, and named validation rows.
    raw_rows(40, seed=8).remove_columns("label").to_csv(tmp_path / "texts.csv")
    raw_rows(20, seed=9).to_pandas().replace({"label": {0: "neg", 1: "pos"}}).to_csv(tmp_path / "dev.csv", index=False)
    save_chat_model(tmp_path / "runs/chat-model")
    tiny_bert().save_pretrained(tmp_path / "runs/small-encoder")
    tokenizer.save_pretrained(tmp_path / "runs/small-encoder")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    (tmp_path / "readme.py").write_text("\n".join(blocks))
    done = run_program(["readme.py"], tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "calls: 1" in done.stdout and (tmp_path / "runs/no-labels/report.json").exists()
    assert "eval_agreement" in done.stdout and "same start" in done.stdout and "score" in done.stdout
