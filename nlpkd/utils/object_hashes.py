"""Hashes of models, and of all else that answers depend on: numbers, arrays, functions, objects."""

from __future__ import annotations

import copyreg
import functools
import hashlib
import inspect
import secrets
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlpkd.utils.fingerprints import hash_tensor, hash_tensors, hash_tokenizer, hash_value

_LIBRARIES = frozenset({"torch", "transformers", "accelerate", "peft", "sentence_transformers", "nlpkd"})

NO_INFLUENCE = {
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "output_attentions", "output_hidden_states",
    "problem_type", "return_dict", "transformers_version", "use_cache",
}  # fmt: skip
"""What a configuration says without any influence on the outputs, or what is fingerprinted elsewhere."""

_BOOKKEEPING = {
    *vars(nn.Module()),
    *("_compiled_call_impl", "_hf_hook", "_is_hf_initialized", "_old_forward", "_original_forward"),
    *("_use_kernels", "_weight_conversions", "call_count", "device", "generation_config", "gradient_checkpointing"),
    *("hf_device_map", "hf_quantizer", "kernel_config", "loss_type", "model_tags", "name_or_path", "warnings_issued"),
}
"""Attributes that say where a model comes from, where it is and how it is trained, not what it answers."""

_OF_LIBRARIES = {
    # Derived from a config, in an order that another process may not have.
    *("layer_types", "rope_type"),
    # Of an ONNX file, whose hash is among the weights.
    *("num_weights", "sha256", "size_mb", "threads"),
    # Changed by running, or by saving.
    *("kwargs", "max_seq_len_cached", "model_card_data", "peft_config", "pooling_mult", "seq_len"),
}
"""Further such attributes of the libraries' own modules."""

_PLAIN = (bool, int, float, complex, str, bytes, slice, range, type(None), type(...), torch.dtype, np.dtype)

_BUILT_IN = (types.BuiltinFunctionType, types.MethodWrapperType, types.MethodDescriptorType, np.ufunc)

_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, *_BUILT_IN)


class UnhashableError(ValueError):
    """A value holds something that can't be told from another one; the message names it."""


def is_foreign(code: Any) -> bool:
    """Check whether a class or function is somebody's own: of none of the libraries that are used here."""
    return _package(code) not in _LIBRARIES


def hash_configuration(model: nn.Module) -> str:
    """Hash what a model computes with its weights: classes, settings, kernels, adapters, attributes of its modules.

    Args:
        model: any module. To run it changes nothing, nor does to save and to load one of transformers, peft or
            sentence-transformers.

    Returns:
        A hash. Hooks do not count.

    Raises:
        UnhashableError: if a module of somebody's own has an attribute that nothing tells apart; it is named.
    """
    try:
        return hash_value(dict(Hasher(model).modules(model)))
    except UnhashableError as error:
        raise UnhashableError(
            f"no fingerprint tells what the model's answers owe to {error}: keep it in numbers, texts, lists, arrays "
            "or modules, or give the attribute a name that begins with _ if no answer depends on it"
        ) from None


def hash_in_run(hash_: Callable[[Any], str], value: Any) -> str:
    """Hash a value, such as by `hash_configuration`; if it can't be hashed, return a text that no other run has."""
    try:
        return hash_(value)
    except UnhashableError as error:
        return f"of run {secrets.token_hex(8)}: {error}"


class Hasher:
    """Hashes values, each of them once.

    Values that are equal have the same hash, in any process; those that differ in what a model's answers may depend on
    have others. Of functions and classes that are somebody's own count the source, the defaults, the enclosed values,
    and the globals that they name. Where a tensor is and whether a module trains do not count.

    Args:
        model: a module within whose attributes its own modules are known by their names.
    """

    def __init__(self, model: nn.Module | None = None):
        self._names = {} if model is None else {id(module): name for name, module in model.named_modules()}
        # The values stay, so that their ids stay theirs.
        self._hashes: dict[int, tuple[Any, str]] = {}

    def hash(self, value: Any) -> str:
        """Hash a value.

        Args:
            value: of any type.

        Returns:
            A text.

        Raises:
            UnhashableError: if it holds something that nothing tells apart, such as a lock or an open file.
        """
        value = value.item() if isinstance(value, np.generic) else value
        value = "a device" if isinstance(value, torch.device) else value
        if isinstance(value, _PLAIN) and not isinstance(value, Enum):
            return repr(value)
        if id(value) not in self._hashes:
            # What it is called where it is met within itself.
            self._hashes[id(value)] = value, f"itself, a {type(value).__qualname__}"
            try:
                self._hashes[id(value)] = value, hash_value(self._parts(value))
            except UnhashableError:
                del self._hashes[id(value)]
                raise
        return self._hashes[id(value)][1]

    def attributes(self, holder: Any) -> Iterator[tuple[str, str]]:
        """Hash the attributes of a module or another object.

        Of a library's own module those that are data and public. Of all else every one, but private ones (that begin
        with `_`) only where they can be hashed.

        Yields:
            Names and hashes.

        Raises:
            UnhashableError: for an attribute that can't be hashed.
        """
        of_library = not is_foreign(type(holder))
        for key, value in vars(holder).items():
            private = key.startswith("_")
            if key in _BOOKKEEPING or (of_library and (private or key in _OF_LIBRARIES)):
                continue
            if key == "forward" and _is_wrapped_forward(holder, value):
                continue
            if isinstance(holder, nn.Module) and of_library and not _counts_in_library(holder, value):
                continue
            if private and isinstance(holder, PreTrainedModel) and hasattr(PreTrainedModel, key):
                continue
            try:
                yield key, self.hash(value)
            except UnhashableError as error:
                if not private:
                    raise UnhashableError(f"{key}: {error}") from None

    def code(self, named: Any) -> str:
        """Hash a class or function: of a library by its name, of somebody's own by all that it says."""
        return f"{named.__module__}.{named.__qualname__}" if not is_foreign(named) else self.hash(named)

    def _parts(self, value: Any) -> list[Any]:
        """Take a value apart into what JSON can hold."""
        for kinds, parts in self._KINDS:
            if isinstance(value, kinds):
                return [parts.__name__, *parts(self, value)]
        return self._object(value)

    def _enum(self, value: Enum) -> list[Any]:
        return [type(value).__qualname__, value.name]

    def _tensor(self, value: Tensor) -> list[Any]:
        try:
            return [hash_tensor(value)]
        except (RuntimeError, NotImplementedError, TypeError):
            raise UnhashableError(f"a tensor of layout {value.layout} on {value.device}") from None

    def _array(self, value: np.ndarray) -> list[Any]:
        if value.dtype.hasobject:
            return [list(value.shape), self.hash(value.tolist())]
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]

    def _module(self, value: nn.Module) -> list[Any]:
        if id(value) in self._names:
            return [self._names[id(value)]]
        return [hash_weights(value), list(Hasher(value).modules(value))]

    def modules(self, model: nn.Module) -> Iterator[tuple[str, str]]:
        """Hash the classes and attributes of a model and of all modules in it, by their places.

        Raises:
            UnhashableError: for an attribute that can't be hashed.
        """
        for name, module in model.named_modules():
            yield f"class of {name}", self.code(type(module))
            try:
                for key, hashed in self.attributes(module):
                    yield f"{name}.{key}", hashed
                if hasattr(module, "base_layer"):
                    # Whether an adapter is on is in no weight.
                    for key in ("active_adapters", "disable_adapters"):
                        yield f"{name}.{key}", self.hash(getattr(module, key, None))
            except UnhashableError as error:
                raise UnhashableError(f"{name or type(module).__name__}.{error}") from None

    def _config(self, value: PreTrainedConfig) -> list[Any]:
        settings = {key: each for key, each in value.to_dict().items() if key not in NO_INFLUENCE}
        # nlpkd's own kernel computes what the one computes that it stands for.
        return [hash_value(settings), str(value._attn_implementation).removeprefix("nlpkd_")]

    def _tokenizer(self, value: PreTrainedTokenizerBase) -> list[Any]:
        return [hash_tokenizer(value), self.hash([getattr(value, name, None) for name in _TOKENIZER_SETTINGS])]

    def _list(self, value: Any) -> list[Any]:
        return [self.hash(each) for each in value]

    def _set(self, value: Any) -> list[Any]:
        return sorted(map(self.hash, value))

    def _mapping(self, value: Mapping[Any, Any]) -> list[Any]:
        return [[self.hash(key), self.hash(each)] for key, each in value.items()]

    def _imported(self, value: types.ModuleType) -> list[Any]:
        return [value.__name__]

    def _wrapper(self, value: Any) -> list[Any]:
        return [self.hash(getattr(value, name, None)) for name in _WRAPPED]

    def _class(self, value: type) -> list[Any]:
        if _is_installed(value):
            return [value.__module__, value.__qualname__, _source(value)]
        parts: list[Any] = [value.__qualname__]
        for owner in value.__mro__:
            if _is_installed(owner):
                parts.append(f"{owner.__module__}.{owner.__qualname__}")
                continue
            for key, member in sorted(vars(owner).items()):
                is_method = isinstance(member, (types.FunctionType, staticmethod, classmethod, property))
                # What Python itself keeps in a class is of no influence.
                if is_method or not key.startswith("_"):
                    parts.append([key, self.hash(member)])
        return parts

    def _function(self, value: types.FunctionType) -> list[Any]:
        if _is_installed(value):
            return [value.__module__, value.__qualname__, _source(value)]
        parts = [value.__qualname__, _source(value), self.hash([value.__defaults__, value.__kwdefaults__])]
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        held = {name: _content(cell) for name, cell in cells}
        held |= {name: value.__globals__[name] for name in _names_of(value.__code__) if name in value.__globals__}
        for name, each in sorted(held.items()):
            try:
                parts.append(f"{name} {self.hash(each)}")
            except UnhashableError as error:
                if not name.startswith("_"):
                    raise UnhashableError(f"{name}: {error}") from None
        return parts

    def _builtin(self, value: Any) -> list[Any]:
        owner = getattr(value, "__self__", None)
        parts = [str(getattr(value, "__module__", None)), value.__qualname__]
        return parts if owner is None or isinstance(owner, (types.ModuleType, type)) else [*parts, self.hash(owner)]

    def _object(self, value: Any) -> list[Any]:
        kind = type(value)
        if hasattr(value, "__dict__") and _package(kind) not in sys.stdlib_module_names:
            return [self.code(kind), dict(self.attributes(value))]
        # What Python would make a copy of it from.
        reduce = copyreg.dispatch_table.get(kind)
        try:
            parts = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception:
            raise UnhashableError(f"a {kind.__module__}.{kind.__qualname__}") from None
        parts = [parts] if isinstance(parts, str) else parts
        return [self.code(kind), *(self.hash(list(each) if isinstance(each, Iterator) else each) for each in parts)]

    _KINDS: Any = (
        (Enum, _enum), (Tensor, _tensor), (np.ndarray, _array), (nn.Module, _module),
        (PreTrainedConfig, _config), (PreTrainedTokenizerBase, _tokenizer), ((list, tuple, deque), _list),
        ((set, frozenset), _set), (Mapping, _mapping), (types.ModuleType, _imported),
        ((functools.partial, types.MethodType, staticmethod, classmethod, property), _wrapper),
        (type, _class), (types.FunctionType, _function), (_BUILT_IN, _builtin),
    )  # fmt: skip


_WRAPPED = ("func", "args", "keywords", "__func__", "__self__", "fget")

_TOKENIZER_SETTINGS = ("model_max_length", "padding_side", "truncation_side", "chat_template", "model_input_names")


def _is_wrapped_forward(holder: Any, forward: Any) -> bool:
    """Check whether it is a library's, such as accelerate's around a module's own."""
    return "_original_forward" in vars(holder) or not is_foreign(getattr(forward, "func", forward))


def _counts_in_library(holder: nn.Module, value: Any) -> bool:
    """Check whether an attribute of a library's module says what it computes: data, a tokenizer, a model's config."""
    if isinstance(value, PreTrainedConfig):
        return isinstance(holder, PreTrainedModel)
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        held = value.values() if isinstance(value, Mapping) else value
        return all(_counts_in_library(holder, each) for each in held)
    return isinstance(value, (*_PLAIN, *_FUNCTIONS, np.generic, np.ndarray, Tensor, Enum, PreTrainedTokenizerBase))


def _package(named: Any) -> str:
    return (getattr(named, "__module__", None) or "").split(".")[0]


def _is_installed(named: Any) -> bool:
    """Check whether a class or function is Python's or that of an installed package, whose parts are not looked at."""
    package = _package(named)
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    known = package in _LIBRARIES or package in sys.stdlib_module_names
    return known or "site-packages" in file or "dist-packages" in file


def _source(named: Any) -> str:
    """Return the source of a class or function, which may change under its name; "" of a library's."""
    if not is_foreign(named) or _package(named) in sys.stdlib_module_names:
        return ""
    code = getattr(named, "__code__", None)
    try:
        # Not that of what a decorator wraps.
        return inspect.getsource(named if code is None else code)
    except (OSError, TypeError):
        return "" if code is None else _bytecode(code)


def _bytecode(code: types.CodeType) -> str:
    parts = [_bytecode(each) if isinstance(each, types.CodeType) else Hasher().hash(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {parts}"


def _names_of(code: types.CodeType) -> set[str]:
    """Return the names of globals that a function may read, those of the functions within it too."""
    within = (_names_of(each) for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*within)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def hash_weights(model: nn.Module) -> str:
    """Hash a model's parameters, buffers and extra state, those buffers too that no state dict has."""
    state = dict(model.named_buffers()) | model.state_dict()
    tensors = hash_tensors((name, each) for name, each in state.items() if isinstance(each, Tensor))
    further = {name: Hasher().hash(each) for name, each in state.items() if not isinstance(each, Tensor)}
    return hash_value([tensors, further]) if further else tensors
