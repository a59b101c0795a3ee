"""The bundled data: whole, clean, every row its own, neither trivial nor noise, and labelled twice."""
import re
import unicodedata

import pytest

from klue_course.data import find_all, load, verify
from tests import quality

SIZES = {  # rows of all splits; the corpus in documents
    "corpus": 1_200, "nsmc": 1_000, "chatbot": 800, "ynat": 700, "ner": 500, "mrc": 240, "nli": 600, "sts": 400, "parakqc": 1_000, "re": 450,
    "intent": 420, "wos": 40, "dp": 150,
}
ON_DISK = list(SIZES)
LABELLED = [name for name in ON_DISK if name != "corpus"]


@pytest.mark.parametrize("name", ON_DISK)
def test_size_and_splits(name):
    rows = quality.rows(name)
    assert len(rows) >= SIZES[name]
    if name not in ("corpus", "chatbot", "parakqc"):
        assert len({row["split"] for row in rows}) == 2


def test_no_faults():
    assert [str(fault) for fault in verify(quality.BUNDLED)] == []


def test_corpus_is_large_and_its_documents_long():
    documents = [row["text"].split("\n") for row in quality.rows("corpus")]
    assert min(map(len, documents)) >= 8
    assert sum(len(line.encode()) + 1 for document in documents for line in document) >= 1_500_000


def test_labelled_sets_are_small():
    files = {path for name, splits in find_all(quality.BUNDLED).items() if name not in ("corpus", "petitions", "webpages") for paths in splits.values() for path in paths}
    assert sum(path.stat().st_size for path in files) <= 4_000_000


def test_everything_is_composed_text_with_single_blanks():
    for path in quality.BUNDLED.rglob("*"):
        if path.suffix in (".txt", ".json", ".tsv", ".csv", ".jsonl"):
            text = path.read_text(encoding="utf-8")
            assert unicodedata.is_normalized("NFC", text) and "\r" not in text, path.name
    assert not [text for name in ON_DISK for pairs in quality.texts(name).values() for _, text in pairs if "  " in text or text != text.strip()]


@pytest.mark.parametrize("name", ON_DISK)
def test_every_row_is_its_own(name):
    assert [pair for pairs in quality.texts(name).values() for pair in quality.similar_pairs(pairs)] == []
    assert quality.repeated_frames(quality.sentences(name)) == []


@pytest.mark.parametrize("name", ON_DISK)
def test_a_shallow_method_is_neither_right_nor_lost(name):
    assert quality.in_bounds(found := quality.signal(name)), found


@pytest.mark.parametrize("name", LABELLED)
def test_two_labellings_agree(name):
    table = quality.second_labels(name)
    assert len(table) >= min(100, len(quality.rows(name)))
    for measure, value in quality.agreement(name, table).items():
        assert value >= quality.LEAST[measure], (measure, value)


@pytest.mark.parametrize("name", LABELLED)
def test_disagreements_are_settled_and_the_rows_are_those_that_were_labelled(name):
    rows = {quality.key(name, row): row for row in quality.rows(name)}
    for labels in quality.second_labels(name):
        if labels["final"] is None:
            assert labels["id"] not in rows
        else:
            assert quality.first_label(name, rows[labels["id"]]) == labels["final"], labels["id"]
            assert quality.digest(name, rows[labels["id"]]) == labels["digest"], labels["id"]
        assert labels["first"] != labels["second"] or labels["final"] == labels["first"], labels["id"]


@pytest.mark.parametrize("name", [*ON_DISK, "korquad", "webpages", "people"])
def test_card_says_what_must_be_said(name):
    card = quality.card_of(name).read_text(encoding="utf-8")
    assert "CC BY 4.0" in card and "한계" in card and re.search("쓰면 안|쓰지 마", card)


@pytest.mark.parametrize("name", LABELLED)
def test_card_states_the_agreement_that_is_measured(name):
    assert quality.card_of(name).read_text(encoding="utf-8") == quality.with_agreement(name), "run `python -m tests.quality --cards`"


# ---------------------------------------------------------------- the measures themselves


def test_templates_are_found():
    template = [f"나는 어제 {place}에서 친구와 함께 맛있는 {food}을 먹었다." for place, food in (("서울", "떡"), ("부산", "빵"), ("제주", "밥"))]
    assert quality.repeated_frames(template)[0][0] == 3
    assert quality.repeated_frames(template[:2]) == []
    assert quality.similar_pairs([("1", template[0]), ("2", template[0] + " 참")])
    assert not quality.similar_pairs([("1", template[0]), ("1", template[0] + " 참")])


def test_easy_and_random_labels_are_found():
    texts = [f"{'좋다' if number % 2 else '나쁘다'} {number}" for number in range(200)]
    assert quality.tfidf_accuracy(texts, [number % 2 for number in range(200)]) > 95
    assert not quality.in_bounds({"tfidf": 99.0, "chance": 50.0}) and not quality.in_bounds({"tfidf": 55.0, "chance": 50.0})
    assert not quality.in_bounds({"hypothesis_only": 60.0}) and not quality.in_bounds({"longest_noun": 20.0})


def test_agreement_measures_see_disagreement():
    same = {"first": "<가람:LC>에 갔다", "second": "<가람:LC>에 갔다"}
    assert quality.agreement("ner", [same]) == {"entity_f1": 1.0}
    assert quality.agreement("ner", [same | {"second": "<가람에:LC> 갔다"}]) == {"entity_f1": 0.0}
    assert quality.agreement("dp", [{"first": [[2, "NP"], [0, "VP"]], "second": [[2, "NP_AJT"], [0, "VP"]]}]) == {"las": 0.5}
    assert quality.agreement("mrc", [{"first": ["가나"], "second": []}]) == {"character_f1": 0.0}
    assert quality.agreement("wos", [{"first": [["a"], ["a", "b"]], "second": [["a"], ["a"]]}]) == {"joint_goal": 0.5}


@pytest.mark.parametrize("name", [*ON_DISK, "korquad", "kornli", "korsts", "paraphrase", "webpages", "people"])
def test_bundled_set_loads_by_its_name(name):
    assert len(load(name, "mini")["train"]) > 0


def test_question_pairs_do_not_leak():
    splits = load("paraphrase", "mini")
    sentences = [{text for row in rows for text in (row["question1"], row["question2"])} for rows in splits.values()]
    assert not sentences[0] & sentences[1] and not sentences[0] & sentences[2] and not sentences[1] & sentences[2]
    assert all(sum(rows["is_duplicate"]) * 2 == len(rows) for rows in splits.values())


def test_invented_people_have_no_real_numbers():
    people = load("people", "mini")["train"].to_list()
    assert len(people) == len({person["name"] for person in people}) == len({person["secret"] for person in people}) == 20
    assert all(len(person["secret"]) == 6 and person["secret"] in person["text"] and person["name"] in person["text"] for person in people)
