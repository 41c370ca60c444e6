"""Which token of a text a classifier reads, and what padding beside the text may do to that."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.data.tokenization import refuse_paths, with_usual_padding

_READ_PADDING = {"convbert", "fnet", "nystromformer", "perceiver", "reformer", "yoso"}
"""Families that mix a text with the padding beside it, whatever the attention mask says, and read one without too.

CANINE and Funnel, which pool tokens, mix them likewise, and can't read the shortest texts without padding."""


def is_causal(model: nn.Module) -> bool:
    """Check whether a token sees only those before it, so that a text's last token alone has read it all.

    Args:
        model: any module.

    Returns:
        True for decoders: most families say it at their attention, and all but two of those that classify by the last
        token call their head `score`. False for an encoder with a decoder behind it, which reads texts at their end
        token, unless it has such a head.
    """
    if any(hasattr(module, "score") for module in _classifiers(model)):
        return True
    encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return not encodes and any(getattr(module, "is_causal", False) is True for module in model.modules())


def reads_last_token(model: nn.Module) -> bool:
    """Check whether a text's last token stands for it: that of decoders and of XLNet. Of others the first one does."""
    return is_causal(model) or _reads_last_place(model)


def reads_padding(model: nn.Module) -> bool:
    """Check whether a text's logits depend on the padding beside it, as in FNet, which reads no attention mask.

    Args:
        model: a classifier, or its ONNX file.

    Returns:
        Whether its family is one of those, and reads any text without padding.
    """
    config = getattr(model, "config", None)
    config = getattr(config, "base_config", None) or config
    # MobileBERT reads the next token beside each one, which behind the last one is padding.
    return getattr(config, "model_type", None) in _READ_PADDING or getattr(config, "trigram_input", False) is True


def refuse_unknown_padding(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, role: str, at_once: int = 2
) -> None:
    """Refuse a classifier that would take the padding of a batch for the last token of a text, which it reads.

    Args:
        model: the model; one that reads the first token, or has no config, is passed.
        tokenizer: what pads its texts, or None where that is not known.
        role: what messages call the model, such as `"student"` or `"teacher"`.
        at_once: texts of a batch; a text alone has no padding.

    Raises:
        ValueError: if its config has no padding token, or another one than the tokenizer; if it reads the last place,
            and the tokenizer pads there; if the tokenizer is a path.
    """
    refuse_paths(tokenizer)
    config: Any = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig) or at_once < 2:
        return
    if tokenizer is not None and _reads_last_place(model) and with_usual_padding(tokenizer).padding_side == "right":
        raise ValueError(
            f"the {role} classifies by the last place, where a {type(tokenizer).__name__} pads: load the tokenizer of "
            "its own family, such as XLNetTokenizer, which pads on the left"
        )
    padding = config.get_text_config().pad_token_id
    used = None if tokenizer is None else tokenizer.pad_token_id
    if is_causal(model) and (padding is None or used not in (None, padding)):
        raise ValueError(
            f"the {role} classifies by the last token that is no padding, its config has pad_token_id {padding} and "
            f"the tokenizer {used}: set config.pad_token_id = tokenizer.pad_token_id of the {role}, the tokenizer "
            "being the one that it was fine-tuned with"
        )


def _reads_last_place(model: nn.Module) -> bool:
    """Check whether a head reads the last place of a batch, be it padding or not, as XLNet's does."""
    return any(
        hasattr(module, "sequence_summary") and getattr(module.config, "summary_type", None) == "last"
        for module in _classifiers(model)
    )


def _classifiers(model: nn.Module) -> list[Any]:
    """List the models of transformers in a model: itself, in an adapter's wrapper, what is in it."""
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]
