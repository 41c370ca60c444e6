"""Run a model and keep hidden states, attention maps and Q/K/V of the layers asked for, and no others, under sdpa."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from transformers import PreTrainedModel

from nlpkd.models.attention import _RECORDED, CAPTURING_SDPA, Wanted, _BeforeDropout, _record
from nlpkd.models.padding import reads_last_token
from nlpkd.models.structure import forward_arguments, required_arguments, without_adapter

_TAKES_LAYERS = Version(transformers.__version__) >= Version("5.23")
"""Whether `output_hidden_states` may be a list of layers."""


_OTHER_LAYERS = (
    "this family does not show its layers as transformers' encoders do; use objectives on logits (the preset 'hinton')"
)


@dataclass
class CapturedOutput:
    """What an objective is given of a model.

    Attributes:
        logits: `(batch, labels)`.
        hidden_states: entry k is layer k, entry 0 the embeddings, `(batch, seq, hidden)`; None where not asked for.
        attentions: entry k - 1 is layer k, softmax(QK'/sqrt(d)) before dropout, `(batch, heads, seq, seq)`.
        queries: entry k - 1 is layer k, `(batch, heads, seq, head)`.
        keys: as `queries`.
        values: as `queries`.
        pooled_index: the token that stands for each text, `(batch,)`: of decoders and XLNet the last real one; None:
            the first.
        least_logits: of a multi-label teacher that decides by thresholds of its own, what the logit of a label that it
            gives is above, `(labels,)`; None: 0.
    """

    logits: Tensor
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor | None, ...] | None = None
    queries: tuple[Tensor | None, ...] | None = None
    keys: tuple[Tensor | None, ...] | None = None
    values: tuple[Tensor | None, ...] | None = None
    pooled_index: Tensor | None = None
    least_logits: Tensor | None = None


def logits_of(outputs: Any) -> Tensor:
    """Return the logits of whatever a classifier returns when it is given no labels: a tensor, a tuple, a mapping.

    Args:
        outputs: of a forward pass.

    Returns:
        `(batch, labels)`.

    Raises:
        ValueError: of a model without a head.
    """
    if isinstance(outputs, Mapping) and "logits" not in outputs:
        raise ValueError(
            f"a model does not classify texts: it returns a {type(outputs).__name__} without logits. Load it with "
            "AutoModelForSequenceClassification, or put a head on it"
        )
    if isinstance(outputs, Tensor):
        return outputs
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]


def _recomputes(model: nn.Module) -> bool:
    """Check whether activation checkpointing is on, that of transformers or that of FSDP."""
    return any(
        getattr(module, "gradient_checkpointing", False) or isinstance(module, CheckpointWrapper)
        for module in model.modules()
    )


class Capture:
    """One model's forward pass on a collated batch, keeping what the objectives want of it.

    Attributes:
        recorded: runs a pass in another way than `run`, or returns None where it can't; None: always `run`.

    Args:
        model: the model, not wrapped. It is switched from sdpa to a recording sdpa where attention maps or Q/K/V are
            wanted; an eager model gives its own maps.
        wanted: kinds and layers.
        role: `"student"` or `"teacher"`, for the errors.
        prefix: `"teacher_"` where the model reads columns of its own, made with its own tokenizer.

    Raises:
        ValueError: if the model can't give what is wanted.
    """

    def __init__(self, model: nn.Module, wanted: Wanted, role: str, prefix: str = ""):
        self.wanted = {kind: layers for kind, layers in wanted.items() if layers}
        self.role, self.prefix = role, prefix
        inner = without_adapter(model)
        # Several teachers together read columns of several tokenizers, which no signature can name.
        names = getattr(model, "columns", None) or forward_arguments(inner)
        self.arguments = {name for name in names if "label" not in name}
        self.depth: int | None = None
        self._known_maps = False
        self.reads_last = reads_last_token(inner)
        self.recorded: Callable[[nn.Module, Mapping[str, Any]], CapturedOutput | None] | None = None
        # Keys and values of all layers are kept for a next token, which a classifier never asks for.
        self.options: dict[str, Any] = {"use_cache": False} if "use_cache" in names else {}
        if isinstance(inner, PreTrainedModel) and not inner.config.return_dict:
            # Of a tuple nobody knows what is what.
            self.options["return_dict"] = True
        if not self.wanted:
            return
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError(
                f"the objectives need {sorted(self.wanted)} of the {role}, whose adapter puts a prompt of its own "
                "before the tokens: use objectives on logits, or an adapter that leaves the tokens alone, such as LoRA"
            )
        if not isinstance(inner, PreTrainedModel):
            raise ValueError(
                f"the objectives need {sorted(self.wanted)} of the {role}, and {type(model).__name__} is no "
                "transformers PreTrainedModel, of which only logits can be had: use objectives on logits"
            )
        if inner.config.is_encoder_decoder:
            raise ValueError(
                f"the objectives need {sorted(self.wanted)} of the {role}, and {type(inner).__name__} has an encoder "
                "and a decoder, which show no single stack of layers: use objectives on logits (the preset 'hinton')"
            )
        self.depth = getattr(inner.config, "num_hidden_layers", None)
        if self.depth is None:
            raise ValueError(
                f"the objectives need {sorted(self.wanted)} of the {role}, and the config of {type(inner).__name__} "
                "has no num_hidden_layers: use objectives on logits (the preset 'hinton')"
            )
        if role == "student" and getattr(inner.config, "layerdrop", None):
            raise ValueError(
                f"the objectives need {sorted(self.wanted)} of the {role}, which leaves layers out at random as it is "
                f"trained (layerdrop={inner.config.layerdrop}): set layerdrop to 0 in its config, or use objectives "
                "on logits (the preset 'hinton')"
            )
        if "hidden_states" in self.wanted:
            # Older versions keep all states for the time of the forward pass; what nobody wants is dropped after it.
            self.options["output_hidden_states"] = sorted(self.wanted["hidden_states"]) if _TAKES_LAYERS else True
        if not self.wanted.keys().isdisjoint(_RECORDED):
            self._prepare_attention(inner, role)

    def _prepare_attention(self, model: PreTrainedModel, role: str) -> None:
        implementation = model.config._attn_implementation
        if implementation == "sdpa":
            model.set_attn_implementation(CAPTURING_SDPA)
        elif implementation == "eager" and self.wanted.keys().isdisjoint({"queries", "keys", "values"}):
            self.options["output_attentions"] = True
        elif implementation == "eager":
            advice = "load it with attn_implementation='sdpa', or match"
            if not model._supports_sdpa:
                advice = f"{type(model).__name__} has no other attention: match"
            raise ValueError(
                f"the objectives need queries, keys or values of the {role}, which eager attention does not give: "
                f"{advice} attention maps (AttentionMSELoss on probabilities, AttentionKLLoss) or hidden states "
                "instead"
            )
        elif implementation != CAPTURING_SDPA:
            raise ValueError(
                f"the {role} runs attention by {implementation!r}, which gives no attention maps: load it with "
                "attn_implementation='sdpa' (or 'eager'), or drop the attention objectives"
            )

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Select what the model's forward takes of a batch, labels excepted."""
        own = {name[len(self.prefix) :]: value for name, value in batch.items() if name.startswith(self.prefix)}
        return {name: value for name, value in own.items() if name in self.arguments}

    def refuse_other_columns(self, model: nn.Module, batch: Mapping[str, Any], role: str) -> None:
        """Refuse a model whose forward takes other things than a batch has.

        Args:
            model: the model.
            batch: a collated one.
            role: `"student"` or `"teacher"`, for the error.

        Raises:
            ValueError: if the batch has none of its arguments, or not all that it can't do without.
        """
        given = self.inputs(batch)
        missing = required_arguments(model) - given.keys()
        if missing or not given:
            raise ValueError(
                f"the forward of the {role} ({type(model).__name__}) takes {sorted(missing | self.arguments)}, and "
                f"the batch has {sorted(batch)} (labels are for the objectives alone): name its arguments as the "
                "columns are named, such as input_ids and attention_mask, or give a data_collator that makes them"
            )

    def pooled_index(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Find the token that stands for each text, `(batch,)`: the last real one, or None for the first."""
        return self._pooled_index(self.inputs(batch))

    def _pooled_index(self, inputs: Mapping[str, Any]) -> Tensor | None:
        if not self.reads_last:
            return None
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        return (mask.long() * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> CapturedOutput:
        """Run the model once on a collated batch; see `run`."""
        inputs = self.inputs(batch)
        if "input_ids" in self.arguments and "input_ids" not in inputs:
            raise ValueError(
                f"the {self.role} reads the column {self.prefix}input_ids, and these rows have {sorted(batch)}: load "
                "them with load_text_classification(..., teacher_tokenizer=...), as the training rows"
            )
        captured = None if self.recorded is None else self.recorded(model, inputs)
        return self.run(model, inputs) if captured is None else captured

    def run(self, model: nn.Module, inputs: Mapping[str, Any]) -> CapturedOutput:
        """Run the model once.

        Args:
            model: the model of the constructor, or what wraps it now (DDP, a compiled module).
            inputs: what its forward takes, as `inputs` selects it of a batch.

        Returns:
            Logits, and per kind a tuple over layers with None where nothing was asked for.

        Raises:
            RuntimeError: if the model did not give what was wanted.
        """
        before = _BeforeDropout()
        dropped = model.training and "output_attentions" in self.options
        # Activation checkpointing runs a layer again without a recording, which then has to do the same as before.
        at_once = "attentions" in self.wanted and not (torch.is_grad_enabled() and _recomputes(model))
        with _record(self.wanted, at_once) as recording, before if dropped else nullcontext():
            outputs = model(**inputs, **self.options)
        captured = CapturedOutput(logits=logits_of(outputs))
        for kind in _RECORDED:
            setattr(captured, kind, recording.layers(kind))
        if "hidden_states" in self.wanted:
            wanted = self.wanted["hidden_states"]
            states = getattr(outputs, "hidden_states", None) or ()
            captured.hidden_states = tuple(s if k in wanted else None for k, s in enumerate(states))
            captured.pooled_index = self._pooled_index(inputs)
        if "output_attentions" in self.options:
            wanted = self.wanted["attentions"]
            maps = before.maps or getattr(outputs, "attentions", None) or ()
            captured.attentions = tuple(m if k in wanted else None for k, m in enumerate(maps, start=1))
        self._check(captured, inputs)
        return captured

    def _check(self, captured: CapturedOutput, inputs: Mapping[str, Any]) -> None:
        for kind, layers in self.wanted.items():
            first = 0 if kind == "hidden_states" else 1
            found = getattr(captured, kind) or ()
            depth = len(found) - 1 + first
            if depth != self.depth or any(found[layer - first] is None for layer in layers):
                raise RuntimeError(
                    f"layers {sorted(layers)} of {self.depth} were asked for {kind}, and the model gave {depth}: "
                    f"{_OTHER_LAYERS}"
                )
            for layer in layers:
                # A state is (batch, seq, hidden), a map (batch, heads, seq, seq), all else (batch, heads, seq, head).
                sizes = {"hidden_states": (1,), "attentions": (-2, -1)}.get(kind, (-2,))
                shape, tokens = found[layer - first].shape, inputs["input_ids"].shape[1]
                if any(shape[size] != tokens for size in sizes):
                    raise RuntimeError(
                        f"of texts of {tokens} tokens the model gave {kind} of the shape {tuple(shape)}: "
                        f"{_OTHER_LAYERS}"
                    )
        if "output_attentions" in self.options and not self._known_maps:
            # Once, since a GPU is waited for: some families return scores. A row without any key sums up to 0.
            self._known_maps = True
            sums = torch.stack([captured.attentions[layer - 1].sum(-1) for layer in self.wanted["attentions"]])  # type: ignore[index, union-attr]
            if not ((sums - 1).abs().minimum(sums.abs()) < 0.01).all():
                raise RuntimeError(f"the model's attention maps are no probabilities: {_OTHER_LAYERS}")
