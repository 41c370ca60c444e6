"""Names into models: what can't be had says why and what to do, and nothing is unpickled."""

from pathlib import Path

import pytest
import torch
from samples import tiny_bert

from nlpkd.models.loading import load_classifier, load_tokenizer, split_revision


@pytest.mark.parametrize(
    "name, expected",
    [
        ("user/name", ("user/name", None)),
        ("user/name@main", ("user/name", "main")),
        ("user/name@refs/pr/1", ("user/name", "refs/pr/1")),
        ("name@61fb594", ("name", "61fb594")),
    ],
)
def test_a_revision_comes_after_an_at_sign(name, expected):
    assert split_revision(name) == expected


def test_a_folder_with_an_at_sign_is_never_split(tmp_path):
    folder = tmp_path / "model@home"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)


def test_a_saved_model_is_loaded_with_nothing_missing(tmp_path):
    saved = tiny_bert()
    saved.save_pretrained(tmp_path)
    for name in (tmp_path, str(tmp_path)):
        model, missing = load_classifier(name)
        assert missing == []
        assert all(torch.equal(tensor, saved.state_dict()[k]) for k, tensor in model.state_dict().items())


def test_a_saved_tokenizer_is_loaded(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    text = "the film was good"
    assert load_tokenizer(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_parameters_that_the_checkpoint_lacks_are_named(tmp_path):
    tiny_bert().bert.save_pretrained(tmp_path)
    assert load_classifier(tmp_path)[1] == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize("load", [load_classifier, load_tokenizer])
@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing", "runs/here/nothing", Path("nothing")])
def test_a_path_where_nothing_is_there_is_said_to_be_one(load, name):
    with pytest.raises(ValueError, match=f"there is no folder '{name}': pass a saved model's folder, or a Hub id"):
        load(name)


@pytest.mark.parametrize("load, what", [(load_classifier, "model"), (load_tokenizer, "tokenizer")])
def test_a_hub_that_can_not_be_reached_leads_to_the_demo(load, what):
    with pytest.raises(OSError, match=f"the {what} 'nobody/nothing' can't be had from https://(?s:.*)make demo"):
        load("nobody/nothing")
    with pytest.raises(OSError, match="'nobody/nothing' at revision 'v2' can't be had"):
        load("nobody/nothing", revision="v2")


def test_a_pickled_checkpoint_is_refused_and_not_read(tmp_path):
    model = tiny_bert()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="can't be loaded: .*model.safetensors"):
        load_classifier(tmp_path)


def test_a_folder_without_a_model_is_not_blamed_on_the_hub(tmp_path):
    with pytest.raises((OSError, ValueError), match=str(tmp_path)) as error:
        load_classifier(tmp_path)
    assert "make demo" not in str(error.value)


def test_settings_of_the_config_are_passed_on(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    model, _ = load_classifier(tmp_path, num_labels=4, ignore_mismatched_sizes=True)
    assert model.config.num_labels == 4
