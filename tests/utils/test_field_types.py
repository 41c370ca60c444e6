"""Settings of the wrong type are refused by name, whatever takes them; a `~` is the home folder in every path."""

import inspect
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

import nlpkd
from nlpkd import DistillationConfig, augment, compression, teachers
from nlpkd.data.arguments import DataArguments
from nlpkd.data.sources import Source
from nlpkd.labelling.costs import Prices
from nlpkd.pipeline.tune import tune
from nlpkd.utils.field_types import (
    check_counts,
    check_field_types,
    check_share,
    plain_arguments,
    plain_numbers,
    refuse_none,
    with_home,
)

WRONG = {bool: "False", int: "8", float: "0.1", str: 5}
SCALARS = [
    (settings, field.name, kind)
    for settings in (DistillationConfig, DataArguments)
    for hint_of in [get_type_hints(settings)]
    for field in fields(settings)
    if field.name not in ("fsdp", "resume_from_checkpoint", "dataloader_multiprocessing_context")
    for kind in [(set(get_args(hint_of[field.name])) or {hint_of[field.name]}) - {type(None)}]
    if len(kind) == 1 and kind < set(WRONG)
]


@pytest.mark.parametrize(
    ("settings", "name", "kind"), SCALARS, ids=[f"{settings.__name__}-{name}" for settings, name, _ in SCALARS]
)
def test_a_text_is_no_switch_and_no_number_and_a_number_is_no_text(settings, name, kind, tmp_path):
    folder = {"output_dir": str(tmp_path)} if settings is DistillationConfig else {}
    with pytest.raises(ValueError, match=f"^{name} must be "):
        settings(**folder | {name: WRONG[next(iter(kind))]})


@dataclass
class Settings:
    switch: bool = False
    rows: int = 1
    share: float = 0.5
    names: "list[str] | str | None" = None


@pytest.mark.parametrize(
    "wrong", [{"rows": 2.5}, {"rows": True}, {"share": True}, {"names": ["a", 3]}, {"names": {"a": 1}}, {"switch": 2}]
)
def test_other_numbers_and_lists_of_other_things_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be "):
        check_field_types(Settings(**wrong))


@pytest.mark.parametrize(("name", "told"), [("rows", "a whole number.*leave it out for 1"), ("share", "a number")])
def test_none_is_no_number(name, told):
    with pytest.raises(ValueError, match=f"{name} must be {told}"):
        refuse_none(Settings(**{name: None}))
    refuse_none(Settings(**{name: None}), skipped={name})
    refuse_none(Settings(switch=None, names=None))


def test_what_fits_passes():
    check_field_types(Settings(switch=1, rows=2, share=3, names=["a"]))
    check_field_types(Settings(switch=None, names=("a", "b")))
    check_field_types(Settings(names="a"))


FLOATS = [(settings, name) for settings, name, kind in SCALARS if kind == {float} and name != "max_grad_norm"]


@pytest.mark.parametrize("endless", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("settings", "name"), FLOATS, ids=[name for _, name in FLOATS])
def test_no_setting_is_nan_or_infinite(settings, name, endless, tmp_path):
    folder = {"output_dir": str(tmp_path)} if settings is DistillationConfig else {}
    with pytest.raises(ValueError, match=f"^{name} must be a finite number, got"):
        settings(**folder | {name: endless})


def test_gradients_may_be_measured_without_being_clipped(tmp_path):
    assert DistillationConfig(str(tmp_path), max_grad_norm=math.inf).max_grad_norm == math.inf


@pytest.mark.parametrize("settings", [{"rows": 2**63}, {"rows": -(2**70)}, {"share": 10**400}])
def test_a_whole_number_that_nothing_counts_with_is_refused(settings):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))} must be at most 9223372036854775807"):
        check_field_types(Settings(**settings))
    with pytest.raises(ValueError, match="^rows must be a whole number of at least 1 and at most 9223372036854775807"):
        check_counts(rows=2**63)


@pytest.mark.parametrize("value", [-0.1, 1.1, 98, math.nan, math.inf, "0.5", True])
def test_what_is_no_share_is_refused(value):
    with pytest.raises(
        ValueError, match="^keep must be a share above 0 and below 1, such as 0.98 for 98 %, got keep="
    ):
        check_share("keep", value)
    for bounds in ({"none": True}, {"whole": True}, {"none": True, "whole": True}):
        with pytest.raises(ValueError, match="^keep must be a share "):
            check_share("keep", value, **bounds)


def test_a_share_may_be_nothing_or_the_whole_where_that_means_something():
    for share, name in ((0, "none"), (1.0, "whole")):
        check_share("keep", share, **{name: True})
        with pytest.raises(ValueError, match="^keep must be a share "):
            check_share("keep", share)
    check_share("keep", None)
    check_share("keep", 0.5)


OF_NUMPY = {bool: np.bool_, int: np.int64, float: np.float32}


def test_numbers_of_numpy_in_settings_become_pythons(tmp_path):
    usual = DistillationConfig(str(tmp_path))
    numbers = {
        field.name: getattr(usual, field.name)
        for field in fields(usual)
        if field.init and type(getattr(usual, field.name)) in OF_NUMPY
    }
    given = {name: OF_NUMPY[type(value)](value) for name, value in numbers.items()}
    settings = DistillationConfig(str(tmp_path), ensemble_weights=np.array([0.5, 1.0]), **given)
    assert len(numbers) > 50 and settings.ensemble_weights == [0.5, 1.0]
    assert {name: type(getattr(settings, name)) for name in numbers} == {
        name: type(value) for name, value in numbers.items()
    }
    settings.to_json_string()


def test_numbers_of_numpy_become_pythons_where_settings_are_frozen():
    assert repr(DataArguments(max_length=np.int64(8), validation_split=np.float64(0.5)).max_length) == "8"
    assert repr(Prices(np.float64(1), np.float64(2))) == "Prices(input=1.0, output=2.0)"


def test_a_number_of_numpy_is_held_against_bounds_as_any_other(tmp_path):
    for settings in ({"learning_rate": np.float32(-1)}, {"seed": np.int64(-1)}, {"max_grad_norm": np.float32(-1)}):
        with pytest.raises(ValueError, match=f"^{next(iter(settings))} must be .*, got -1"):
            DistillationConfig(str(tmp_path), **settings)


def test_plain_numbers_leave_all_else_as_it_is():
    rows = [{"text": "good", "label": np.int64(1)}]
    assert plain_numbers(rows)[0] is rows[0]
    found = plain_numbers({"a": (np.int64(1), [np.float64(2)]), "b": np.array([[1, 2]]), "c": {"d": np.int64(3)}})
    assert repr(found) == "{'a': (1, [2.0]), 'b': [[1, 2]], 'c': {'d': 3}}"


def takes_numbers(function) -> bool:
    hints = " ".join(str(hint) for name, hint in inspect.get_annotations(function).items() if name != "return")
    options = [each.kind is each.VAR_KEYWORD for each in inspect.signature(function).parameters.values()]
    return any(options) or re.search(r"\b(int|float)\b", hints) is not None


PUBLIC = {"tune": tune} | {
    name: found.__init__ if inspect.isclass(found) else found
    for module in (nlpkd, compression, teachers, augment)
    for name in module.__all__
    # Their numbers are in the config; texts by their rows.
    if name not in ("DistillationTrainer", "save_report")
    for found in [getattr(module, name)]
    if callable(found)
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_of_numbers_takes_those_of_numpy(name):
    function = inspect.unwrap(PUBLIC[name])
    ours = inspect.isfunction(function) and function.__code__.co_filename.startswith(str(nlpkd.__path__[0]))
    if ours and takes_numbers(function):
        assert PUBLIC[name].__code__ is plain_arguments(function).__code__


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_of_paths_takes_one_from_the_home_folder(name):
    function = inspect.unwrap(PUBLIC[name])
    ours = inspect.isfunction(function) and function.__code__.co_filename.startswith(str(nlpkd.__path__[0]))
    hints = [str(each.annotation) for each in inspect.signature(function).parameters.values()] if ours else []
    if any(re.search(r"\b(Path|PathLike|Source)\b", hint) for hint in hints):
        assert PUBLIC[name].__code__ is plain_arguments(function).__code__


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder, and another one to work in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_paths_of_any_form_begin_at_the_home_folder(home):
    assert with_home("~/x") == f"{home}/x" and with_home(Path("~/x")) == home / "x" and with_home("~") == str(home)
    assert with_home(["~/x", "y"]) == [f"{home}/x", "y"] and with_home(("~/x",)) == (f"{home}/x",)
    assert with_home({"a": "~/x", "b": Path("~/y")}) == {"a": f"{home}/x", "b": home / "y"}
    Path("~").mkdir()
    assert with_home("~/x") == f"{home}/x"


@pytest.mark.parametrize(
    "word", ["auto", "user/model@v1", "layers:3", "a~b", "./~/x", "~nobody-is-called-so/x", 3, None]
)
def test_words_ids_and_other_things_stay(word, home):
    assert with_home(word) is word


def test_a_file_that_is_called_like_a_user_s_home_stays(home):
    assert with_home("~root") == "/root"
    Path("~root").touch()
    assert with_home("~root") == "~root" and with_home(Path("~root")) == Path("~root")


def test_a_function_gets_paths_and_keeps_texts(home):
    @plain_arguments
    def function(source: Source, place: str | Path, /, word: str, *rest: str, to: Path | None = None, **others: str):
        return source, place, word, rest, to, others

    found = function("~/s", "~/p", "~/w", "~/r", to=Path("~/t"), column="~/c")
    assert found == (f"{home}/s", f"{home}/p", "~/w", ("~/r",), home / "t", {"column": "~/c"})
    rows = [{"text": "~/s"}]
    assert function(rows, "p", "w")[0] == [{"text": "~/s"}]


def test_settings_have_paths_of_the_home_folder(home):
    args = DistillationConfig("~/out", teacher_cache_dir="~/cache", augment_texts="~/more.txt", report_to="none")
    assert (args.output_dir, args.teacher_cache_dir) == (f"{home}/out", f"{home}/cache")
    assert args.augment_texts == f"{home}/more.txt" and not Path("~").exists()
