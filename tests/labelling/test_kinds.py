"""Teachers that a file names: each kind with its arguments, and what is refused."""

import json
import re

import pytest
from paths import ROOT

from nlpkd import teachers
from nlpkd.labelling.kinds import KINDS, make_teacher, names_a_teacher, read_mapping

NOUL = {"type": "noul", "instructions": "Is it spam?"}
CHAT = {"teacher": "chat", "model": "m", "question": "?", "classes": ["a", "b"]}
WRITTEN = [
    {"teacher": "decision", "model": "m", "question": NOUL, "base_url": "http://localhost:1", "timeout_s": 5},
    {"teacher": "zero-shot", "model": "m", "classes": ["a", "b"], "hypothesis_template": "It is {}."},
    {"teacher": "embedding", "model": "m", "descriptions": {"a": "one", "b": ["two", "three"]}, "temperature": 0.1},
    {"teacher": "chat", "model": "m", "question": "Which?", "classes": {"a": "one", "b": "two"}, "votes": 3},
]


@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: written["teacher"])
def test_each_kind_is_made_of_its_arguments(tmp_path, written):
    (tmp_path / "teacher.yaml").write_text(json.dumps(written))
    read = read_mapping(tmp_path / "teacher.yaml")
    assert read == written and names_a_teacher(read)
    on_a_server = written["teacher"] in ("decision", "chat")
    teacher = make_teacher(read, concurrency=3 if on_a_server else None)
    made = getattr(teachers, KINDS[written["teacher"]])
    direct = made(**{name: value for name, value in written.items() if name != "teacher"})
    assert type(teacher) is made and teacher.describe() == direct.describe() and teacher.classes == direct.classes
    assert teacher.concurrency == (3 if on_a_server else 1)


def test_each_file_that_the_guide_shows_is_a_teacher_or_a_question(tmp_path):
    page = (ROOT / "recipes" / "guides" / "no-labels.md").read_text(encoding="utf-8")
    shown, made = re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE), []
    for written in shown:
        (tmp_path / "teacher.yaml").write_text(written)
        read = read_mapping(tmp_path / "teacher.yaml")
        teacher = read if names_a_teacher(read) else {"teacher": "decision", "model": "m", "question": read}
        made.append((teacher["teacher"], make_teacher(teacher).classes))
    assert made == [(kind, ("pos", "neg")) for kind in ("embedding", "chat", "decision")]


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("written", [*WRITTEN[1:3], WRITTEN[0] | {"base_url": None}])
def test_a_teacher_without_a_server_is_not_asked_several_things_at_the_same_time(written, in_file):
    with pytest.raises(ValueError, match="concurrency=4 is of a server|has no 'concurrency'"):
        make_teacher(written | ({"concurrency": 4} if in_file else {}), None if in_file else 4)


@pytest.mark.parametrize("written", [WRITTEN[0], CHAT], ids=lambda written: written["teacher"])
@pytest.mark.parametrize("in_file", [None, 6])
@pytest.mark.parametrize("given", [None, 1, 8])
def test_what_is_given_goes_before_what_is_written_down(written, in_file, given):
    assert make_teacher(written | {"concurrency": in_file}, concurrency=given).concurrency == (given or in_file or 8)


def test_a_null_is_what_is_not_written_and_numbers_are_names():
    teacher = make_teacher(CHAT | {"classes": [1, 2], "orders": None, "base_url": None})
    assert teacher.classes == ("1", "2") and teacher.orders == 2


NAMES = ["010", "1_000", "1:30", "0x1F", "+5", "1.50", "1e3", "1.0e3", ".5", "2024-01-01", "7", "-3", "2.5", "yes"]


def test_a_model_in_the_home_folder_is_looked_for_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OSError, match=re.escape(f"{tmp_path}/nli")):
        make_teacher({"teacher": "zero-shot", "model": "~/nli", "classes": ["a", "b"]}).probabilities(["x"])


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_file_is_as_it_is_written_wherever_it_stands(tmp_path, name):
    chat = "teacher: chat\nmodel: m\nquestion: '?'\ntimeout_s: 1_0\nclasses:"
    files = {
        "list": f"{chat} [{name}, other]",
        "block": f"{chat}\n- {name}\n- other",
        "mapping": f"{chat} {{{name}: , other: {name}}}",
        "descriptions": f"teacher: embedding\nmodel: m\ndescriptions:\n  {name}: words\n  other: others",
        "options": f"{{teacher: decision, model: m, question: {{type: choice, criteria: {{{name}: a, other: b}}}}}}",
    }
    for kind, text in files.items():
        (tmp_path / "teacher.yaml").write_text(text)
        assert make_teacher(read_mapping(tmp_path / "teacher.yaml")).classes == (name, "other"), kind
    (tmp_path / "teacher.yaml").write_text(f"{name}: {{type: noul}}\nother: {{type: noul}}")
    assert [*map(str, read_mapping(tmp_path / "teacher.yaml"))] == [name, "other"]


def test_questions_are_no_teachers_even_where_a_label_is_called_teacher():
    assert not names_a_teacher(NOUL) and not names_a_teacher({"teacher": NOUL, "pupil": NOUL})


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"teacher": "oracle", "model": "m"}, "one of decision, zero-shot, embedding, chat"),
        ({"teacher": "zero-shot", "model": "m"}, "needs classes"),
        ({"teacher": "embedding", "descriptions": {"a": "x", "b": "y"}}, "needs model"),
        ({"teacher": "chat", "model": "m", "question": "?", "clases": ["a"]}, "has no 'clases'"),
        ({"teacher": "embedding", "model": "m", "descriptions": {"a": "x"}}, "two or more different classes"),
        ({"teacher": "embedding", "model": "m", "descriptions": ["a", "b"]}, "descriptions must be a mapping"),
        (
            {"teacher": "embedding", "model": "m", "descriptions": {"a": "x", "b": None}},
            "descriptions must be a mapping",
        ),
        ({"teacher": "chat", "model": 3, "question": "?", "classes": ["a", "b"]}, "model must be a text"),
        ({"teacher": "chat", "model": "m", "question": None, "classes": ["a", "b"]}, "needs question"),
        (CHAT | {"question": ""}, "question must be what is asked"),
        (CHAT | {"question": {"type": "noul"}}, "question must be a text"),
        (CHAT | {"classes": {"a": ["one", "two"], "b": "three"}}, "the class 'a' is described by words, got"),
        ({"teacher": "decision", "model": "m", "question": NOUL | {"instructions": " "}}, "must say what is asked"),
        (CHAT | {"base_url": 8000}, "base_url must be a text"),
        (CHAT | {"orders": 1.5}, "orders must be a whole number"),
        (CHAT | {"votes": "3"}, "votes must be a whole number"),
        (CHAT | {"concurrency": "lots"}, "concurrency must be a whole number"),
        (CHAT | {"concurrency": 0}, "concurrency must be a whole number"),
        (CHAT | {"classes": ["a", None]}, "two or more different classes"),
        ({"teacher": "decision", "model": "m", "question": "Good?"}, "question must be a mapping"),
    ],
)
def test_what_makes_no_teacher_is_refused(written, told):
    with pytest.raises(ValueError, match=told):
        make_teacher(written)


def test_a_file_that_can_not_be_read_is_named(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ValueError, match=f"{path}, the file of a question or of a teacher, can't be read: "):
            read_mapping(path)
