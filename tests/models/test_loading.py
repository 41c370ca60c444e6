"""Names into models: what can't be had says why and what to do, and nothing is unpickled."""

import copy
import json
import logging
import re
import time
from pathlib import Path

import pytest
import torch
from samples import tiny_bert
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, XLNetConfig

import nlpkd
from nlpkd.evaluation.benchmark import measure_latency
from nlpkd.models.loading import load_classifier, load_config, load_tokenizer, split_revision
from nlpkd.models.reshaped import ReshapedConfig


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


@pytest.mark.parametrize("load", [load_classifier, load_config, load_tokenizer])
@pytest.mark.parametrize("left, found", [((), "nothing"), ((".lock", "run.yaml"), ".lock, run.yaml")])
def test_a_folder_that_a_failed_run_left_is_said_to_hold_no_model(load, left, found, tmp_path):
    for name in left:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"holds no saved model: no config.json \(found: {found}\); see whether"):
        load(tmp_path)


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


def test_weights_of_other_shapes_are_refused_by_name_or_drawn_where_that_is_asked(tmp_path, said_by_transformers):
    tiny_bert(num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"other shapes than its config says: classifier.\w+ is \(3.*\) and not \(2"):
        load_classifier(tmp_path, num_labels=2)
    model, drawn = load_classifier(tmp_path, num_labels=2, ignore_mismatched_sizes=True)
    assert drawn == ["classifier.bias", "classifier.weight"] and model.num_labels == 2
    assert not [line for line in said_by_transformers if "REPORT" in line or "sharded" in line]


def test_parameters_that_the_checkpoint_lacks_are_named(tmp_path, said_by_transformers):
    tiny_bert().bert.save_pretrained(tmp_path)
    assert load_classifier(tmp_path)[1] == ["classifier.bias", "classifier.weight"]
    assert not [line for line in said_by_transformers if "REPORT" in line or "sharded" in line]


@pytest.mark.parametrize("load", [load_classifier, load_tokenizer])
@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing", "runs/here/nothing", Path("nothing")])
def test_a_path_where_nothing_is_there_is_said_to_be_one(load, name):
    with pytest.raises(ValueError, match=f"there is no folder '{name}': pass a saved model's folder, or a Hub id"):
        load(name)


@pytest.mark.parametrize("load", [load_classifier, load_tokenizer, nlpkd.load])
@pytest.mark.parametrize("name", ["my name", "user/it's", "-student", "a--b", "student.git"])
def test_a_name_that_no_repository_can_have_is_not_looked_for(load, name):
    with pytest.raises(ValueError, match=f"'?{name}.? is no folder here, and no name that .* can have: pass a saved"):
        load(name)


@pytest.mark.parametrize("dtype", ["bf16", "int8", "nn", "", 16, None])
def test_a_dtype_that_no_weights_have_is_refused(tmp_path, dtype):
    tiny_bert().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"no model has weights of dtype {dtype!r}: give 'float32', 'bfloat16' or"):
        load_classifier(tmp_path, dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "auto"])
def test_a_dtype_may_be_named_given_or_left_to_the_checkpoint(tmp_path, dtype):
    tiny_bert().save_pretrained(tmp_path)
    found = load_classifier(tmp_path, dtype=dtype)[0].dtype
    assert found == {"bfloat16": torch.bfloat16, "auto": torch.float32}.get(dtype, dtype)


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


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_is_no_setting_of_the_config_is_passed_on_to_transformers(attention, tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    model, _ = load_classifier(tmp_path, attn_implementation=attention, num_labels=2)
    assert model.config._attn_implementation == attention
    with pytest.raises(ValueError, match="unexpected keyword argument 'num_lables'"):
        load_classifier(tmp_path, num_lables=3)


def test_settings_of_the_config_are_passed_on(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    model, _ = load_classifier(tmp_path, num_labels=4, ignore_mismatched_sizes=True)
    assert model.config.num_labels == 4


# What is refused before it is built


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("load", [load_classifier, load_config])
def test_a_config_larger_than_any_model_is_refused_before_a_layer_is_built(load, tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", num_hidden_layers=10_000_000)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"has num_hidden_layers=10,000,000, and at most 1,000 is loaded"):
        load(tmp_path)
    assert time.monotonic() - started < 10


def test_the_config_of_a_model_within_is_held_to_the_same_sizes(tmp_path):
    within = tiny_bert().config.to_dict() | {"num_hidden_layers": 10_000_000}
    ReshapedConfig(base_config=tiny_bert().config, linears={}).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", base_config=within)
    with pytest.raises(ValueError, match=r"has num_hidden_layers=10,000,000, and at most 1,000 is loaded"):
        load_config(tmp_path)


def test_a_table_larger_than_any_vocabulary_is_refused_before_it_takes_memory(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", vocab_size=4_000_000_000)
    with pytest.raises(ValueError, match="has vocab_size=4,000,000,000, and at most 10,000,000 is loaded"):
        load_classifier(tmp_path)


def test_a_tokenizer_with_an_id_of_four_billion_is_refused(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["film"] = 4_000_000_000
    edit_json(tmp_path / "tokenizer.json", model=content["model"])
    with pytest.raises(ValueError, match="gives 'film' the id 4,000,000,000, and ids up to 10,000,000 are taken"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("outside", ["../elsewhere/model.safetensors", "{elsewhere}/model.safetensors"])
def test_an_index_of_weights_that_leads_out_of_the_folder_is_refused(outside, tmp_path):
    model, folder, elsewhere = tiny_bert(), tmp_path / "model", tmp_path / "elsewhere"
    model.save_pretrained(elsewhere)
    model.config.save_pretrained(folder)
    file = outside.format(elsewhere=elsewhere)
    index = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"lists a file '{re.escape(file)}', which lies outside of it"):
        load_classifier(folder)


def test_weights_in_several_files_of_the_folder_are_loaded(tmp_path):
    saved = tiny_bert()
    saved.save_pretrained(tmp_path, max_shard_size="5KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    loaded, missing = load_classifier(tmp_path)
    assert missing == []
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_a_mistyped_local_path_is_told_from_a_hub_that_can_not_be_reached(tmp_path, monkeypatch):
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no folder 'runs/teachr': pass a saved model's folder"):
        load_classifier("runs/teachr")
    with pytest.raises(OSError, match="'teachr' can't be had from https://.*and there is no folder of that name here"):
        load_classifier("teachr")


SIZES = {"vocab_size": 99, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert", "mpnet", "electra", "gpt2"])
@pytest.mark.parametrize("own", [int(1e30), 21], ids=["none", "one_more"])
def test_a_tokenizer_has_at_most_its_model_s_limit_and_the_model_takes_no_token_more(own, family, tmp_path, tokenizer):
    config = AutoConfig.for_model(family, max_position_embeddings=20, pad_token_id=1, **SIZES)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    larger = copy.deepcopy(tokenizer)
    larger.model_max_length = own
    model.save_pretrained(tmp_path)
    larger.save_pretrained(tmp_path)
    limit = load_tokenizer(tmp_path).model_max_length
    with torch.no_grad():
        model(torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 5))


def test_a_tokenizer_keeps_its_limit_and_one_beside_a_model_without_limit_has_none(tmp_path, tokenizer):
    BertConfig(max_position_embeddings=2000).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).model_max_length == tokenizer.model_max_length == 64
    unlimited = copy.deepcopy(tokenizer)
    unlimited.model_max_length = int(1e30)
    unlimited.save_pretrained(tmp_path)
    XLNetConfig(d_model=8, n_layer=1, n_head=1, d_inner=8).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).model_max_length == int(1e30)


def test_an_xlnet_which_has_no_limit_is_measured(tokenizer):
    config = XLNetConfig(vocab_size=99, d_model=8, n_layer=1, n_head=1, d_inner=8, pad_token_id=0)
    times = measure_latency({"student": AutoModelForSequenceClassification.from_config(config)}, batches=[1], runs=1)
    assert times["student"][0].p50_ms > 0


@pytest.mark.parametrize("name", [None, 3, b"folder"])
def test_what_is_neither_path_nor_id_is_refused(name):
    for load in (load_classifier, load_tokenizer, nlpkd.load):
        with pytest.raises(ValueError, match="named by a path or a Hub id, got"):
            load(name)


def test_a_label2id_that_contradicts_id2label_is_settled_by_all_that_load_and_told_once(tmp_path, tokenizer, caplog):
    tiny_bert(id2label={0: "neg", 1: "pos"}).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"label2id": {"neg": 1, "pos": 0}}))
    with caplog.at_level(logging.WARNING):
        load_tokenizer(tmp_path)
        for config in (load_config(tmp_path), load_classifier(tmp_path)[0].config):
            assert (config.id2label, config.label2id) == ({0: "neg", 1: "pos"}, {"neg": 0, "pos": 1})
    assert caplog.text.count("contradicts itself: its label2id is {'neg': 1, 'pos': 0}") == 1


@pytest.mark.parametrize("load", [load_classifier, load_config, load_tokenizer, nlpkd.load])
@pytest.mark.parametrize(
    ("id2label", "advice"),
    [
        (["no", "ja"], 'write {"0": "no", "1": "ja"}'),
        ({"no": 0, "ja": 1}, "with your own names"),
        ("no", "with your own names"),
    ],
)
def test_labels_that_are_not_named_by_their_ids_are_said_to_be_wrong(load, id2label, advice, tmp_path, tokenizer):
    tiny_bert(layers=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"id2label": id2label}))
    with pytest.raises(ValueError, match="config.json has the id2label .* are named by their ids") as found:
        load(tmp_path)
    assert advice in str(found.value)
