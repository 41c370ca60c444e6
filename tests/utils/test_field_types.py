"""Settings of the wrong type are refused by name, whatever takes them."""

from dataclasses import dataclass, fields
from typing import get_args, get_type_hints

import pytest

from nlpkd import DistillationConfig
from nlpkd.data.arguments import DataArguments
from nlpkd.utils.field_types import check_field_types

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


def test_what_fits_passes():
    check_field_types(Settings(switch=1, rows=2, share=3, names=["a"]))
    check_field_types(Settings(switch=None, names=("a", "b")))
    check_field_types(Settings(names="a"))


def test_no_setting_is_nan(tmp_path):
    with pytest.raises(ValueError, match="num_train_epochs must be a number, got nan"):
        DistillationConfig(str(tmp_path), num_train_epochs=float("nan"))
