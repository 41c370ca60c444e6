"""Which texts are equal but for case, blanks and Unicode form: one answer, wherever it is asked."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpkd.augment.near_duplicates import similarity
from nlpkd.augment.rows import unlabelled
from nlpkd.data.splits.hashes import text_hashes
from nlpkd.data.splits.plain_text import plain_text, plain_texts

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
BLANKS = [letter for letter in map(chr, range(0x3001)) if letter.isspace()]
LETTERS = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from([*BLANKS, "\u0301", "\u200b", "ß", "Σ"]))

TWINS = [
    *(("hello world", f"Hello{blank}world") for blank in [*BLANKS, "\u200b", "\xad", "\ufeff"]),
    ("Straße", "STRASSE"),
    ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ("ΐ", "ΐ".upper()),
    ("café", "cafe\u0301"),
    ("İSTANBUL ÇOK GÜZEL", "istanbul çok güzel"),
    ("I\u0307YI\u0307", "iyi"),
    ("ISPARTA", "ısparta"),
    ("ｆｕｌｌ", "full"),
    ("한국", unicodedata.normalize("NFD", "한국")),
]


def test_every_letter_is_equal_in_either_case_and_all_forms():
    letters = [chr(number) for number in [*range(0xD800), *range(0xE000, 0x20000)]]
    forms = {letter: {letter.lower(), letter.upper(), letter.casefold()} for letter in letters}
    for letter, others in forms.items():
        others.update(unicodedata.normalize(form, letter) for form in FORMS)
    odd = [letter for letter, others in forms.items() if len(others) > 1 and len(set(map(plain_text, others))) > 1]
    assert not odd


@given(texts=st.lists(st.text(LETTERS, max_size=20), max_size=5), blank=st.sampled_from(BLANKS), data=st.data())
@settings(max_examples=60, deadline=None)
def test_blanks_change_nothing_and_a_column_is_read_as_each_of_its_texts(texts, blank, data):
    plain = list(map(plain_text, texts))
    assert plain_texts(pa.array(texts, pa.large_string())).to_pylist() == plain
    for text, expected in zip(texts, plain, strict=True):
        place = data.draw(st.integers(0, len(text)))
        assert plain_text(text[:place] + blank + text[place:]) == expected


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_held_out_parts_learned_texts_and_augmentation_call_the_same_texts_equal(one, other, tmp_path):
    rows = Dataset.from_dict({"text": [one, other, "another"], "label": [0, 1, 0]})
    hashes = text_hashes(rows, ["text"])
    assert hashes[0] == hashes[1] != hashes[2]
    assert similarity(one, other) == 1
    new = unlabelled([other, "new"], rows.select([0, 2]), cache_dir=tmp_path)
    assert new["text"][:] == ["new"]


def test_texts_of_ascii_keep_the_hashes_by_which_parts_were_held_out():
    rows = Dataset.from_dict({"text": ["A good\tFilm.", "no !", ""], "pair": ["Is it?", None, "\n"]})
    alone = [8357808829083966604, 4503311991531990014, 16476032584258269876]
    pairs = [8037821355237545938, 15188148908023340436, 5778332352405694918]
    assert text_hashes(rows, ["text"]).tolist() == alone
    assert text_hashes(rows, ["text", "pair"]).tolist() == pairs
