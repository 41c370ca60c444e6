"""A transformers classifier some of whose linear layers have other shapes than its config says, saved and loaded.

Importing this module registers the model type `nlpkd_reshaped` with `AutoConfig` and
`AutoModelForSequenceClassification`; `import nlpkd` sees to it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from nlpkd.models.structure import forward_arguments

_SHOWN = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "pad_token_id",
    "id2label",
    "label2id",
    "problem_type",
    "thresholds",
)
"""What others read of a model's config, by the names that every family knows them by."""


def settings_without(names: Collection[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave settings out of a config, and of the configs within it, such as a reshaped model's base.

    Args:
        names: of the settings.
        settings: the config, as its file has it.

    Returns:
        The other settings. What is no config, such as thresholds by the names of labels, is as it was.
    """
    return {
        name: settings_without(names, value) if isinstance(value, Mapping) and "model_type" in value else value
        for name, value in settings.items()
        if name not in names
    }


class ReshapedConfig(PreTrainedConfig):
    """Settings of a `ReshapedForSequenceClassification`.

    Args:
        base_config: the config of the model that is reshaped.
        linears: name of a linear layer -> `[in, out]`, or `[in, rank, out]` for two matrices one after the other.
    """

    model_type = "nlpkd_reshaped"
    sub_configs = {"base_config": AutoConfig}

    base_config: dict[str, Any] | PreTrainedConfig | None = None
    linears: dict[str, list[int]] | None = None

    def __post_init__(self, **kwargs: Any):
        if isinstance(self.base_config, dict):
            self.base_config = AutoConfig.for_model(**self.base_config)
        if self.base_config is not None:
            # transformers leaves this path out of a file for the outer config alone.
            self.base_config._name_or_path = ""
        super().__post_init__(**kwargs)
        if self.base_config is not None and self.num_labels is not None:
            # A file may leave out the base's number, which the family may then take for another one.
            self.base_config.num_labels = self.num_labels


class ReshapedForSequenceClassification(PreTrainedModel):
    """A classifier of transformers with some linear layers replaced.

    Args:
        config: the settings.
    """

    config: Any
    config_class = ReshapedConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: ReshapedConfig):
        super().__init__(config)
        # The dtype that this model is made in, whatever the base's config says.
        self.base = AutoModelForSequenceClassification.from_config(config.base_config, dtype=torch.get_default_dtype())
        for name, shape in (config.linears or {}).items():
            self.base.set_submodule(name, _layer(shape, self.base.get_submodule(name).bias is not None))
        self._accepted = forward_arguments(self.base)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> SequenceClassifierOutput:
        """Classify texts as the base model does.

        Args:
            input_ids: `(batch, seq)`.
            attention_mask: 1 for real tokens, 0 for padding, `(batch, seq)`.
            token_type_ids: `(batch, seq)`; passed over where the base model takes none.
            inputs_embeds: in place of `input_ids`, `(batch, seq, hidden)`.
            labels: for the loss of `config.problem_type`, as of any model of transformers.
            **options: such as `output_hidden_states`.

        Returns:
            Logits `(batch, labels)`, the loss where there are labels, and what the options ask for.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
        }
        given = {name: value for name, value in inputs.items() if value is not None and name in self._accepted}
        outputs = self.base(**given, **options)
        if labels is not None:
            outputs.loss = self.loss_function(labels=labels, pooled_logits=outputs.logits, config=self.config)
        return outputs

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding table."""
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding table."""
        self.base.set_input_embeddings(value)

    def _init_weights(self, module: nn.Module) -> None:
        self.base._init_weights(module)


AutoConfig.register(ReshapedConfig.model_type, ReshapedConfig)


AutoModelForSequenceClassification.register(ReshapedConfig, ReshapedForSequenceClassification)


def rebuild(
    model: PreTrainedModel, config: PreTrainedConfig, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Make a classifier of a changed config and weights.

    Args:
        model: the model they were changed from, whose device and mode the new one gets.
        config: the config.
        weights: all weights by name.
        dtype: dtype of the weights; the model's if None.

    Returns:
        The classifier that the config is of.

    Raises:
        ValueError: if weights of these shapes are not what a model of that config has.
    """
    with torch.random.fork_rng():
        made = AutoModelForSequenceClassification.from_config(config, dtype=dtype or model.dtype)
    try:
        made.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{type(model).__name__} has no form with these layers: its family gives them other shapes, so compress "
            f"it by another method ({' '.join(str(error).split())[:200]})"
        ) from error
    return made.to(model.device).train(model.training)


def reshape_linears(
    model: PreTrainedModel, shapes: Mapping[str, Sequence[int]], weights: Mapping[str, Tensor]
) -> PreTrainedModel:
    """Replace linear layers of a model by ones of other shapes.

    Args:
        model: a classifier, perhaps reshaped already; left as it is.
        shapes: name of a linear layer -> `[in, out]`, or `[in, rank, out]` for two matrices one after the other.
        weights: the model's weights by name, those of the layers in the new shapes; of two matrices `NAME.0.weight`
            `(rank, in)` and `NAME.1.weight` `(out, rank)`, with the bias in `NAME.1.bias`.

    Returns:
        A `ReshapedForSequenceClassification`.
    """
    linears = {name: list(shape) for name, shape in shapes.items()}
    if isinstance(model, ReshapedForSequenceClassification):
        config = copy.deepcopy(model.config)
        config.linears |= {name.removeprefix("base."): shape for name, shape in linears.items()}
        return rebuild(model, config, weights)
    known = {name: getattr(model.config, name) for name in _SHOWN if hasattr(model.config, name)}
    config = ReshapedConfig(base_config=copy.deepcopy(model.config), linears=linears, **known)
    return rebuild(model, config, {f"base.{name}": tensor for name, tensor in weights.items()})


def _layer(shape: Sequence[int], bias: bool) -> nn.Module:
    if len(shape) == 2:
        return nn.Linear(shape[0], shape[1], bias=bias)
    return nn.Sequential(nn.Linear(shape[0], shape[1], bias=False), nn.Linear(shape[1], shape[2], bias=bias))
