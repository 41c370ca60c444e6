"""An exported student in transformers.js, by Node: the files that it asks for, and PyTorch's labels and scores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from samples import sentences, tiny_bert

import nlpkd
from nlpkd.compression import export_int8, export_onnx

pytest.importorskip("onnxruntime", reason="needs the extra `export`")

NODE = shutil.which("node")
TEXTS = sentences(12, seed=5)[0]
# The default in Node is fp32; q8 is the default in a browser.
SCRIPT = """
const { env, pipeline } = require('@huggingface/transformers');
const [folder, name, texts] = JSON.parse(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = folder;
(async () => {
  const found = {};
  for (const dtype of ['fp32', 'q8', 'int8']) {
    const classify = await pipeline('text-classification', name, { dtype });
    found[dtype] = [];
    for (const text of texts) found[dtype].push(...await classify(text, { top_k: null }));
  }
  console.log(JSON.stringify(found));
})();
"""


def node(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    assert NODE is not None
    return subprocess.run([NODE, *words], cwd=cwd, env=os.environ, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def installed() -> None:
    if NODE is None or node("-e", "require.resolve('@huggingface/transformers')").returncode:
        pytest.skip(
            "needs Node and @huggingface/transformers: npm install --ignore-scripts --prefix DIR "
            "@huggingface/transformers, and NODE_PATH=DIR/node_modules"
        )


def test_a_browsers_default_and_other_types_give_our_labels_and_scores(installed, tmp_path, tokenizer):
    folder = tmp_path / "student"
    model = tiny_bert(layers=1, initializer_range=0.5, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    export_onnx(model, tokenizer, folder, texts=TEXTS)
    export_int8(folder, texts=TEXTS)
    (tmp_path / "script.cjs").write_text(SCRIPT)
    answer = node(str(tmp_path / "script.cjs"), json.dumps([str(tmp_path), "student", TEXTS]), cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr[-2000:]
    found = json.loads(answer.stdout.splitlines()[-1])
    files = {"fp32": "onnx/model.onnx", "q8": "onnx/model_int8.onnx", "int8": "onnx/model_int8.onnx"}
    for dtype, file in files.items():
        classify = nlpkd.load(folder, file=file, threads=1)
        expected = [each for text in TEXTS for each in classify(text, top_k=None)]
        assert [each["label"] for each in found[dtype]] == [each["label"] for each in expected], dtype
        scores = [each["score"] for each in found[dtype]]
        assert scores == pytest.approx([each["score"] for each in expected], abs=1e-3), dtype
