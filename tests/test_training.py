"""Fine-tuning as a user meets it: end to end, killed and resumed, determined by its seed, and one clear line for every wrong input."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from klue_course import data, training
from klue_course.runtime import InputError
from tests.conftest import command, environment, tiny_bert
from tests.test_cli import NSMC, one_clear_line

STEPS = ["--steps", "6", "--batch-size", "8", "--limit", "60", "--max-length", "24"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def trained(encoder, tmp_path_factory) -> Path:
    "What the command line leaves."
    out = tmp_path_factory.mktemp("trained") / "out"
    done = command("train", "nsmc", "--data", "mini", "--model", encoder, "--out", out, *STEPS)
    assert done.returncode == 0 and done.stdout == "" and "accuracy" in done.stderr, done.stderr
    return out


def weights(out: Path) -> bytes:
    return (out / "model/model.safetensors").read_bytes()


# ---------------------------------------------------------------- end to end


def test_train_leaves_a_model_and_its_metrics(trained, encoder):
    result = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in trained.iterdir()) == ["metrics.json", "model"]
    assert (result["task"], result["split"], result["n"], result["seed"], result["model"]) == ("nsmc", "test", 60, 42, str(encoder))
    assert 0 <= result["metrics"]["accuracy"] <= 100 and result["samples_per_second"] > 0 and result["train_seconds"] > 0
    assert list(result) == ["task", "split", "n", "metrics", "train_seconds", "samples_per_second", "model", "seed"]


def test_plain_transformers_loads_the_model(trained):
    from transformers import pipeline

    rows = [{"document": text} for text in data.load("nsmc", "mini")["test"]["document"][:20]]
    ours = training.predict("nsmc", trained, rows)
    theirs = pipeline("text-classification", model=str(trained / "model"))([row["document"] for row in rows], truncation=True)
    assert [row["prediction"] for row in ours] == [answer["label"] for answer in theirs]
    assert np.allclose([row["score"] for row in ours], [answer["score"] for answer in theirs], atol=0.02)  # ours may run in bf16


def test_evaluate_says_what_train_said(trained):
    done = command("evaluate", "nsmc", "--model", trained / "model", "--data", "mini", "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert (result["split"], result["n"]) == ("test", 200)
    assert result["train_seconds"] == json.loads((trained / "metrics.json").read_text(encoding="utf-8"))["train_seconds"]


def test_predict_keeps_order_and_fields(trained, tmp_path):
    texts = ["가" * n for n in (60, 1, 30, 2)]
    lines = [json.dumps({"id": n, "document": text}, ensure_ascii=False) for n, text in enumerate(texts)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = command("predict", "nsmc", "--model", trained, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert done.returncode == 0 and done.stdout == done.stderr == ""
    assert [(row["id"], row["document"]) for row in rows] == list(enumerate(texts))
    assert all(row["prediction"] in data.LABELS["nsmc"] and 0.5 <= row["score"] <= 1 for row in rows)
    alone = training.predict("nsmc", trained, [{"document": texts[1]}])[0]
    assert abs(alone["score"] - rows[1]["score"]) < 0.01, "what a text is padded with changes nothing"
    streamed = subprocess.run([sys.executable, "-m", "klue_course", "predict", "nsmc", "--model", str(trained)], input="\n".join(lines),
                              capture_output=True, text=True, timeout=60, env=environment())
    assert streamed.stdout == (tmp_path / "out.jsonl").read_text(encoding="utf-8")


# ---------------------------------------------------------------- the same again


def finetune(encoder: Path, out: Path, **options) -> Path:
    training.finetune("ynat", "mini", encoder, out, **{"steps": 30, "batch_size": 8, "save_every": 4, "limit": 100, **options})
    return out


def test_the_seed_decides_the_weights(encoder, tmp_path):
    one, same, other = (weights(finetune(encoder, tmp_path / name, steps=5, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert one == same != other


SLOW = """
import sys, time
from klue_course import training
training.finetune("ynat", "mini", sys.argv[1], sys.argv[2], resume="--resume" in sys.argv, steps=30, batch_size=8, save_every=4, limit=100,
                  report=lambda line: time.sleep(0.3) if "--slow" in sys.argv else None)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_killed_and_resumed_gives_the_same_weights(encoder, tmp_path):
    out, python = tmp_path / "killed", [sys.executable, "-c", SLOW, str(encoder), str(tmp_path / "killed")]
    process = subprocess.Popen([*python, "--slow"], env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("checkpoints/checkpoint-1[2-9]")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL and not (out / "model").exists()
    one_clear_line(command("train", "ynat", "--data", "mini", "--model", encoder, "--out", out), "--resume")
    with pytest.raises(InputError, match="batch_size"):
        finetune(encoder, out, resume=True, batch_size=4)
    (out / "checkpoints/checkpoint-99").mkdir()  # killed while it was being written
    subprocess.run([*python, "--resume"], env=environment(), check=True, timeout=60)
    assert weights(out) == weights(finetune(encoder, tmp_path / "whole"))
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "model"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupted_training_says_how_to_go_on(encoder, tmp_path):
    words = ["train", "nsmc", "--data", "mini", "--model", str(encoder), "--out", str(tmp_path / "out"), "--steps", "2000", "--batch-size", "8"]
    process = subprocess.Popen([sys.executable, "-m", "klue_course", *words], env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out/checkpoints/settings.json").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "--resume" in error.splitlines()[-1] and "Traceback" not in error, error
    assert not (tmp_path / "out/model").exists()


def test_resuming_a_finished_training_changes_nothing(trained, encoder):
    before = weights(trained)
    assert training.finetune("nsmc", "mini", encoder, trained, resume=True)["task"] == "nsmc"
    assert weights(trained) == before


# ---------------------------------------------------------------- what is trained on


def test_every_row_once_an_epoch_and_alike_in_length():
    lengths = np.random.default_rng(0).integers(3, 60, 1000)
    order = training.training_order(lengths, 10, 200, seed=3)
    assert sorted(order[:1000]) == sorted(order[1000:]) == list(range(1000))
    padded = lengths[order].reshape(200, 10)
    assert (padded.max(1) * 10).sum() < 1.1 * lengths[order].sum()
    assert abs(np.corrcoef(np.arange(200), padded.mean(1))[0, 1]) < 0.3, "batches come in random order"


def test_rows_of_one_text_stay_on_one_side():
    from datasets import Dataset

    rows = Dataset.from_dict({"document": [f"글 {n // 3}" for n in range(300)], "label": [0, 1, 1] * 100})
    train, held = training.hold_out(rows, ["document"], seed=0)
    assert len(held) == 60 and len(train) == 240 and not set(train["document"]) & set(held["document"])


def test_a_set_without_train_file_is_divided(encoder, tmp_path):
    (tmp_path / "자료").mkdir()
    (tmp_path / "자료/ratings_test.txt").write_text("id\tdocument\tlabel\n" + "".join(f"{n}\t글 {n}\t{n % 2}\n" for n in range(50)), encoding="utf-8")
    done = command("train", "nsmc", "--data", tmp_path / "자료", "--model", encoder, "--out", tmp_path / "out", "--steps", "2", "--batch-size", "4")
    result = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert done.returncode == 0 and "20%" in done.stderr and "test" in result["split"] and "20%" in result["split"] and result["n"] == 10


# ---------------------------------------------------------------- wrong input


def broken(encoder: Path, folder: Path, name: str) -> Path:
    "A copy of the encoder with one file spoilt."
    shutil.copytree(encoder, folder)
    (folder / name).write_text("{", encoding="utf-8")
    return folder


@pytest.mark.parametrize("change, words", [
    ({"TASK": "nothing"}, ["nothing", "nsmc"]),
    ({"TASK": "mrc"}, ["mrc", "강의"]),
    ({"--data": "없는 폴더"}, ["없는 폴더"]),
    ({"--data": "잘린 자료"}, ["ratings_train.txt", "3"]),
    ({"--model": "없는-모델"}, ["없는-모델"]),
    ({"--model": "깨진 모델"}, ["깨진 모델"]),
    ({"--out": "내 글"}, ["내 글"]),
    ({"--out": "남의 폴더"}, ["남의 폴더", "일기.txt"]),
    ({"--steps": "0"}, ["steps"]),
    ({"--lr": "nan"}, ["learning_rate"]),
    ({"--max-length": "4000"}, ["max_length", "4000"]),
    ({"--batch-size": "둘"}, ["--batch-size"]),
    ({"--limit": "-1"}, ["limit"]),
    ({"--nonsense": "1"}, ["--nonsense"]),
])
def test_wrong_training_ends_in_one_line(change, words, encoder, tmp_path):
    (tmp_path / "내 글").write_text("글", encoding="utf-8")
    (tmp_path / "남의 폴더").mkdir()
    (tmp_path / "남의 폴더/일기.txt").write_text("글", encoding="utf-8")
    (tmp_path / "잘린 자료").mkdir()
    (tmp_path / "잘린 자료/ratings_train.txt").write_text(NSMC.replace("\t0\n", "\n"), encoding="utf-8")
    broken(encoder, tmp_path / "깨진 모델", "config.json")
    before = sorted(path for path in tmp_path.rglob("*"))
    options = {"--data": "mini", "--model": str(encoder), "--out": "새 폴더", **change}
    task = options.pop("TASK", "nsmc")
    done = command("train", task, *(word for option in options.items() for word in option), cwd=tmp_path)
    one_clear_line(done, *words)
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("line, words", [
    ("{", ["JSON"]),
    ("[1]", ["줄"]),
    ('{"text": "가"}', ["document"]),
    ('{"document": 3}', ["document", "3"]),
    ('{"document": "가", "x": NaN}', ["NaN"]),
    ('{"document": "\\ud800"}', ["document"]),
])
def test_a_bad_line_is_named(line, words):
    with pytest.raises(InputError) as error:
        training.read_rows(training.TASKS["nsmc"], f'{{"document": "좋다"}}\n\n{line}\n'.encode(), "글.jsonl")
    assert all(word in str(error.value) for word in ["글.jsonl, 3행", *words])


def test_wrong_prediction_writes_nothing(trained, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"document": "좋다"}\n{"문서": "가"}\n', encoding="utf-8")
    done = command("predict", "nsmc", "--model", trained, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    one_clear_line(done, "in.jsonl", "2", "document")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_model_of_another_task_is_refused(trained):
    one_clear_line(command("evaluate", "ynat", "--model", trained, "--data", "mini"), "ynat", "positive")
    one_clear_line(command("evaluate", "nsmc", "--model", trained, "--data", "mini", "--split", "validation"), "validation", "test")


def test_missing_options_in_english(encoder):
    done = command("train", "mrc", "--data", "mini", "--model", encoder, "--out", "x", "--lang", "en")
    one_clear_line(done, "comes with its lecture")
    assert "learning rate" in command("train", "--help", "--lang", "en").stdout
    assert os.environ.get("KLUE_COURSE_LANG") is None
