"""Constituents: where they are, and what is put in their place."""

from __future__ import annotations

import random

import numpy as np
import pytest
from datasets import Dataset

from nlpkd.augment import ConstituentSwap, augment

ROWS = [
    "the film is a slow but moving tale",
    "a slow but moving tale",
    "moving tale",
    "the plot is thin and the actors are very good",
    "very good",
    "the actors are very good",
    "nothing like it",
    "it is nothing like it used to be",
    "thin",
]


def draws(texts: int, copies: int) -> list[list[np.random.Generator]]:
    return [[np.random.default_rng((row, copy)) for copy in range(copies)] for row in range(texts)]


def found(text: str, rows=ROWS) -> set[str]:
    return {text[start:end] for start, end in ConstituentSwap(0.3, rows).constituents(text)}


def test_rows_that_a_text_contains_are_its_constituents():
    text = "the plot is thin and the actors are very good"
    contained = {row for row in ROWS if f" {row} " in f" {text} " and row != text}
    assert contained == {"thin", "very good", "the actors are very good"}
    assert found(text) == contained | {"the plot is thin"}
    assert found("very good films") == {"very good"} and "thin" not in found("thinly veiled")


@pytest.mark.parametrize(
    "text, clauses",
    [
        ("we were late, so we left", {"we were late", "we left"}),
        ("@line thanks (again) for it! 3.5 hours", {"@line thanks", "again", "for it", "3.5 hours"}),
        ("it 's long , dull ; it 's -- in a word -- bad .", {"it 's long", "dull", "it 's", "in a word", "bad"}),
        ("one clause alone", set()),
        ("and", set()),
        ("...", set()),
        ("服务态度很差，等了两个小时。", {"服务态度很差", "等了两个小时"}),
        ("बहुत अच्छी फिल्म, मजेदार कहानी", {"बहुत अच्छी फिल्म", "मजेदार कहानी"}),
        ("หนังดีมาก ดนตรีเพราะ (มาก)", {"หนังดีมาก ดนตรีเพราะ", "มาก"}),
    ],
)
def test_punctuation_and_conjunctions_cut_clauses(text, clauses):
    assert found(text, []) == clauses


def put_in(rows: list[str]) -> set[str]:
    """All constituents of some rows, one by one."""
    swap = ConstituentSwap(0.3, rows)
    return {" ".join(row[start:end].split()) for row in rows for start, end in swap.constituents(row)}


def possible(text: str, swap: ConstituentSwap, phrases: set[str]) -> set[str]:
    """All that a swap can make, the naive way."""
    change = swap.change
    words = len(text.split())

    def fits(phrase: str) -> bool:
        return change / 3 <= len(phrase.split()) / words <= change * 5 / 3

    return {
        text[:start] + phrase + text[end:]
        for start, end in swap.constituents(text)
        if fits(text[start:end])
        for phrase in phrases
        if fits(phrase)
    }


def test_a_variant_is_a_text_with_a_constituent_of_the_rows_in_the_place_of_another():
    text = "the plot is thin and the actors are very good"
    swap = ConstituentSwap(0.3, ROWS)
    made = set(next(swap.variants([text], draws(1, 300))))
    assert made == possible(text, swap, put_in(ROWS)) and len(made) > 9


def test_the_share_of_words_that_go_and_come_is_bounded():
    draw = random.Random(0)
    words = "the a film plot is was good bad , and very long old new".split()
    rows = [" ".join(draw.choices(words, k=draw.randint(1, 25))) for _ in range(60)]
    rows += [" ".join(row.split()[2:9]) for row in rows[:30] if len(row.split()) > 4]
    changed, phrases = 0, put_in(rows)
    for change in (0.1, 0.3, 0.6):
        swap = ConstituentSwap(change, rows)
        for text, variants in zip(rows, swap.variants(rows, draws(len(rows), 3)), strict=True):
            allowed = possible(text, swap, phrases) or {text}
            assert allowed.issuperset(variants)
            changed += sum(variant != text for variant in variants)
    assert changed > 100


def test_of_texts_without_blanks_the_share_is_one_of_their_signs():
    rows = [
        "服务态度很差，等了两个小时，房间不干净",
        "位置方便，早餐很好，下次还会来",
        "价格太贵了，非常不值得，不会再来",
    ]
    swap = ConstituentSwap(0.3, rows)
    clauses = {clause for row in rows for clause in row.split("，")}
    for text, variants in zip(rows, swap.variants(rows, draws(3, 40)), strict=True):
        fitting = {clause for clause in clauses if 0.1 * len(text) <= len(clause) <= 0.5 * len(text)}
        allowed = {
            "，".join([*parts[:place], clause, *parts[place + 1 :]])
            for parts in [text.split("，")]
            for place, gone in enumerate(parts)
            if gone in fitting
            for clause in fitting
        }
        assert len(set(variants)) > 3 and allowed.issuperset(variants)


def test_the_order_of_rows_changes_nothing():
    swaps = [ConstituentSwap(0.3, rows).variants(ROWS, draws(len(ROWS), 5)) for rows in (ROWS, ROWS[::-1] * 2)]
    assert list(swaps[0]) == list(swaps[1])


def test_a_text_without_fitting_constituents_has_no_variants():
    assert list(ConstituentSwap(0.3, ROWS).variants(["two words", "thin"], draws(2, 3))) == [
        ["two words"] * 3,
        ["thin"] * 3,
    ]
    with pytest.raises(ValueError, match="change must be a share of at least 0 and at most 1"):
        ConstituentSwap(1.5)


def test_each_text_of_a_pair_takes_constituents_of_its_own_column(tmp_path):
    firsts = [f"first {n}, then {n} more words, done" for n in range(6)]
    seconds = [f"is it {n}? or {n} of them? who knows" for n in range(6)]
    rows = Dataset.from_dict({"premise": firsts, "hypothesis": seconds, "label": [0, 1] * 3})
    made = augment(rows, ConstituentSwap(), copies=20, cache_dir=tmp_path)
    assert len(made) > 50 and set(made["label"]) == {-100}
    for name, own, marks in (("premise", firsts, "?"), ("hypothesis", seconds, ",")):
        swap, phrases = ConstituentSwap(0.3, own), put_in(own)
        assert set(made[name]) <= set(own) | set().union(*(possible(text, swap, phrases) for text in own))
        assert not any(marks in text for text in made[name])
