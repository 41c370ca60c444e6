"""What a model costs: the time of a pass, the time from text to label, the size on disk, and on which machine."""

from __future__ import annotations

import itertools
import logging
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.evaluation.records import Latency
from nlpkd.models.capture import logits_of
from nlpkd.models.ensemble import TeacherEnsemble
from nlpkd.models.inference import evaluating, placement
from nlpkd.models.limits import positions_of
from nlpkd.models.onnx_classifier import MODEL_INPUTS, OnnxClassifier
from nlpkd.models.source import ModelSource
from nlpkd.models.structure import forward_arguments
from nlpkd.utils.disk.files import weights_in_use
from nlpkd.utils.disk.full_disk import temporary_folder
from nlpkd.utils.packages import installed_version

logger = logging.getLogger(__name__)

WARM_UP_RUNS = 5

BLOCK_RUNS = 5
"""Runs of one model in a row, as where it serves alone."""

TEXT_PROTOCOL = "; from text to label: as many of the measured texts, one at a time, tokenised, passed and decided"


def measure_latency(
    models: Mapping[str, nn.Module],
    tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
    *,
    batches: Sequence[int] = (1, 32),
    tokens: int | Sequence[int] = 32,
    runs: int = 30,
    seed: int = 42,
) -> dict[str, list[Latency]]:
    """Time forward passes of several models in turn, five of each, so that a busy moment of the machine hits all.

    Args:
        models: the models by name.
        tokenizers: for each, the tokenizer whose ordinary tokens are drawn; any ids of the vocabulary without them.
        batches: batch sizes.
        tokens: tokens in each sequence, or several lengths; there is no padding.
        runs: timed passes a batch size and length, after 5 of warm-up (fewer runs: as many) and one before every five.
        seed: seed of the draw.

    Returns:
        For each model one entry a batch size and length.

    Raises:
        ValueError: when a model takes fewer tokens.
    """
    lengths = [tokens] if isinstance(tokens, int) else list(tokens)
    refuse_more_tokens(models, lengths)
    results: dict[str, list[Latency]] = {name: [] for name in models}
    for length, batch in itertools.product(lengths, batches):
        inputs = {
            name: _synthetic_batch(model, (tokenizers or {}).get(name), batch, length, seed)
            for name, model in models.items()
        }
        passes = {
            name: lambda run, model=model, given=inputs[name]: _forward_ms(model, given)
            for name, model in models.items()
        }
        for name, values in _times_in_turn(models, passes, runs).items():
            percentiles = (float(value) for value in np.percentile(values, [50, 95, 99]))
            model = models[name]
            threads = model.threads if isinstance(model, OnnxClassifier) else torch.get_num_threads()
            results[name].append(Latency(batch, length, threads, *percentiles))
    return results


def refuse_more_tokens(models: Mapping[str, nn.Module], lengths: Sequence[int]) -> None:
    """Refuse to time models on more tokens than they take.

    Args:
        models: the models by name.
        lengths: tokens in a sequence.

    Raises:
        ValueError: when a model takes fewer.
    """
    for name, model in models.items():
        longest = positions_of(getattr(model, "config", None))
        if longest is not None and longest < max(lengths):
            raise ValueError(
                f"latency_tokens={max(lengths)} is more than the {longest} tokens that the {name} takes: give at most "
                f"{longest}"
            )


def measure_text_to_label(
    models: Mapping[str, nn.Module],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    texts: Sequence[Sequence[str]],
    *,
    max_tokens: Mapping[str, int],
    runs: int = 30,
) -> dict[str, float]:
    """Time several models from plain text to label in turn, one text at a time: tokenising, one pass, the decision.

    A fast tokenizer's own `encode` makes the tokens, as a server of the model has it; a slow one is called.

    Args:
        models: the models by name.
        tokenizers: of each.
        texts: one text each, or two of a pair; used in order, and again from the first where they are fewer than
            `runs`.
        max_tokens: of each model, where its texts are cut.
        runs: timed texts, after warm-up as in `measure_latency`.

    Returns:
        The median in milliseconds by name.
    """
    answers = {
        name: partial(_text_to_label_ms, model, _encoder(tokenizers[name], texts[0], max_tokens[name]))
        for name, model in models.items()
    }
    passes = {name: lambda run, answer=answer: answer(texts[run % len(texts)]) for name, answer in answers.items()}
    return {name: statistics.median(times) for name, times in _times_in_turn(models, passes, runs).items()}


def _times_in_turn(
    models: Mapping[str, nn.Module], passes: Mapping[str, Callable[[int], float]], runs: int
) -> dict[str, list[float]]:
    """Take the times of every model's runs, `BLOCK_RUNS` of each in turn, after runs of warm-up."""
    times_ms: dict[str, list[float]] = {name: [] for name in passes}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        for take in passes.values():
            for run in range(min(WARM_UP_RUNS, runs)):
                take(run)
        for start in range(0, runs, BLOCK_RUNS):
            for name, take in passes.items():
                # Weights that another model drove out of the processor's caches come back untimed.
                take(start)
                times_ms[name] += [take(run) for run in range(start, min(start + BLOCK_RUNS, runs))]
    return times_ms


def count_flops(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None, *, tokens: int = 32) -> int | None:
    """Count the floating-point operations of one pass over one sequence, with `torch.utils.flop_counter`.

    Matrix products count two for each multiply and add; element-wise operations (norms, activations, softmax) are not
    counted.

    Args:
        model: the model.
        tokenizer: whose ordinary tokens are drawn; any ids of the vocabulary without it.
        tokens: tokens in the sequence.

    Returns:
        The operations; None for a recurrent network, whose products torch does not count, and for a model that runs
        outside torch.
    """
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return None
    inputs = _synthetic_batch(model, tokenizer, 1, tokens, seed=0)
    # torch has no formula for the fused attention on a CPU: it would count nothing. Its tracker of modules looks up
    # the history of each tensor that asks for a gradient and is handed to a module, and a parameter has none.
    with (
        _without_gradients(model),
        evaluating(model),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(**inputs)
    return counter.get_total_flops() or None


def model_size_mb(model: nn.Module | str | Path) -> float:
    """Return the size of a model's safetensors file or files, or of its ONNX file.

    Args:
        model: a model, saved to a temporary directory for this; an `OnnxClassifier`; an ensemble, whose members are
            added up; or the directory of a saved one.

    Returns:
        Megabytes (10^6 bytes); of a model with adapters inside of it all of its weights, and not the adapters alone.

    Raises:
        ValueError: when the directory holds no safetensors file.
    """
    if isinstance(model, (str, Path)):
        sizes = [file.stat().st_size for file in weights_in_use(Path(model))]
        if not sizes:
            raise ValueError(f"{model} holds no model*.safetensors file: give the directory of a saved model")
        return sum(sizes) / 1e6
    if isinstance(model, TeacherEnsemble):
        return sum(map(model_size_mb, model.members))
    if isinstance(model, OnnxClassifier):
        return model.size_mb
    with temporary_folder() as directory:
        # Of a model with adapters inside of it save_pretrained writes these alone.
        if isinstance(model, PreTrainedModel) and not getattr(model, "_hf_peft_config_loaded", False):
            model.save_pretrained(directory)
        else:
            save_model(model, str(directory / "model.safetensors"))
        return model_size_mb(directory)


def loaded_size_mb(source: ModelSource, loaded: nn.Module) -> float | None:
    """Return the size of a model where it was loaded from, whatever dtype it was loaded in.

    Args:
        source: where it comes from.
        loaded: the model, as it was loaded.

    Returns:
        Megabytes (10^6 bytes) of the files of a folder or a Hub id; of a model in memory as `size_mb_if_known` says.
    """
    folder = source.weights_folder()
    return size_mb_if_known(loaded) if folder is None else model_size_mb(folder)


def size_mb_if_known(model: nn.Module) -> float | None:
    """Return the size of a model as `model_size_mb` does, if it can be told: it is a figure that nothing rests on.

    Args:
        model: any module.

    Returns:
        Megabytes (10^6 bytes); None of a model that can't be saved, such as one with the packed weights of
        `torch.ao.quantization`, with the reason in the log.
    """
    try:
        return model_size_mb(model)
    except Exception as error:  # A model that can't be saved raises whatever its libraries run into.
        logger.warning("The size of the %s is not known, since it can't be saved: %s", type(model).__name__, error)
        return None


def count_parameters(model: nn.Module) -> int:
    """Count a model's parameters, or the weights in its ONNX file.

    Args:
        model: any module; of an ensemble the members are added up.

    Returns:
        How many numbers they are.
    """
    if isinstance(model, TeacherEnsemble):
        return sum(map(count_parameters, model.members))
    if isinstance(model, OnnxClassifier):
        return model.num_weights
    return sum(parameter.numel() for parameter in model.parameters())


def describe_environment() -> dict[str, Any]:
    """Describe what the figures are made with and on.

    Returns:
        `{"versions": {package: version}, "machine": {"cpu", "cores", "threads", "platform", "gpu"}}`.
    """
    cpu_info = Path("/proc/cpuinfo")
    model_name = re.search(r"model name\s*:\s*(.+)", cpu_info.read_text()) if cpu_info.exists() else None
    versions = {package: installed_version(package) for package in ("torch", "transformers", "datasets")}
    own = installed_version("nlpkd") or "not installed"
    return {
        "versions": {"nlpkd": own, "python": platform.python_version(), **versions},
        "machine": {
            "cpu": model_name.group(1) if model_name else platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def latency_protocol(models: Mapping[str, nn.Module], tokens: int | Sequence[int], runs: int) -> str:
    """Describe how `measure_latency` timed the models, and warn where their times don't compare.

    Args:
        models: the models by name.
        tokens: tokens in each sequence, or several lengths.
        runs: timed passes; 0 for none.

    Returns:
        One sentence for the report.
    """
    if not runs:
        return "latency was not measured"
    in_torch = {name: model for name, model in models.items() if not isinstance(model, OnnxClassifier)}
    placements = {name: "{1} on {0}".format(*placement(model)) for name, model in in_torch.items()}
    if len(set(placements.values())) > 1:
        logger.warning("The latencies don't compare: the candidates differ in dtype or device: %s", placements)
    where = ", ".join(sorted(set(placements.values()))).replace("torch.", "")
    if others := ", ".join(name for name in models if name not in in_torch):
        where += f"; {others} by ONNX Runtime on cpu"
    lengths = tokens if isinstance(tokens, int) else ", ".join(map(str, tokens))
    warm_up = min(WARM_UP_RUNS, runs)
    return (
        f"latency: one forward pass on {lengths} random ordinary tokens a sequence, no padding, {where}, eval mode, "
        f"torch.inference_mode, {warm_up} warm-up and {runs} timed passes, {BLOCK_RUNS} of each candidate in "
        f"turn after one untimed, time.perf_counter, threads: {torch.get_num_threads()}"
    )


def _synthetic_batch(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, batch: int, tokens: int, seed: int
) -> dict[str, torch.Tensor]:
    """Draw ids `(batch, tokens)` of ordinary tokens, an encoder-decoder's end token last, and a mask of ones."""
    config: Any = getattr(model, "config", None)
    if tokenizer is None:
        ordinary = sorted(set(range(config.vocab_size)) - {getattr(config, "pad_token_id", None)})
    else:
        vocabulary = getattr(config, "vocab_size", len(tokenizer))
        ordinary = sorted(set(range(min(vocabulary, len(tokenizer)))) - set(tokenizer.all_special_ids))
    drawn = np.random.default_rng(seed).choice(ordinary, size=(batch, tokens))
    end = getattr(config, "eos_token_id", None)
    if getattr(config, "is_encoder_decoder", False) and end is not None:
        # Such a classifier reads a text at its end token, of which every text needs one.
        drawn[:, -1] = end
    ids = torch.from_numpy(drawn).to(placement(model)[0])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    accepted = forward_arguments(model)
    return {name: tensor for name, tensor in inputs.items() if name in accepted}


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient, and afterwards those that did."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _forward_ms(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> float:
    """Time one pass of a model that is `evaluating`."""
    on_gpu = inputs["input_ids"].is_cuda
    if on_gpu:
        torch.cuda.synchronize(inputs["input_ids"].device)
    start = time.perf_counter()
    model(**inputs)
    if on_gpu:
        torch.cuda.synchronize(inputs["input_ids"].device)
    return (time.perf_counter() - start) * 1e3


def _encoder(
    tokenizer: Any, example: Sequence[str], max_tokens: int
) -> Callable[[Sequence[str]], dict[str, list[list[int]]]]:
    """Return what turns a text, or two of a pair, into the inputs of a batch of one, cut to `max_tokens`."""
    # As `nlpkd.data` reads rows: a pair has segments, whatever the tokenizer gives of its own accord.
    read = partial(
        tokenizer,
        truncation=True,
        max_length=max_tokens,
        return_attention_mask=True,
        return_token_type_ids=True if len(example) > 1 else None,
        verbose=False,
    )
    # The call leaves its truncation set in the backend.
    wanted = [name for name in MODEL_INPUTS if name in read(*example)]
    if not tokenizer.is_fast:
        return lambda text: {name: [ids] for name, ids in read(*text).items() if name in wanted}
    encode = tokenizer.backend_tokenizer.encode

    def inputs(text: Sequence[str]) -> dict[str, list[list[int]]]:
        encoded = encode(*text)
        made = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
        return {name: [made[name]] for name in wanted}

    return inputs


def _text_to_label_ms(model: nn.Module, encode: Callable[[Any], Mapping[str, Any]], text: Sequence[str]) -> float:
    """Time one answer of a model that is `evaluating`."""
    device, accepted = placement(model)[0], forward_arguments(model)
    start = time.perf_counter()
    inputs = {name: torch.tensor(ids, device=device) for name, ids in encode(text).items() if name in accepted}
    logits_of(model(**inputs)).argmax(dim=-1).tolist()
    return (time.perf_counter() - start) * 1e3
