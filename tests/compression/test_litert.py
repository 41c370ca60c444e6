"""LiteRT files: PyTorch's logits at a fixed length, and nothing kept that was not compared."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from samples import sentences, tiny_bert

from nlpkd.compression import export_litert

NEEDS_LITERT = pytest.mark.skipif(
    find_spec("litert_torch") is None, reason='the converter is not installed: pip install "nlpkd[litert]"'
)
TEXTS = sentences(20, seed=3)[0]
PAIRS = list(zip(TEXTS[:10], TEXTS[10:], strict=True))


def trained():
    """Give every weight a value of its own, large enough for a wrong logit to show."""
    model = tiny_bert(hidden_dropout_prob=0.5)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    return model.train()


def run(path, *values) -> np.ndarray:
    """Run a file by the runtime alone, its inputs told by their number."""
    from ai_edge_litert.interpreter import Interpreter

    runtime = Interpreter(str(path))
    runtime.allocate_tensors()
    for detail in runtime.get_input_details():
        number = int(detail["name"].rsplit("_", 1)[1].partition(":")[0])
        runtime.set_tensor(detail["index"], values[number].numpy().astype(detail["dtype"]))
    runtime.invoke()
    return runtime.get_tensor(runtime.get_output_details()[0]["index"])


@NEEDS_LITERT
@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_a_file_gives_pytorchs_logits_and_int8_nearly_so(texts, tmp_path, tokenizer):
    model = trained()
    whole = export_litert(model, tokenizer, tmp_path, tokens=32, texts=texts)
    small = export_litert(model, tokenizer, tmp_path, tokens=32, texts=texts, int8=True)
    assert model.training and whole.agreement == 1.0 and whole.rows == len(texts) and whole.inputs[0] == "input_ids"
    assert (tmp_path / small.file).stat().st_size < (tmp_path / whole.file).stat().st_size
    model.eval()
    worst = {whole.file: 0.0, small.file: 0.0}
    for text in texts:
        pair = (text,) if isinstance(text, str) else text
        alone = tokenizer(*pair, return_tensors="pt")
        padded = tokenizer(*pair, padding="max_length", max_length=32, return_tensors="pt")
        with torch.no_grad():
            expected = model(**alone).logits.numpy()
        for name in worst:
            found = run(tmp_path / name, *(padded[each] for each in whole.inputs))
            worst[name] = max(worst[name], np.abs(found - expected).max())
    assert worst[whole.file] < 1e-3 and whole.largest_difference < 1e-3
    assert small.largest_difference == pytest.approx(worst[small.file], abs=1e-3) and worst[small.file] > 0


@NEEDS_LITERT
def test_a_file_with_other_logits_is_refused_and_what_was_there_stays(tmp_path, tokenizer):
    (tmp_path / "model.tflite").write_bytes(b"before")
    with pytest.raises(RuntimeError, match="other logits than PyTorch"):
        export_litert(trained(), tokenizer, tmp_path, tokens=32, texts=TEXTS, tolerance=0.0)
    assert (tmp_path / "model.tflite").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


@NEEDS_LITERT
def test_more_tokens_than_the_model_takes_are_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="tokens=65 is more than the 64"):
        export_litert(trained(), tokenizer, tmp_path, tokens=65)


@pytest.mark.skipif(find_spec("litert_torch") is not None, reason="the converter is installed")
def test_without_the_converter_the_error_says_what_to_install(tmp_path, tokenizer):
    with pytest.raises(ImportError, match="nlpkd.litert."):
        export_litert(trained(), tokenizer, tmp_path)
