"""Readers against the real files, files that are wrong in every way we could think of, and round trips."""
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from klue_course import data
from klue_course.data import LABELS, SCHEMAS, load, verify
from klue_course.runtime import InputError

COUNTS = {  # the README of the shared data
    "nsmc": {"train": 150_000, "test": 50_000}, "ynat": {"train": 36_547, "validation": 8_014},
    "sts": {"train": 395, "validation": 62}, "nli": {"train": 2_280, "validation": 360}, "ner": {"train": 3_800, "validation": 600},
    "re": {"train": 4_626, "validation": 730}, "dp": {"train": 1_520, "validation": 240}, "mrc": {"train": 940, "validation": 148},
    "wos": {"train": 532, "validation": 84}, "korquad": {"validation": 5_774}, "kornli": {"validation": 2_490, "test": 4_407},
    "korsts": {"train": 5_749, "validation": 1_500, "test": 1_214}, "paraphrase": {"train": 6_136, "validation": 682, "test": 667},
    "intent": {"train": 55_134, "test": 5_386}, "hate": {"train": 6_946, "validation": 417, "test": 974}, "chatbot": {"train": 10_404},
    "parakqc": {"train": 8_800}, "petitions": {"train": 73_922},
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_files_load(data_dir, name):
    loaded = load(name, data_dir)
    assert {split: rows.num_rows for split, rows in loaded.items()} == COUNTS[name]
    assert all(rows.features == data.features(SCHEMAS[name]) for rows in loaded.values())
    text = json.dumps(next(iter(loaded.values())).select(range(50)).to_list(), ensure_ascii=False)
    assert unicodedata.is_normalized("NFC", text)


def test_the_dataset_folder_is_as_good_as_the_root(data_dir):
    assert load("dp", data_dir / "klue" / "klue-dp-v1.1").num_rows == load("dp", data_dir / "klue").num_rows == COUNTS["dp"]


def test_nsmc_equals_pandas_but_for_its_missing_values(data_dir):
    import pandas as pd

    frame = pd.read_csv(data_dir / "nsmc" / "ratings_test.txt", sep="\t", keep_default_na=False)
    ours = load("nsmc", data_dir)["test"]
    assert [data.nfc(text) for text in frame["document"]] == list(ours["document"])
    assert frame["label"].tolist() == list(ours["label"])


def test_label_traps(data_dir):
    chatbot = load("chatbot", data_dir)["train"]
    assert set(chatbot["label"]) == {0, 1, 2}                       # one label is "2" with trailing blanks
    paraphrase = load("paraphrase", data_dir)["train"]
    same = [row for row in paraphrase.select(range(200)) if row["question1"] == row["question2"]]
    assert same and all(LABELS["paraphrase"][row["is_duplicate"]] == "same" for row in same)
    assert set(load("hate", data_dir)["test"]["hate"]) == {-1}       # published without labels


def test_offsets_point_at_their_words(data_dir):
    for row in load("re", data_dir)["validation"]:
        for entity in (row["subject_entity"], row["object_entity"]):
            assert row["sentence"][entity["start_idx"] : entity["end_idx"] + 1] == entity["word"]
    for row in load("mrc", data_dir)["validation"]:
        assert bool(row["answers"]["text"]) != row["is_impossible"]


def test_verify_finds_few_faults_in_klue(data_dir):
    faults = verify(data_dir / "klue")
    assert len(faults) == 5 and {Path(fault.file).name for fault in faults} == {"klue-dp-v1.1_train.tsv", "klue-re-v1.1_train.json"}


# --- a small clean copy of every layout -------------------------------------------------------------------------------------------

ANSWER = {"text": "제주", "answer_start": 4}
CLEAN = {
    "nsmc": ("nsmc/ratings_train.txt", "id\tdocument\tlabel\n1\t좋다\t1\n2\t\"그 \"\"영화\"\"\"\t0\n"),
    "ynat": ("klue/ynat-v1.1/ynat-v1.1_train.json", [{"guid": "0", "title": "제목", "label": "세계", "url": "", "date": ""}, {"guid": "1", "title": "다른 제목", "label": "정치"}]),
    "sts": ("klue/klue-sts-v1.1/klue-sts-v1.1_train.json", [{"guid": "0", "sentence1": "가", "sentence2": "나", "labels": {"label": 3.0, "real-label": 3, "binary-label": 1}}]),
    "nli": ("klue/klue-nli-v1.1/klue-nli-v1.1_train.json", [{"guid": "0", "genre": "뉴스", "premise": "가", "hypothesis": "나", "gold_label": "neutral"}]),
    "ner": ("klue/klue-ner-v1.1/klue-ner-v1.1_train.tsv", "## 주석 : ##\n## 컬럼명 : CHAR\tNE_TAG\n## 0\t<수:PS> 가\n수\tB-PS\n \tO\n가\tO\n\n## 1\t나\n나\tO\n\n"),
    "re": ("klue/klue-re-v1.1/klue-re-v1.1_train.json", [{"guid": "0", "sentence": "수지와 제주", "label": "no_relation", "source": "",
           "subject_entity": {"word": "수지", "start_idx": 0, "end_idx": 1, "type": "PER"}, "object_entity": {"word": "제주", "start_idx": 4, "end_idx": 5, "type": "LOC"}}]),
    "dp": ("klue/klue-dp-v1.1/klue-dp-v1.1_train.tsv", "## 0\t비가 온다\n1\t비가\t비 가\tNNG+JKS\t2\tNP_SBJ\n2\t온다\t오 ㄴ다\tVV+EF\t0\tVP\n\n"),
    "mrc": ("klue/klue-mrc-v1.1/klue-mrc-v1.1_train.json", {"version": "1", "data": [{"title": "섬", "paragraphs": [{"context": "가장 큰 제주도", "qas": [
        {"guid": "0", "question": "어디?", "question_type": 1, "is_impossible": False, "answers": [{"text": "제주도", "answer_start": 5}]},
        {"guid": "1", "question": "언제?", "question_type": 3, "is_impossible": True, "answers": [], "plausible_answers": [{"text": "가장", "answer_start": 0}]}]}]}]}),
    "wos": ("klue/wos-v1.1/wos-v1.1_train.json", [{"guid": "0", "domains": ["택시"], "dialogue": [
        {"role": "user", "text": "택시요", "state": ["택시-종류-모범"]}, {"role": "sys", "text": "네"}]}]),
    "korquad": ("korquad/KorQuAD_v1.0_dev.json", {"data": [{"title": "섬", "paragraphs": [{"context": "큰 섬 제주", "qas": [{"id": "0", "question": "어디?", "answers": [ANSWER]}]}]}]}),
    "kornli": ("kornlu/KorNLI/xnli.dev.ko.tsv", "sentence1\tsentence2\tgold_label\n\"가\"\t나\tneutral\n"),
    "korsts": ("kornlu/KorSTS/sts-dev.tsv", "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\na\tb\t2012\t1\t4.750\t가\t나\n"),
    "paraphrase": ("question_pair/train.txt", "question1\tquestion2\tis_duplicate\n가\t나\t0\n"),
    "intent": ("3i4k/fci_test.txt", "2\t어디야\r\n1\t집이야\r\n"),
    "hate": ("korean_hate_speech/labeled/dev.tsv", "comments\tcontain_gender_bias\tbias\thate\n좋아요\tFalse\tnone\tnone\n"),
    "chatbot": ("chatbot_data/ChatbotData.csv", "Q,A,label\r\n안녕,\"네, 안녕\",0\r\n잘 가,또 봐,2  \r\n"),
    "parakqc": ("paraKQC/paraKQC_v1.txt", "0\t1\t메일 왔어?\r\n"),
    "petitions": ("corpus/petitions.txt", "첫 문장\n둘째\n\n다른 청원\n"),
}


def as_text(content) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1)


def put(root: Path, name: str, content=None) -> Path:
    path = root / CLEAN[name][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = as_text(CLEAN[name][1]) if content is None else content
    path.write_bytes(content if isinstance(content, bytes) else as_text(content).encode("utf-8", "surrogatepass"))
    return path


def records(root: Path, name: str) -> list[dict]:
    return next(iter(load(name, root).values())).to_list()


@pytest.mark.parametrize("name", CLEAN)
def test_clean_copy_has_the_schema_and_no_faults(tmp_path, name):
    put(tmp_path, name)
    loaded = load(name, tmp_path)
    assert next(iter(loaded.values())).features == data.features(SCHEMAS[name])
    assert verify(tmp_path) == []


@pytest.mark.parametrize("name", CLEAN)
def test_bom_crlf_and_decomposed_text_change_nothing(tmp_path, name):
    put(tmp_path / "a", name)
    text = as_text(CLEAN[name][1]).replace("\r\n", "\n")
    put(tmp_path / "b", name, "\ufeff" + text.replace("\n", "\r\n"))
    put(tmp_path / "c", name, unicodedata.normalize("NFD", text))
    expected = records(tmp_path / "a", name)
    assert records(tmp_path / "b", name) == expected
    if name not in ("re", "mrc", "korquad", "ner"):     # their offsets and rows change with the text
        assert records(tmp_path / "c", name) == expected


def test_decomposed_offsets_are_moved(tmp_path):
    apart = lambda text: unicodedata.normalize("NFD", text)
    context, answer = "가장 큰 섬은 제주도", "제주도"
    item = {"guid": "0", "question": apart("어디?"), "answers": [{"text": apart(answer), "answer_start": apart(context).index(apart(answer))}]}
    put(tmp_path, "mrc", {"data": [{"title": "", "paragraphs": [{"context": apart(context), "qas": [item]}]}]})
    row = records(tmp_path, "mrc")[0]
    start = row["answers"]["answer_start"][0]
    assert row["context"][start : start + 3] == answer and verify(tmp_path) == []


def test_lines_end_only_at_newlines(tmp_path):
    put(tmp_path, "nsmc", "id\tdocument\tlabel\n1\t줄\u2028바꿈\x0b과\x85끝\t1\n")
    assert records(tmp_path, "nsmc")[0]["document"] == "줄\u2028바꿈\x0b과\x85끝"


def test_fast_and_slow_tables_agree(tmp_path, monkeypatch):
    rows = [f'{i}\t{text}\t{i % 2}' for i, text in enumerate(['"따옴표 ""둘"""', '"하나', "NA", "", "끝\u2028", unicodedata.normalize("NFD", "각"), "ㅋㅋ…", '"a" 그리고 "b"'] * 50)]
    put(tmp_path, "nsmc", "id\tdocument\tlabel\n" + "\n".join(rows) + "\n")
    fast = records(tmp_path, "nsmc")
    monkeypatch.setattr(data, "fast_columns", lambda *arguments: None)
    assert records(tmp_path, "nsmc") == fast and len(fast) == 400


@pytest.mark.parametrize("seed", range(20))
def test_nfc_array_equals_unicodedata(seed):
    import random

    import pyarrow as pa

    rng = random.Random(seed)
    pool = "가각힣ㅋㅠᄀ각가\u0301é\u0300Ω…“”、。か\u3099漢盧㈜😀\u2000 a\"\ua000\u0e33"
    texts = ["".join(rng.choices(pool, k=rng.randrange(30))) for _ in range(300)]
    assert data.nfc_array(pa.array(texts)).to_pylist() == [unicodedata.normalize("NFC", text) for text in texts]


def test_loading_leaves_no_trace(tmp_path):
    put(tmp_path / "data", "ynat")
    code = f"from klue_course.data import load; rows = load('ynat', {str(tmp_path / 'data')!r})['train'].map(lambda r: {{'n': len(r['title'])}}); assert rows[0]['n'] == 2"
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run([sys.executable, "-c", code], env={"HOME": str(home), "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_importing_data_loads_nothing_heavy():
    code = "import sys; from klue_course import data; sys.exit(bool({'datasets', 'pandas', 'pyarrow', 'numpy', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- malformed files --------------------------------------------------------------------------------------------------------------

def table(name: str, old: str, new: str) -> str:
    text = as_text(CLEAN[name][1])
    assert old in text
    return text.replace(old, new, 1)


def item(name: str, change) -> str:
    document = json.loads(json.dumps(CLEAN[name][1]))
    change(document["data"][0] if isinstance(document, dict) else document[-1])
    return as_text(document)


def question(change) -> str:
    return item("mrc", lambda article: change(article["paragraphs"][0]["qas"][0]))


MALFORMED = {  # what -> (dataset, content, row or "", words of the message)
    "empty file": ("nsmc", b"", "", "빈 파일"),
    "blank file": ("ynat", b" \n\n ", "", "빈 파일"),
    "binary file": ("nsmc", b"id\tdocument\tlabel\n1\t\0\t1\n", 2, "NUL"),
    "cp949 table": ("nsmc", "id\tdocument\tlabel\n1\t한글 영화\t1\n".encode("cp949"), 2, "CP949"),
    "cp949 json": ("ynat", as_text(CLEAN["ynat"][1]).encode("cp949"), 4, "iconv"),
    "utf-16 file": ("nsmc", "id\tdocument\tlabel\n".encode("utf-16"), 1, "UTF-16"),
    "broken utf-8": ("nsmc", b"id\tdocument\tlabel\n1\t\xea\xb0\t1\n2\t\xff\t1\n", 2, "UTF-8"),
    "surrogate bytes": ("nsmc", b"id\tdocument\tlabel\n1\t\xed\xa0\x80\t1\n", 2, "UTF-8"),
    "cp949 corpus": ("petitions", "첫 줄\n둘째 줄".encode("cp949"), 1, "CP949"),
    "cp949 ner": ("ner", as_text(CLEAN["ner"][1]).encode("cp949"), 1, "CP949"),
    "wrong header": ("nsmc", table("nsmc", "document", "text"), 1, "id\\tdocument\\tlabel"),
    "no header": ("nsmc", "1\t좋다\t1\n", 1, "첫 줄"),
    "header only": ("nsmc", "id\tdocument\tlabel\n", "", "레코드가 하나도"),
    "short row": ("nsmc", table("nsmc", "2\t", "2"), 3, "3개"),
    "long row": ("nsmc", table("nsmc", "좋다", "좋\t다"), 2, "4개"),
    "blank line inside": ("nsmc", table("nsmc", "\n2", "\n\n2"), 3, "label: ''"),
    "unknown label": ("nsmc", table("nsmc", "\t1\n", "\t2\n"), 2, "negative | positive"),
    "empty label": ("nsmc", table("nsmc", "\t1\n", "\t\n"), 2, "label"),
    "label as words": ("kornli", table("kornli", "neutral", "중립"), 2, "entailment"),
    "score not a number": ("korsts", table("korsts", "4.750", "넷"), 2, "score"),
    "korsts short": ("korsts", table("korsts", "2012\t", ""), 2, "7개"),
    "paraphrase label": ("paraphrase", table("paraphrase", "\t0\n", "\t3\n"), 2, "same | different"),
    "intent label": ("intent", table("intent", "1\t집", "9\t집"), 2, "label"),
    "intent without tab": ("intent", table("intent", "1\t집", "1 집"), 2, "2개"),
    "hate label": ("hate", table("hate", "none\tnone", "none\tbad"), 2, "offensive"),
    "gender bias": ("hate", table("hate", "False", "maybe"), 2, "contain_gender_bias"),
    "chatbot comma": ("chatbot", table("chatbot", "또 봐", "또, 봐"), 3, "4개"),
    "chatbot quote": ("chatbot", table("chatbot", '안녕"', "안녕"), 2, "따옴표"),
    "parakqc topic": ("parakqc", table("parakqc", "0\t1", "7\t1"), 1, "topic"),
    "not json": ("ynat", table("ynat", '"guid": "1"', '"guid": "1'), 10, "JSON"),
    "json cut": ("ynat", as_text(CLEAN["ynat"][1])[:60], "", "JSON"),
    "json of another kind": ("ynat", '"제목"', "", "목록"),
    "empty list": ("ynat", "[]", "", "목록"),
    "json NaN": ("sts", table("sts", "3.0", "NaN"), "", "NaN"),
    "deep json": ("ynat", "[" * 100_000, "", "JSON"),
    "record not an object": ("ynat", item("ynat", lambda r: r.clear()), 2, "guid"),
    "missing field": ("ynat", item("ynat", lambda r: r.pop("title")), 2, "title"),
    "null field": ("ynat", item("ynat", lambda r: r.update(title=None)), 2, "title"),
    "number for text": ("ynat", item("ynat", lambda r: r.update(title=3)), 2, "글자열"),
    "unknown topic": ("ynat", item("ynat", lambda r: r.update(label="날씨")), 2, "IT과학"),
    "lone surrogate": ("ynat", table("ynat", "다른 제목", "\\ud800"), 2, "대리 문자"),
    "gold label": ("nli", item("nli", lambda r: r.update(gold_label="maybe")), 1, "entailment | neutral"),
    "score as text": ("sts", item("sts", lambda r: r["labels"].update(label="3")), 1, "labels.label"),
    "infinite score": ("sts", table("sts", "3.0", "1e999"), 1, "labels.label"),
    "entity offset as text": ("re", item("re", lambda r: r["subject_entity"].update(start_idx="0")), 1, "subject_entity.start_idx"),
    "entity missing": ("re", item("re", lambda r: r.pop("object_entity")), 1, "object_entity"),
    "unknown relation": ("re", item("re", lambda r: r.update(label="per:friend")), 1, "no_relation"),
    "huge offset": ("mrc", question(lambda q: q["answers"][0].update(answer_start=2**40)), 1, "answer_start"),
    "answers not a list": ("mrc", question(lambda q: q.update(answers={})), 1, "paragraphs[0].qas[0].answers"),
    "impossible as text": ("mrc", question(lambda q: q.update(is_impossible="yes")), 1, "is_impossible"),
    "no paragraphs": ("korquad", item("korquad", lambda a: a.pop("paragraphs")), 1, "paragraphs"),
    "state not a list": ("wos", item("wos", lambda d: d["dialogue"][0].update(state="택시")), 1, "dialogue[0].state"),
    "unknown tag": ("ner", table("ner", "B-PS", "B-XX"), 4, "ner_tags"),
    "ner blank lost": ("ner", table("ner", " \tO", "\tO"), 5, "tokens"),
    "ner row of blanks": ("ner", table("ner", " \tO", "  "), 5, "2개"),
    "ner without header": ("ner", "수\tB-PS\n", 1, "문장 머리"),
    "ner without sentences": ("ner", "## 주석 : ##\n", "", "문장이 하나도"),
    "dp column lost": ("dp", table("dp", "\tNP_SBJ", ""), 2, "6개"),
    "dp head not a number": ("dp", table("dp", "\t2\tNP", "\t둘\tNP"), 2, "head"),
    "dp negative head": ("dp", table("dp", "\t2\tNP", "\t-1\tNP"), 2, "head"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_files_end_with_one_line(tmp_path, what):
    name, content, row, words = MALFORMED[what]
    path = put(tmp_path, name, content)
    with pytest.raises(InputError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message and words in message, message
    assert not row or f"{row}행" in message, message
    faults = verify(tmp_path)                       # and verify reports it instead of stopping
    assert faults and faults[0].file == str(path) and (not row or faults[0].row == row)


def test_at_least_forty_malformed_cases():
    assert len(MALFORMED) >= 40


def test_messages_in_english(tmp_path, monkeypatch):
    monkeypatch.setenv("KLUE_COURSE_LANG", "en")
    put(tmp_path, "nsmc", MALFORMED["short row"][1])
    with pytest.raises(InputError, match=r"row 3: .*Expected 3 \(id, document, label\)"):
        load("nsmc", tmp_path)


@pytest.mark.parametrize("name", ["nsmc", "ynat", "ner", "petitions"])
def test_directory_for_a_file_and_unreadable_files(tmp_path, name):
    path = tmp_path / CLEAN[name][0]
    path.mkdir(parents=True)
    with pytest.raises(InputError, match="폴더입니다"):
        load(name, tmp_path)
    path.rmdir()
    (path.parent / "loop").symlink_to(path)
    path.symlink_to(path.parent / "loop")
    with pytest.raises(InputError, match=f"{path.name}.*(읽을 수 없습니다|파일이 없습니다)|자료가 없습니다"):
        load(name, tmp_path)


def test_wrong_places(tmp_path):
    (tmp_path / "file").write_text("x")
    for source, words in ((tmp_path / "none", "폴더가 없습니다"), (tmp_path / "file", "폴더가 아니라 파일"), (tmp_path, "nsmc/ratings_train.txt")):
        with pytest.raises(InputError, match=words):
            load("nsmc", source)
    with pytest.raises(InputError, match="nsmc, ynat"):
        load("imdb", tmp_path)
    with pytest.raises(InputError, match="허브에서 읽지 않습니다"):
        load("nsmc", "hub")


def test_a_missing_split_is_an_error_only_when_asked_for(tmp_path):
    put(tmp_path, "nsmc")
    loaded = load("nsmc", tmp_path)
    assert list(loaded) == ["train"]
    with pytest.raises(InputError, match="test.*train"):
        data.get_split(loaded, "test")


# --- verify: faults inside well-formed files --------------------------------------------------------------------------------------

PLANTED = {  # what -> (dataset, content, row, words)
    "bio": ("ner", table("ner", "B-PS", "I-PS"), 4, "BIO"),
    "ner spelling": ("ner", table("ner", "<수:PS> 가", "<수:PS> 나"), 3, "문장과 다릅니다"),
    "entity offset": ("re", item("re", lambda r: r["subject_entity"].update(start_idx=1)), 1, "subject_entity"),
    "entity beyond": ("re", item("re", lambda r: r["object_entity"].update(start_idx=40, end_idx=41)), 1, "object_entity"),
    "answer offset": ("mrc", question(lambda q: q["answers"][0].update(answer_start=3)), 1, "정답이 없습니다"),
    "answer negative": ("mrc", question(lambda q: q["answers"][0].update(answer_start=-3)), 1, "정답이 없습니다"),
    "impossible": ("mrc", question(lambda q: q.update(is_impossible=True)), 1, "is_impossible"),
    "head beyond": ("dp", table("dp", "\t2\tNP", "\t9\tNP"), 2, "HEAD 9"),
    "cycle": ("dp", table("dp", "\t0\tVP", "\t1\tVP"), 2, "고리"),
    "self": ("dp", table("dp", "\t2\tNP", "\t1\tNP"), 2, "고리"),
    "relation": ("dp", table("dp", "NP_SBJ", "SUBJ"), 2, "SUBJ"),
    "slot": ("wos", item("wos", lambda d: d["dialogue"][0].update(state=["택시-색깔-검정"])), 1, "온톨로지"),
    "role": ("wos", item("wos", lambda d: d["dialogue"][0].update(role="손님")), 1, "역할"),
    "binary": ("sts", item("sts", lambda r: r["labels"].update({"binary-label": 0})), 1, "binary-label"),
    "score range": ("korsts", table("korsts", "4.750", "5.5"), 2, "0과 5"),
    "empty text": ("nsmc", table("nsmc", "좋다", ""), 2, "빈 글"),
    "duplicate": ("nsmc", table("nsmc", "2\t\"그 \"\"영화\"\"\"\t0", "2\t좋다\t0"), 3, "중복: ratings_train.txt 2행과 같은 글 (레이블이 다름)"),
    "same guid": ("ynat", item("ynat", lambda r: r.update(guid="0")), 2, "guid"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_verify_finds(tmp_path, what):
    name, content, row, words = PLANTED[what]
    path = put(tmp_path, name, content)
    assert [(fault.file, fault.row) for fault in verify(tmp_path) if words in fault.problem] == [(str(path), row)]


def test_verify_finds_leaks_and_every_bad_row(tmp_path):
    put(tmp_path, "nsmc", "id\tdocument\tlabel\n1\t좋다\t1\n짧은 줄\n2\t나쁘다\t7\n")
    (tmp_path / "nsmc" / "ratings_test.txt").write_text("id\tdocument\tlabel\n9\t좋다 \t1\n", encoding="utf-8")
    assert [(Path(fault.file).name, fault.row) for fault in verify(tmp_path)] == [("ratings_train.txt", 3), ("ratings_train.txt", 4), ("ratings_test.txt", 2)]
    assert "누출: ratings_train.txt 2행" in verify(tmp_path)[-1].problem
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="아는 자료가 없습니다"):
        verify(tmp_path / "empty")


# --- hub and stream ---------------------------------------------------------------------------------------------------------------

def test_hub_is_pinned_relabelled_and_says_its_licence(monkeypatch, capsys):
    import datasets

    asked = {}

    def fake(repository, name, **options):
        asked.update(repository=repository, name=name, **options)
        names = datasets.ClassLabel(names=["contradiction", "entailment", "neutral"])    # another order than ours
        rows = {"guid": ["0"], "source": ["a"], "premise": [unicodedata.normalize("NFD", "가")], "hypothesis": ["나"], "label": [0]}
        columns = datasets.Features({key: datasets.Value("string") for key in ("guid", "source", "premise", "hypothesis")} | {"label": names})
        return datasets.DatasetDict({"validation": datasets.Dataset.from_dict(rows, features=columns)})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    row = load("nli", "hub")["validation"][0]
    assert (LABELS["nli"][row["label"]], row["premise"]) == ("contradiction", "가")
    assert asked == {"repository": "klue/klue", "name": "nli", "revision": "349481ec73fff722f88e0453ca05c77a447d967c"}
    assert "CC BY-SA 4.0" in capsys.readouterr().err


def test_hub_unanswerable_answers_become_plausible():
    answers = {"text": ["가"], "answer_start": [0]}
    record = {"title": "", "context": "가나", "news_category": "", "source": "", "guid": "0", "question_type": 3, "question": "?", "answers": answers}
    assert data.hub_record("mrc", {**record, "is_impossible": True})["answers"]["text"] == []
    assert data.hub_record("mrc", {**record, "is_impossible": True})["plausible_answers"] == answers
    assert data.hub_record("mrc", {**record, "is_impossible": False})["answers"] == answers


def test_stream_equals_load(tmp_path):
    path = put(tmp_path, "petitions")
    groups = list(data.stream(path))
    rows = records(tmp_path, "petitions")
    assert [text for group in groups for text in group] == [row["text"] for row in rows]
    assert [row["document"] for row in rows] == [0, 0, 1] and len(groups) == 2
    assert list(data.stream("petitions", tmp_path)) == groups


def test_document_numbers_go_on_across_files(tmp_path):
    put(tmp_path, "petitions")
    (tmp_path / "corpus" / "a.txt").write_text("하나\n\n둘\n", encoding="utf-8")
    rows = records(tmp_path, "corpus")
    assert [(row["file"], row["document"]) for row in rows] == [("a.txt", 0), ("a.txt", 1), ("petitions.txt", 2), ("petitions.txt", 2), ("petitions.txt", 3)]


def test_the_known_checksum_is_that_of_the_official_file(data_dir):
    place = "korquad/KorQuAD_v1.0_dev.json"
    assert data.file_sha256(data_dir / place) == data.remote_files("korquad")[place][1]


def test_sources_are_pinned():
    for row in data.sources():
        assert row["licence"] and row["citation"] and (not row["files"] or len(row["commit"]) == 40)
