"""The official metrics: equal to the official scorer on its own cases, and the properties a score must have."""
import json
import math
import random
from pathlib import Path

import pytest

from klue_course import metrics
from klue_course.data import LABELS
from klue_course.runtime import InputError

CASES = json.loads((Path(__file__).parent / "data" / "klue_metrics.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("name", sorted({case["metric"] for case in CASES}))
def test_equal_to_the_official_scorer(name):
    cases = [case for case in CASES if case["metric"] == name]
    assert len(cases) >= 6
    for case in cases:
        assert getattr(metrics, name)(**case["inputs"]) == pytest.approx(case["expected"], abs=1e-9)


def test_a_perfect_answer_gets_100():
    tags, states, answers = [["B-PS", "I-PS", "O"]], [["식당-이름-가람"], []], {"1": ["답"], "2": []}
    assert metrics.ner_entity_macro_f1(tags, tags) == metrics.ner_char_macro_f1(tags, tags, LABELS["ner"]) == 100
    assert metrics.wos_joint_goal_accuracy(states, states) == metrics.wos_slot_micro_f1(states, states) == metrics.wos_slot_f1_pooled(states, states) == 100
    for score in (metrics.mrc_exact_match, metrics.mrc_rouge_w, metrics.korquad_exact_match, metrics.korquad_f1):
        assert score({"1": "답", "2": ""}, answers) == 100


def test_the_names_of_classes_do_not_matter():
    rng = random.Random(0)
    preds, labels = ([rng.randrange(7) for _ in range(60)] for _ in range(2))
    names = rng.sample(LABELS["ynat"], 7)
    assert metrics.ynat_macro_f1(preds, labels) == pytest.approx(metrics.ynat_macro_f1([names[p] for p in preds], [names[g] for g in labels]))


def test_undefined_scores_are_numbers():
    assert metrics.sts_pearson([1, 1], [0, 5]) == metrics.spearman([1, 1], [0, 5]) == 0
    assert metrics.re_micro_f1([0], [0], ["no_relation", "per:title"]) == 0
    assert not math.isnan(metrics.re_auprc([[1.0, 0.0]], [0]))


@pytest.mark.parametrize("wrong", [
    lambda: metrics.accuracy([1], [1, 2]),
    lambda: metrics.sts_pearson([], []),
    lambda: metrics.ner_entity_macro_f1([["O"], ["O"]], [["O"], ["O", "O"]]),
    lambda: metrics.dp_uas_micro_f1([[0]], [[0, 1]], [[0]], [[0]]),
    lambda: metrics.mrc_rouge_w({}, {"1": ["답"]}),
    lambda: metrics.wos_slot_micro_f1([[]], []),
])
def test_bad_input_is_one_line(wrong):
    with pytest.raises(InputError) as error:
        wrong()
    assert "\n" not in str(error.value)
