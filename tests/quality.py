"""Proof of the bundled data's quality. `python -m tests.quality [SET…] [--json]`; `--sheet SET` prints rows without labels,
for a second annotator; `--cards` writes the agreement into the data cards."""
import hashlib
import json
import random
import re
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import numpy as np

from klue_course.data import LABELS, find_all, label_names, load, verify
from klue_course.runtime import assets_dir, write_atomic
from klue_course.tokenization import mecab

BUNDLED = assets_dir() / "data"
SECOND = Path(__file__).parent / "data" / "second"
SETS = ["corpus", "nsmc", "chatbot", "ynat", "ner", "mrc", "nli", "sts", "parakqc", "re", "dp", "wos", "intent"]
CLASSES = {"nsmc": ("document", "label"), "ynat": ("title", "label"), "chatbot": ("Q", "label"), "intent": ("text", "label")}
SIMILAR, FRAME, REPEATS = 0.6, 8, 2


@cache
def rows(name: str) -> list[dict]:
    "All records of a bundled set; the corpus by document."
    splits = load(name, BUNDLED)
    records = [record | {"split": split} for split in splits for record in splits[split].to_list()]
    if name != "corpus":
        return records
    documents = defaultdict(list)
    for record in records:
        documents[record["document"]].append(record["text"])
    return [{"text": "\n".join(lines), "file": number} for number, lines in documents.items()]


def texts(name: str) -> dict[str, list[tuple[str, str]]]:
    "What is compared: for each field the (group, text) pairs; rows of one group may resemble each other."
    fields = {"corpus": ["text"], "nsmc": ["document"], "chatbot": ["Q", "A"], "ynat": ["title"], "ner": ["plain"], "mrc": ["context", "question"],
              "nli": ["premise", "hypothesis"], "sts": ["sentence1", "sentence2"], "parakqc": ["sentence"], "re": ["sentence"], "dp": ["sentence"],
              "wos": ["all"], "intent": ["text"]}[name]
    pairs = defaultdict(dict)
    for number, row in enumerate(rows(name)):
        row = row | {"plain": "".join(row.get("tokens", [])), "all": "\n".join(turn["text"] for turn in row.get("dialogue", []))}
        group = {"mrc": row.get("context"), "nli": row.get("premise"), "re": row.get("sentence"), "parakqc": str(number // 10)}.get(name, str(number))
        for field in fields:
            pairs["sentence" if name == "sts" else field][(group, row[field])] = None
    return {field: list(found) for field, found in pairs.items()}


# ---------------------------------------------------------------- every row its own


def similar_pairs(pairs: list[tuple[str, str]], least: float = SIMILAR) -> list[tuple[float, str, str]]:
    "Texts of different groups whose character 4-grams have a Jaccard index of `least` or more."
    from sklearn.feature_extraction.text import CountVectorizer

    matrix = CountVectorizer(analyzer="char", ngram_range=(4, 4), binary=True, lowercase=False).fit_transform([text for _, text in pairs])
    shared = (matrix @ matrix.T).tocoo()
    size = np.asarray(matrix.sum(1)).ravel()
    index = shared.data / (size[shared.row] + size[shared.col] - shared.data)
    found = [(round(float(value), 2), pairs[i][1], pairs[j][1]) for i, j, value in zip(shared.row, shared.col, index)
             if i < j and value >= least and pairs[i][0] != pairs[j][0]]
    return sorted(found, reverse=True)


def frame(sentence: str) -> tuple[str, ...]:
    "The morphemes of a sentence with nouns, numbers and foreign words replaced by their tags."
    return tuple(tag if re.match(r"NN|NR|SN|SL", tag) else f"{morph}/{tag}" for morph, tag in mecab().pos(sentence))


def repeated_frames(sentences: list[str], length: int = FRAME, often: int = REPEATS) -> list[tuple[int, str]]:
    "Frames of at least `length` morphemes that more than `often` sentences share, with how many and an example."
    found = defaultdict(list)
    for sentence in dict.fromkeys(sentences):
        if len(key := frame(sentence)) >= length:
            found[key].append(sentence)
    return sorted(((len(same), same[0]) for same in found.values() if len(same) > often), reverse=True)


def sentences(name: str) -> list[str]:
    "The sentences of all texts of a set."
    return [sentence for pairs in texts(name).values() for _, text in pairs for sentence in re.split(r"(?<=[.!?…])\s+|\n", text)]


# ---------------------------------------------------------------- not too easy, not noise


def tfidf_accuracy(inputs: list[str], labels: list[int], groups: list[str] | None = None) -> float:
    "Five-fold accuracy of TF-IDF (character 1- to 5-grams) and a linear SVM, in percent."
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    model = make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True), LinearSVC(random_state=0))
    folds = GroupKFold(5) if groups else StratifiedKFold(5, shuffle=True, random_state=0)
    return 100 * float(cross_val_score(model, inputs, labels, groups=groups, cv=folds).mean())


def longest_noun(text: str) -> str:
    "The longest run of nouns without a blank between them."
    best, run, place = "", "", 0
    for morph, tag in mecab().pos(text):
        at = text.find(morph, place)
        run = (run if at == place else "") + morph if tag.startswith("NN") else ""
        place = at + len(morph) if at >= 0 else place
        best = max(best, run, key=len)
    return best


def signal(name: str) -> dict[str, float]:
    "How much a shallow method gets right, in percent, where the issue sets a bound."
    if name in CLASSES:
        field, target = CLASSES[name]
        labels = [row[target] for row in rows(name)]
        chance = 100 * max(Counter(labels).values()) / len(labels)
        return {"tfidf": tfidf_accuracy([row[field] for row in rows(name)], labels), "chance": chance}
    if name == "nli":
        table = rows(name)
        return {"hypothesis_only": tfidf_accuracy([row["hypothesis"] for row in table], [row["label"] for row in table], [row["premise"] for row in table])}
    if name == "mrc":
        noun = {context: longest_noun(context) for context in {row["context"] for row in rows(name)}}
        right = [noun[row["context"]] in row["answers"]["text"] for row in rows(name) if row["answers"]["text"]]
        return {"longest_noun": 100 * float(np.mean(right))}
    return {}


def in_bounds(found: dict[str, float]) -> bool:
    "Whether `signal` lies where it should."
    if "tfidf" in found and not found["chance"] + 15 <= found["tfidf"] <= 95:
        return False
    return found.get("hypothesis_only", 0) <= 45 and found.get("longest_noun", 0) < 15


# ---------------------------------------------------------------- a second annotator


def key(name: str, row: dict) -> str:
    "What names a row in the files of second labels: its id, or its text where the format has none."
    if name == "parakqc":
        return row["sentence"]
    return {"ner": lambda: "".join(row["tokens"]), "dp": lambda: row["sentence"], "nsmc": lambda: row["id"],
            "chatbot": lambda: row["Q"], "intent": lambda: row["text"]}.get(name, lambda: row["guid"])()


def first_label(name: str, row: dict):
    "The label that a second annotator must find, in plain form."
    return {"ner": lambda: row["sentence"], "sts": lambda: row["labels"]["label"],
            "dp": lambda: list(map(list, zip(row["head"], row["deprel"]))), "mrc": lambda: row["answers"]["text"],
            "wos": lambda: [sorted(turn["state"]) for turn in row["dialogue"] if turn["role"] == "user"],
            "parakqc": lambda: " / ".join((LABELS["topic"][row["topic"]], LABELS["act"][row["act"]]))}.get(name, lambda: label_names(name, row)[0])()


def question(name: str, row: dict) -> dict:
    "What the second annotator sees of a row."
    if name == "wos":
        return {"domains": row["domains"], "dialogue": [{"role": turn["role"], "text": turn["text"]} for turn in row["dialogue"]]}
    if name == "re":
        return {field: row[field] for field in ("sentence", "subject_entity", "object_entity")}
    shown = {"nsmc": ["document"], "chatbot": ["Q", "A"], "ynat": ["title"], "mrc": ["context", "question"], "nli": ["premise", "hypothesis"],
             "sts": ["sentence1", "sentence2"], "dp": ["word_form", "pos"], "parakqc": ["sentence"], "intent": ["text"]}
    return {field: row[field] for field in shown.get(name, [])}


def digest(name: str, row: dict) -> str:
    "A checksum of what the annotator saw, so that a row changed afterwards is noticed."
    return hashlib.sha256(json.dumps(question(name, row) or key(name, row), ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:12]


def sheet(name: str, count: int = 100) -> list[dict]:
    "Rows drawn at random (seed 0), without their labels."
    chosen = random.Random(0).sample(rows(name), min(count, len(rows(name))))
    return [{"id": key(name, row), **question(name, row)} for row in chosen]


def second_labels(name: str) -> list[dict]:
    "Rows of the second labelling: id, digest, first, second, final (the label after both were compared; null: the row was dropped)."
    path = SECOND / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def spans(marked: str) -> tuple[int, set[tuple[int, int, str]]]:
    "Length of a marked sentence without its marks, and the (start, end, type) of its entities."
    found, plain, place = set(), 0, 0
    for match in re.finditer(r"<([^<>]*):(DT|LC|OG|PS|QT|TI)>", marked):
        plain += match.start() - place
        found.add((plain, plain + len(match[1]), match[2]))
        plain, place = plain + len(match[1]), match.end()
    return plain + len(marked) - place, found


def f1(first: Counter, second: Counter) -> float:
    "Twice the shared items over all items; 1 when there are none."
    return 2 * (first & second).total() / (first.total() + second.total()) if first or second else 1.0


def agreement(name: str, table: list[dict]) -> dict[str, float]:
    "How well the two labellings agree, by the measure that fits the labels."
    from scipy.stats import pearsonr
    from sklearn.metrics import cohen_kappa_score

    first, second = [row["first"] for row in table], [row["second"] for row in table]
    if name == "sts":
        return {"pearson": float(pearsonr(first, second)[0])}
    if name == "ner":
        entities = [Counter((i, *span) for i, text in enumerate(side) for span in spans(text)[1]) for side in (first, second)]
        return {"entity_f1": f1(*entities)}
    if name == "dp":
        return {"las": float(np.mean([arc == other for one, two in zip(first, second) for arc, other in zip(one, two, strict=True)]))}
    if name == "mrc":
        best = [max(f1(Counter(one), Counter(two)) for one in answers or [""] for two in others or [""]) for answers, others in zip(first, second)]
        return {"character_f1": float(np.mean(best))}
    if name == "wos":
        return {"joint_goal": float(np.mean([set(turn) == set(other) for one, two in zip(first, second) for turn, other in zip(one, two, strict=True)]))}
    return {"kappa": float(cohen_kappa_score(first, second))}


LEAST = {"kappa": 0.8, "pearson": 0.85, "entity_f1": 0.85, "las": 0.9, "character_f1": 0.85, "joint_goal": 0.8}


NAMES = {"kappa": "코헨의 카파", "pearson": "피어슨 상관", "entity_f1": "개체 F1", "las": "LAS", "character_f1": "글자 F1", "joint_goal": "상태가 꼭 같은 차례의 비율"}


def card_table(name: str) -> str:
    "What a set's card says about agreement."
    table = second_labels(name)
    (measure, value), = agreement(name, table).items()
    changed = sum(row["final"] != row["first"] for row in table)
    return f"""아래 표는 명령 `python -m tests.quality {name}`이 계산합니다. 씨앗을 정해 뽑은 행에 첫 레이블을 보지 않고 위의 규칙만으로 레이블을 다시 달았습니다(`tests/data/second/{name}.jsonl`).

| 두 번 레이블한 행 | {NAMES[measure]} | 서로 다른 행 | 첫 레이블을 고치거나 버린 행 |
| --- | --- | --- | --- |
| {len(table)} | {value:.3f} | {sum(row["first"] != row["second"] for row in table)} | {changed} |

두 번째 레이블도 같은 종류의 언어모델이 단 것입니다. 그래서 사람 둘 사이의 일치도보다 높게 나오며, 규칙이 분명한지를 보일 뿐 사람이 보기에도 옳은지는 말해 주지 않습니다."""


def card_of(name: str) -> Path:
    "The data card beside a set's files."
    return next(iter(find_all(BUNDLED)[name].values()))[0].parent / "CARD.md"


def with_agreement(name: str) -> str:
    "The card with its section on agreement made anew."
    text = card_of(name).read_text(encoding="utf-8")
    return re.sub(r"(?<=## 일치도\n).*?(?=\n\n## )", lambda _: card_table(name), text, flags=re.S)


# ---------------------------------------------------------------- the report


def examine(name: str) -> dict:
    "Everything that is measured of a set."
    faults = [str(fault) for fault in verify(BUNDLED) if fault.file in {str(path) for paths in find_all(BUNDLED)[name].values() for path in paths}]
    pairs = [pair for field in texts(name).values() for pair in similar_pairs(field)]
    found = {"set": name, "rows": dict(Counter(row.get("split", "train") for row in rows(name))), "faults": faults, "similar": pairs,
             "frames": repeated_frames(sentences(name)), "signal": {what: round(value, 1) for what, value in signal(name).items()}}
    table = second_labels(name)
    return found | ({"labelled_twice": len(table), "agreement": {what: round(value, 3) for what, value in agreement(name, table).items()}} if table else {})


def main(arguments: list[str]) -> None:
    if "--sheet" in arguments:
        print("\n".join(json.dumps(row, ensure_ascii=False) for name in arguments[arguments.index("--sheet") + 1:] for row in sheet(name)))
        return
    if "--cards" in arguments:
        for name in filter(second_labels, SETS):
            write_atomic(card_of(name), with_agreement(name))
        return
    there = find_all(BUNDLED)
    for name in [name for name in arguments if not name.startswith("--")] or [name for name in SETS if name in there]:
        found = examine(name)
        if "--json" in arguments:
            print(json.dumps(found, ensure_ascii=False))
            continue
        print(f"{name}: {found['rows']}  faults {len(found['faults'])}  similar {len(found['similar'])}  frames {len(found['frames'])}"
              f"  {found['signal'] or ''}  {found.get('agreement', '')} {found.get('labelled_twice', '')}", flush=True)
        for line in [*found["faults"], *found["similar"], *found["frames"]][:20]:
            print("   ", line)


if __name__ == "__main__":
    main(sys.argv[1:])
