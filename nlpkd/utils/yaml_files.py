"""YAML files of users, read whole or refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

LARGEST_YAML = 100_000
"""Values of a file of options; by references within it some lines can stand for billions."""


_BOOL = "tag:yaml.org,2002:bool"


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


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Args:
        path: the file.

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
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> Any:
    """Parse YAML that a file holds, as `read_yaml` does.

    Args:
        text: the YAML.
        path: the file, for messages.

    Returns:
        Its content.

    Raises:
        ValueError: as for `read_yaml`.
    """
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    left, values = [content], 0
    while left and values <= LARGEST_YAML:
        value, values = left.pop(), values + 1
        left += [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    if left:
        raise ValueError(f"{path} stands for more than {LARGEST_YAML:,} values: use a copy that you trust")
    return content
