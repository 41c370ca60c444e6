"""What the main process decides, alone and with another process; calls and blocks that end in time."""

from __future__ import annotations

import signal
import time

import pytest

from nlpkd.utils.processes import agree_with_launcher, decided_by_main_process, sigterm_as_exit, within


def test_a_single_process_decides_for_itself():
    assert decided_by_main_process(lambda: {"depth": 3}) == {"depth": 3}
    with pytest.raises(KeyError, match="nothing fits"):
        decided_by_main_process(lambda: {}["nothing fits"])


def test_what_a_call_returns_and_raises_comes_through():
    assert within(5, lambda: "found") == "found"
    with pytest.raises(KeyError, match="lost"):
        within(5, lambda: {}["lost"])


def test_a_call_that_takes_too_long_is_left():
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no whole answer within 0.1 s"):
        within(0.1, lambda: time.sleep(1))
    assert time.monotonic() - began < 0.8


def test_sigterm_ends_a_block_by_an_exception_and_then_is_as_it_was():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as caught, sigterm_as_exit():
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        heard = []
        signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
        with sigterm_as_exit():
            signal.raise_signal(signal.SIGTERM)
        assert heard == [1], "who listens already goes on listening"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_leaves_sigterm_alone():
    within(5, lambda: sigterm_as_exit().__enter__())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("launched, chosen", [("bf16", (True, False)), ("fp16", (False, True))])
def test_what_a_launcher_was_asked_for_holds_where_the_settings_say_nothing(monkeypatch, launched, chosen):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert agree_with_launcher(None, None) == chosen


@pytest.mark.parametrize("launched, bf16, fp16", [
    ("bf16", False, None), ("bf16", None, True), ("fp16", None, False), ("fp16", True, None),
])  # fmt: skip
def test_settings_that_say_something_else_than_the_launcher_are_refused(monkeypatch, launched, bf16, fp16):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(ValueError, match=f"16=.* asked for mixed precision in {launched}"):
        agree_with_launcher(bf16, fp16)


def test_fp16_of_a_launcher_is_refused_on_the_cpu_where_nothing_is_trained_in_it(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="fp16.*on the CPU.*float32.*launch with --mixed_precision no"):
        agree_with_launcher(None, None, on_cpu=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert agree_with_launcher(None, None, on_cpu=True) == (True, False)


def test_the_no_of_a_launcher_which_was_perhaps_asked_for_nothing_leaves_the_choice_to_settings(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert agree_with_launcher(None, None) == (None, False)
    assert agree_with_launcher(True, None) == (True, False)
    assert agree_with_launcher(None, True) == (None, True)


def test_a_precision_that_is_not_known_here_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="'fp8' can't be had: launch with 'no', 'bf16' or 'fp16'"):
        agree_with_launcher(None, None)
