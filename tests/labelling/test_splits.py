"""The rows of a distillation whose teacher labels texts, before anything is asked."""

from label_server import LabelServer, right_answer

from nlpkd import label, read_splits
from nlpkd.data.arguments import DataArguments
from nlpkd.labelling.costs import SpendingLimits
from nlpkd.labelling.splits import RowsToLabel
from nlpkd.teachers import DecisionTeacher


def test_rows_that_a_distillation_labels_say_what_those_of_label_say_costs_among_it(tmp_path):
    def answer(request):
        return right_answer(request) | {"usage": {"input_tokens": len(request["state"]), "output_tokens": 2}}

    question = {"type": "choice", "instructions": "Is it good?", "criteria": {"neg": None, "pos": None}}
    texts, prices = [{"text": "a"}, {"text": "a film"}, {"text": "a"}], (1e6, 1e6)
    with LabelServer(answer) as server:
        teacher = DecisionTeacher("m", question, base_url=server.url)
        alone = label(teacher, texts, output=tmp_path / "alone.parquet", prices=prices)
        limits = SpendingLimits.of(prices=prices)
        rows = RowsToLabel.of(teacher, texts, None, None, tmp_path / "labels.parquet", DataArguments(), limits)
        found = rows.answered()[0]["train"]
    assert found[:] == read_splits(alone)[0]["train"][:] and found["teacher_cost"][:] == [3.0, 8.0, 0.0]
