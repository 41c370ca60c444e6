"""A tokenizer's files: what is read of them gives the ids that were meant, and what is saved those that were used."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import has_file

from nlpkd.utils.disk.files import TOKENIZER
from nlpkd.utils.fingerprints import tokenizer_state
from nlpkd.utils.object_hashes import is_foreign

logger = logging.getLogger(__name__)

_PLAIN = "PreTrainedTokenizerFast"
"""The class that every version of transformers makes of the whole `tokenizer.json`, and of nothing else."""

# What tokenizer_config.json may say of parts of tokenizer.json, and the names there: transformers reads it so.
_TOLD = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
    "add_prefix_space": "add_prefix_space",
}

# Attributes that save_pretrained forgets, unless the tokenizer was made with them, and what they are then.
_FORGOTTEN = {"truncation_side": "right", "split_special_tokens": False}

_TEXTS = (
    "The film was GOOD, isn't it?",
    "  two  blanks,\ta tab\nand lines \n\n",
    "Café NAÏVE ﬁne Straße ÀÉ e\u0301",
    "3.14 12345 $5,000 http://example.com/@user #tag 😀",
    "日本語 中文 русский العربية",
)
"""Texts that tokenizers read in different ways."""

_OF_VOCABULARY = 200
"""Tokens of a vocabulary that make up further texts: a small or foreign one knows no word of those above."""


def read_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Read a tokenizer as its `tokenizer.json` has it.

    `save_pretrained` writes the tokenizer that a model was trained with there. Most classes of transformers take no
    more than the vocabulary of it, and make the rest themselves: a class that is not the one it was saved by, or named
    by nobody, gives other ids. What `tokenizer_config.json` says of casing and the like is followed, as transformers
    does.

    Args:
        name: a local path or a Hub id.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run the repository's own code.

    Returns:
        The tokenizer that transformers makes where it gives the same ids, and else that of the file, which is told.
    """
    made = AutoTokenizer.from_pretrained(str(name), revision=revision, trust_remote_code=trust_remote_code)
    reads_whole = type(made) is PreTrainedTokenizerFast or not hasattr(made, "backend_tokenizer")
    # A class of the repository's own knows what its file is for.
    if reads_whole or is_foreign(type(made)) or not has_file(str(name), TOKENIZER, revision=revision):
        return made
    asked: Any = {"revision": revision, "model_input_names": made.model_input_names}
    whole = PreTrainedTokenizerFast.from_pretrained(str(name), **asked)
    for part in (whole.backend_tokenizer.normalizer, whole.backend_tokenizer.pre_tokenizer):
        for setting in _TOLD.keys() & whole.init_kwargs.keys():
            if hasattr(part, _TOLD[setting]):
                setattr(part, _TOLD[setting], whole.init_kwargs[setting])
    for role, token in made.special_tokens_map.items():
        # The class may know a role that no file names, and of a token that is not there nothing is to be learnt.
        if getattr(whole, role, None) is None and str(token) in whole.get_vocab():
            setattr(whole, role, token)
    differing = _read_otherwise(made, whole)
    if differing is None:
        return made
    logger.warning(
        "tokenizer.json of %s gives other tokens than %s, which transformers makes of it: %s. The file is read, with "
        'which it was saved. Plain transformers does so too where tokenizer_config.json says "tokenizer_class": "%s".',
        name,
        type(made).__name__,
        differing,
        _PLAIN,
    )
    return whole


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer so that transformers reads it as it was used, with all that was set on the object.

    Args:
        tokenizer: any tokenizer; left as it is.
        folder: where to; the model's config should be there, which says how it is read.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer.save_pretrained(folder)
        return
    set_later = {name: getattr(tokenizer, name) for name, usual in _FORGOTTEN.items() if hasattr(tokenizer, name)}
    set_later = {name: value for name, value in set_later.items() if value != _FORGOTTEN[name]}
    own = copy.copy(tokenizer)
    # What is written to tokenizer_config.json.
    own.init_kwargs = {**tokenizer.init_kwargs, **set_later}
    own.save_pretrained(folder)
    state = tokenizer_state(tokenizer)
    if state is not None:
        keep_file_whole(folder, state, tokenizer.model_input_names)


def keep_file_whole(folder: Path, state: Mapping[str, Any], model_input_names: list[str]) -> None:
    """Name the class that reads the whole `tokenizer.json` in a saved tokenizer's settings, where its own does not.

    Args:
        folder: a saved tokenizer's.
        state: what is to be read, by `tokenizer_state`.
        model_input_names: that its own class knows.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    settings = json.loads(path.read_text(encoding="utf-8"))
    if "auto_map" in settings:
        # Code beside it reads it.
        return
    try:
        read = tokenizer_state(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except Exception:  # tokenizers raises nothing narrower.
        read = None
    if read != state:
        settings |= {"tokenizer_class": _PLAIN, "model_input_names": list(model_input_names)}
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def refuse_other_reading(tokenizer: Any, folder: Path) -> None:
    """Refuse a tokenizer that can't be saved: one that transformers reads otherwise from its files.

    Args:
        tokenizer: as it is used.
        folder: where it was saved.

    Raises:
        ValueError: if a text has other ids; it is named.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not path.is_file():
        return
    if "auto_map" in json.loads(path.read_text(encoding="utf-8")):
        return
    differing = _read_otherwise(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), tokenizer)
    if differing is not None:
        raise ValueError(
            f"the {type(tokenizer).__name__} that is used is read back from its files as one that gives other tokens: "
            f"{differing}. Change the texts before, or backend_tokenizer (normalizer, pre_tokenizer), which is saved"
        )


def _read_otherwise(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> str | None:
    """Say of which text two tokenizers give other ids, the second's first; None where all that are tried are alike."""
    vocabulary = first.get_vocab()
    if vocabulary != second.get_vocab():
        return f"vocabularies of {len(second)} and of {len(first)} tokens"
    tokens = sorted(vocabulary.keys() - set(first.all_special_tokens))
    words = [token.strip("#▁Ġ") for token in tokens[:: max(1, len(tokens) // _OF_VOCABULARY)]]
    known = " ".join(word for word in words if word)
    for texts in [*((text,) for text in (*_TEXTS, known, known.upper(), known.title())), (_TEXTS[0], known)]:
        for one, other in zip(_ids(second, texts), _ids(first, texts), strict=True):
            if one != other:
                start = next((k for k, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), 0)
                told = [
                    each.convert_ids_to_tokens(ids[start : start + 6]) for each, ids in ((second, one), (first, other))
                ]
                return f"of {texts[0][:40]!r} {told[0]} and not {told[1]}"
    return None


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of a text or pair that is cut, and as it is: the last call's limit is saved with a tokenizer."""
    cut = tokenizer(*texts, truncation=True, max_length=8, verbose=False)["input_ids"]
    return [cut, tokenizer(*texts, truncation=False, verbose=False)["input_ids"]]
