"""Small teachers of several model families, with 6 layers and 3 named labels."""

from __future__ import annotations

import copy

import torch
from samples import tiny_bert
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NAMES = {"id2label": {0: "neg", 1: "neutral", 2: "pos"}, "label2id": {"neg": 0, "neutral": 1, "pos": 2}}
SIZE = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.2,
}


def bert():
    return tiny_bert(layers=6, num_labels=3, initializer_range=0.2, **NAMES)


def distilbert():
    config = DistilBertConfig(
        vocab_size=30, dim=16, n_layers=6, n_heads=2, hidden_dim=32, initializer_range=0.2, **NAMES
    )
    return DistilBertForSequenceClassification(config)


def roberta():
    return RobertaForSequenceClassification(RobertaConfig(**SIZE, max_position_embeddings=40, **NAMES))


def electra():
    config = ElectraConfig(**SIZE, embedding_size=8, **NAMES)  # narrower embeddings, as ELECTRA-small has them
    return ElectraForSequenceClassification(config)


def modernbert():
    config = ModernBertConfig(
        **SIZE, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, **NAMES
    )
    return ModernBertForSequenceClassification(config)


def llama():
    sizes = SIZE | {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    return LlamaForSequenceClassification(LlamaConfig(**sizes, **NAMES))


FAMILIES = {
    "bart": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    "canine": {"num_hash_buckets": 32, "max_position_embeddings": 64},
    "convbert": {"embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3},
    "esm": {"pad_token_id": 1, "mask_token_id": 4},
    "fnet": {},
    "funnel": {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 1]},
    "esmc": {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 1, "cls_token_id": 0, "eos_token_id": 2},
    "luke": {"entity_vocab_size": 5, "entity_emb_size": 16},
    "lilt": {"hidden_size": 24},
    "longformer": {"attention_window": 4},
    "perceiver": {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_blocks": 1, "num_self_attends_per_block": 2,
                  "num_self_attention_heads": 2, "num_cross_attention_heads": 2},
    "roc_bert": {"pronunciation_vocab_size": 9, "shape_vocab_size": 9, "pronunciation_embed_dim": 8,
                 "shape_embed_dim": 8},
    "roformer": {},
    "squeezebert": {"embedding_size": 16},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2,
           "decoder_start_token_id": 0},
    "xlm": {"emb_dim": 16, "n_heads": 2, "n_layers": 2},
    "xlnet": {"d_model": 16, "n_head": 2, "n_layer": 2, "d_inner": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}  # fmt: skip
"""The settings of families whose code is not as BERT's, beside those that most have."""
# An older transformers does not know them all.
FAMILIES = {name: settings for name, settings in FAMILIES.items() if name in CONFIG_MAPPING}

OWN_SIZES = ("bart", "funnel", "perceiver", "t5", "xlm", "xlnet")


def of_family(name):
    """A model of two layers of one of `FAMILIES`."""
    sizes = {"vocab_size": 30} if name in OWN_SIZES else SIZE | {"num_hidden_layers": 2}
    config = AutoConfig.for_model(name, **(sizes | NAMES | FAMILIES[name]))
    return AutoModelForSequenceClassification.from_config(config)


def make(family):
    torch.manual_seed(0)
    return family().eval()


def logits_of(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


def reloaded(model, folder):
    model.save_pretrained(folder)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for (name, tensor), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    return loaded


def by_finite_differences(model, layers, groups: int, rows, step: float = 1e-4) -> list[torch.Tensor]:
    """The change of each text's loss as a group of what a layer reads is scaled up and down, averaged by its size."""
    model = copy.deepcopy(model).double().eval()
    found = []
    for name in layers:
        layer, changes = model.get_submodule(name), []
        width = layer.in_features // groups
        for group in range(groups):
            losses = []
            for scale in (1 + step, 1 - step):
                factor = torch.ones(layer.in_features, dtype=torch.float64)
                factor[group * width : (group + 1) * width] = scale
                hook = layer.register_forward_pre_hook(lambda module, inputs, factor=factor: inputs[0] * factor)
                with torch.no_grad():
                    logits = [model(input_ids=torch.tensor([ids])).logits for ids in rows["input_ids"]]
                hook.remove()
                losses.append(F.cross_entropy(torch.cat(logits), torch.tensor(rows["labels"]), reduction="none"))
            changes.append(((losses[0] - losses[1]) / (2 * step)).abs().mean())
        found.append(torch.stack(changes))
    return found
