"""YAML as YAML 1.2 has it: what names classes stays a word."""

import pytest

from nlpkd.utils.disk.yaml_files import parse_yaml, read_yaml


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "Yes", "NO", "y", "n", "trueish"])
def test_words_are_words_as_values_and_as_names(word, tmp_path):
    (tmp_path / "file.yaml").write_text(f"classes: [{word}]\n{word}: 1\n")
    assert read_yaml(tmp_path / "file.yaml") == {"classes": [word], word: 1}


def test_true_and_false_are_booleans_and_all_else_is_as_pyyaml_reads_it(tmp_path):
    yaml = pytest.importorskip("yaml")
    assert parse_yaml("[true, True, false, FALSE]", tmp_path) == [True, True, False, False]
    text = "{a: 1, b: 1.5, c: null, d: ~, e: '1', f: text, g: [1, 2], h: {i: j}, k: 2026-11-27, l: 1e-4}"
    assert parse_yaml(text, tmp_path) == yaml.safe_load(text)


def test_objects_of_python_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no YAML"):
        parse_yaml("!!python/object/apply:os.system ['true']", tmp_path)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", 3),
        ("b:\n  c: 1\n  'c': 2\n", "c", 3),
        ("{a: {1: x, 1: y}}", "1", 1),
        ('{"a": 1,\n "a": 2}', "a", 2),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_its_line(text, key, line, tmp_path):
    with pytest.raises(ValueError, match=f"(?s)file.yaml is no YAML: the key '{key}' is there twice.* line {line},"):
        parse_yaml(text, tmp_path / "file.yaml")


def test_keys_of_other_types_in_other_mappings_or_over_merged_ones_are_no_second_ones(tmp_path):
    text = "base: &base {a: 1, b: 2}\nmore: &more {<<: *base, a: 3}\nlast: {<<: *more, a: 4}\n1: x\n'1': y\n"
    assert parse_yaml(text, tmp_path) == {
        "base": {"a": 1, "b": 2}, "more": {"a": 3, "b": 2}, "last": {"a": 4, "b": 2}, 1: "x", "1": "y",
    }  # fmt: skip
