"""The words of a text in scripts with blanks and without."""

import pytest

from nlpkd.augment.words import word_spans, words_of


@pytest.mark.parametrize(
    "text", ["a fine film, isn't it?", "  zwei  Blanke\tTabs\u3000weit ", "हिन्दी में अच्छी फिल्म", "좋은 영화", ""]
)
def test_words_of_scripts_with_blanks_are_what_stands_between_them(text):
    assert words_of(text) == text.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("服务很差，两小时", ["服", "务", "很", "差，", "两", "小", "时"]),
        ("『映画』はgoodです。", ["『", "映", "画』", "は", "good", "で", "す。"]),
        ("ดีมาก เป็น", ["ดี", "ม", "า", "ก", "เป็", "น"]),
    ],
)
def test_words_of_scripts_without_blanks_are_their_signs(text, words):
    assert words_of(text) == words
    assert [text[start:end] for start, end in word_spans(text)] == words
