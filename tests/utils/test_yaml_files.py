"""YAML as YAML 1.2 has it: what names classes stays a word."""

import pytest

from nlpkd.utils.yaml_files import parse_yaml, read_yaml


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
