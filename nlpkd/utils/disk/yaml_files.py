"""YAML files of users, read whole or refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

LARGEST_YAML = 100_000
"""Values of a file of options; by references within it some lines can stand for billions."""


_BOOL, _TEXT, _DATE = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "str", "timestamp"))

_NUMBERS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float"))


class _Loader(yaml.SafeLoader):
    """A loader to which `yes`, `no`, `on` and `off` are words, as in YAML 1.2: they name classes. Keys differ."""

    yaml_implicit_resolvers = {
        start: [(tag, pattern) for tag, pattern in known if tag != _BOOL]
        for start, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read a mapping; of two values of one key the later one would go unsaid."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(name)
        return node


_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


class _NameLoader(_Loader):
    """A loader to which 010, 1_000 and 1.50 are words wherever they may be names, since 8, 1000 and 1.5 are others."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """Read a node; the values of the outermost mapping are settings, all else are names or what describes them."""
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        is_setting = self.depth == 1 and isinstance(parent, yaml.MappingNode) and index is not None
        changes = node.tag in _NUMBERS and str(yaml.safe_load(node.value)) != node.value
        if not is_setting and (changes or node.tag == _DATE):
            node.tag = _TEXT
        return node


def read_yaml(path: Path, *, of_names: bool = False) -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        of_names: whether numbers and dates within lists and inner mappings, and those that are keys, may be names:
            dates are texts then, and numbers where they are written otherwise than Python writes them.

    Returns:
        Its content.

    Raises:
        ValueError: if it is no YAML, has a key twice in one mapping, or is a few lines that stand for more than
            `LARGEST_YAML` values.
        OSError: if it can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    return parse_yaml(text, path, of_names=of_names)


def parse_yaml(text: str, path: Path, *, of_names: bool = False) -> Any:
    """Parse YAML that a file holds, as `read_yaml` does.

    Args:
        text: the YAML.
        path: the file, for messages.
        of_names: as for `read_yaml`.

    Returns:
        Its content.

    Raises:
        ValueError: as for `read_yaml`.
    """
    try:
        content = yaml.load(text, Loader=_NameLoader if of_names else _Loader)  # noqa: S506
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    left, values = [content], 0
    while left and values <= LARGEST_YAML:
        value, values = left.pop(), values + 1
        left += [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    if left:
        raise ValueError(f"{path} stands for more than {LARGEST_YAML:,} values: use a copy that you trust")
    return content
