"""Texts a second of `DecisionTeacher` and of the decision pipeline's own loop, in turns, in CPU time of one thread.

    OMP_NUM_THREADS=1 python tests/benchmarks/decisions.py

The models are random Llamas, whose time is that of trained ones of their size; the prompts are short texts in a
tokenizer that is trained on the embedded tweets.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, pipeline

from nlpkd.data.demo import load_airline_tweets
from nlpkd.teachers import DecisionTeacher

QUESTION = {
    "type": "choice",
    "instructions": "How does the writer feel about the airline?",
    "criteria": {"negative": "Complaint", "neutral": None, "positive": "Praise"},
}
SYSTEM = "<|start|>system\nYou are a helpful assistant.<|end|>\n"
CHAT = (
    "{{ system }}{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# A template of one's own may put the question first, so that all prompts begin alike.
QUESTION_FIRST = (
    "<|start|>user\n{{ question.instructions }}\n{% for option in question.options %}"
    "{{ question.labels[loop.index0] }}. {{ option }}: {{ question.descriptions[loop.index0] or '' }}\n{% endfor %}"
    "Answer with the letter of the option that fits the text best only.\n\n{{ state }}<|end|>\n<|start|>assistant\n"
)
SIZES = {"2 layers of 32": (2, 32), "4 layers of 256": (4, 256)}


def main() -> None:
    """Time all models with both prompts, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tweets = load_airline_tweets()["train"]["text"][:]
    texts = [text for text in tweets if len(text) < 80][: arguments.texts]
    print("| model | prompt | tokens | pipeline, texts/s | DecisionTeacher, texts/s | ratio | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for size, (layers, width) in SIZES.items():
        for prompt, template in (("transformers' own", None), ("the question first", QUESTION_FIRST)):
            with tempfile.TemporaryDirectory() as folder:
                save_model(Path(folder), tweets, layers, width, template)
                row = compare(folder, texts, arguments.rounds)
            print(f"| {size} | {prompt} | {row} |", flush=True)


def save_model(folder: Path, corpus: list[str], layers: int, width: int, template: str | None) -> None:
    """Save a random model, and a tokenizer of 8,000 byte pairs."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator([*corpus, *map(str, QUESTION.values()), QUESTION_FIRST, SYSTEM], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.add_tokens([AddedToken("<|start|>", special=True, normalized=False)])
    tokenizer.chat_template = CHAT.replace("{{ system }}", SYSTEM)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 8, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    if template is not None:
        (folder / "decision.json").write_text("{}")
        (folder / "decision_template.jinja").write_text(template)


def compare(folder: str, texts: list[str], rounds: int) -> str:
    """Time both on the same texts, in turns, after one round of warm-up."""
    decide, teacher = pipeline("decision", model=folder), DecisionTeacher(folder, QUESTION)
    requests = [{"state": text, "questions": {"label": QUESTION}} for text in texts]
    seconds: dict[str, list[float]] = {"pipeline": [], "teacher": []}
    for _ in range(rounds + 1):
        start = time.process_time()
        theirs = [list(decide(request)["label"]["probabilities"].values()) for request in requests]
        middle = time.process_time()
        ours = teacher.answer(texts)
        seconds["pipeline"].append(middle - start)
        seconds["teacher"].append(time.process_time() - middle)
    difference = np.abs(np.array(theirs) - ours.probabilities).max()
    slow, fast = (statistics.median(each[1:]) for each in seconds.values())
    tokens = statistics.fmean(ours.input_tokens)
    count = len(texts)
    return f"{tokens:.0f} | {count / slow:.0f} | {count / fast:.0f} | {slow / fast:.2f} | {difference:.1e}"


if __name__ == "__main__":
    sys.exit(main())
