"""A tokenizer's files: what is read of them gives the ids that were meant, and what is saved those that were used."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import CONFIG_NAME, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import (
    ADDED_TOKENS_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    TOKENIZER_CONFIG_FILE,
)
from transformers.utils import cached_file

from nlpkd.utils.disk.files import TOKENIZER
from nlpkd.utils.fingerprints import tokenizer_state, without_limits
from nlpkd.utils.object_hashes import is_foreign
from nlpkd.utils.progress import quiet

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

# A file that can't be had is one that is not there, as AutoTokenizer takes it.
_LENIENT: Any = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}

# What transformers reads a saved tokenizer from.
_READ_FILES = (TOKENIZER, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE, ADDED_TOKENS_FILE, CONFIG_NAME)

_READ_WHOLE: dict[str, bool] = {}
"""Whether the class that files name reads the whole `tokenizer.json`, by `_hash_files`: large ones take seconds.

Checkpoints have the same files, and so only the first is read back."""

_READ_ALIKE: set[tuple[type, str]] = set()
"""Classes of tokenizers, and by `_hash_files` the files of which transformers makes what gives the same ids."""


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
    if reads_whole or is_foreign(type(made)):
        return made
    file = cached_file(str(name), TOKENIZER, revision=revision, **_LENIENT)
    if file is None or _is_as_told(made, Path(file)):
        return made
    asked: Any = {"revision": revision, "model_input_names": made.model_input_names}
    whole = PreTrainedTokenizerFast.from_pretrained(str(name), **asked)
    for part, setting, value in _told(whole):
        setattr(part, setting, value)
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


def _told(tokenizer: PreTrainedTokenizerBase) -> list[tuple[Any, str, Any]]:
    """List what the settings say of parts of a tokenizer: the part, its setting, and the value."""
    backend = tokenizer.backend_tokenizer
    return [
        (part, _TOLD[name], tokenizer.init_kwargs[name])
        for part in (backend.normalizer, backend.pre_tokenizer)
        for name in _TOLD.keys() & tokenizer.init_kwargs.keys()
        if hasattr(part, _TOLD[name])
    ]


def _is_as_told(tokenizer: PreTrainedTokenizerBase, file: Path) -> bool:
    """Check whether a tokenizer is that of the file, with what its settings say; quick, and not of every file true."""
    if max(tokenizer.get_vocab().values(), default=0) > 2 * len(tokenizer):
        # To write gaps among ids takes as long as tokens would.
        return False
    told = all(getattr(part, setting) == value for part, setting, value in _told(tokenizer))
    return told and _as_written(tokenizer) == _ids_part(file.read_text(encoding="utf-8"))


def _as_written(tokenizer: PreTrainedTokenizerBase) -> str:
    return _ids_part(tokenizer.backend_tokenizer.to_str(pretty=True))


def _ids_part(text: str) -> str:
    """Return what follows padding and truncation in a tokenizer.json, which every call of a tokenizer sets anew."""
    return text[max(text.find('"added_tokens"'), 0) :]


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
    if hasattr(tokenizer, "backend_tokenizer"):
        keep_file_whole(folder, tokenizer.model_input_names)


def keep_file_whole(folder: Path, model_input_names: list[str]) -> None:
    """Name the class that reads the whole `tokenizer.json` in a saved tokenizer's settings, where its own does not.

    Args:
        folder: a saved tokenizer's.
        model_input_names: that its own class knows.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    settings = json.loads(path.read_text(encoding="utf-8"))
    if "auto_map" in settings:
        # Code beside it reads it.
        return
    found = _hash_files(folder)
    if found not in _READ_WHOLE:
        _READ_WHOLE[found] = _reads_whole(folder)
    if not _READ_WHOLE[found]:
        settings |= {"tokenizer_class": _PLAIN, "model_input_names": list(model_input_names)}
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _reads_whole(folder: Path) -> bool:
    try:
        read = _read_back(folder)
    except Exception:  # tokenizers raises nothing narrower.
        return False
    if not hasattr(read, "backend_tokenizer"):
        return False
    text = (folder / TOKENIZER).read_text(encoding="utf-8")
    # The same may be written in other words.
    return _as_written(read) == _ids_part(text) or tokenizer_state(read) == without_limits(json.loads(text))


def _read_back(folder: Path) -> PreTrainedTokenizerBase:
    # A model of the repository's own code has a config that transformers does not know, which is no matter here.
    with quiet("transformers"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _hash_files(folder: Path) -> str:
    """Hash what decides the class that a saved tokenizer is read by, and the ids that it gives."""
    digest = hashlib.sha256()
    for name in _READ_FILES:
        text = (folder / name).read_text(encoding="utf-8") if (folder / name).is_file() else ""
        if name == TOKENIZER:
            text = _ids_part(text)
        elif name == CONFIG_NAME and text:
            # Trainer sets these by the tokenizer, which is not read by them.
            entries = {key: value for key, value in json.loads(text).items() if not key.endswith("_token_id")}
            text = json.dumps(entries, sort_keys=True)
        digest.update(f"{name} {len(text)} {text}".encode())
    return digest.hexdigest()


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
    found = (type(tokenizer), _hash_files(folder))
    if found in _READ_ALIKE:
        return
    differing = _read_otherwise(_read_back(folder), tokenizer)
    if differing is None and not is_foreign(type(tokenizer)):
        # Somebody's own class may read texts by what no file has.
        _READ_ALIKE.add(found)
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
        ours, theirs = _ids(second, texts), _ids(first, texts)
        for one, other in zip(ours or (), theirs or (), strict=False):
            if one != other:
                start = next((k for k, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), 0)
                told = [
                    each.convert_ids_to_tokens(ids[start : start + 6]) for each, ids in ((second, one), (first, other))
                ]
                return f"of {texts[0][:40]!r} {told[0]} and not {told[1]}"
    return None


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[list[int], list[int]] | None:
    """Return the ids of a text or pair that is cut, and as it is: the last call's limit is saved with a tokenizer.

    None of a tokenizer that takes no plain text, but words with their boxes. A text with what a tokenizer without an
    unknown token does not know has no ids.
    """
    try:
        cut = tokenizer(*texts, truncation=True, max_length=8, verbose=False)["input_ids"]
        return cut, tokenizer(*texts, truncation=False, verbose=False)["input_ids"]
    except (AssertionError, AttributeError, TypeError, ValueError):
        return None
    except Exception:  # tokenizers raises nothing narrower.
        return [], []
