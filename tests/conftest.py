"""Shared by the tests: where things are, and one run of all notebooks that several tests look at."""
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import pytest

from klue_course import workspace

ROOT = Path(__file__).parent.parent
GUARD = Path(__file__).parent / "guard"


def environment(**more: str) -> dict[str, str]:
    "The environment of a plain user in profile mini."
    own = {key: value for key, value in os.environ.items() if not key.startswith(("KLUE_COURSE_", "IN_TEST"))}
    return own | {"PYTHONDONTWRITEBYTECODE": "1"} | more


def command(*arguments, cwd=None, timeout=120, **env) -> subprocess.CompletedProcess:
    "Run `klue-course` as a user would."
    words = [sys.executable, "-m", "klue_course", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, timeout=timeout, env=environment(**env))


def real_data() -> Path | None:
    "The directory with real data, where there is one."
    places = [os.environ.get("KLUE_COURSE_DATA"), ROOT.parent / "shared" / "data"]
    return next((Path(place) for place in places if place and Path(place).is_dir()), None)


def tiny_bert(folder: Path) -> Path:
    "A random BERT of a few kilobytes with a WordPiece tokenizer, in a folder that transformers loads."
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

    from klue_course import data
    from klue_course.tokenization import train_wordpiece

    trained = train_wordpiece(data.load("nsmc", "mini")["train"]["document"][:200], 1_000)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "mask", "pad", "unk")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, model_max_length=64, **names)
    set_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    if real_data() is None:
        pytest.skip("no directory of real data (KLUE_COURSE_DATA)")
    return real_data()


def nbdev_test(notebook, out: Path) -> dict:
    "Let nbdev_test run a notebook in a process of its own, every connection to another machine refused and written down."
    env = environment(PYTHONPATH=str(GUARD), KLUE_COURSE_CONNECTIONS=str(out / "connections.txt"), KLUE_COURSE_OUTPUTS=str(out), OMP_NUM_THREADS="1")
    words, began = [Path(sys.executable).with_name("nbdev_test"), "--path", notebook.path, "--n_workers", "0"], time.monotonic()
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400, env=env)
        said = done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        done, said = None, f"{late}"
    passed = done is not None and done.returncode == 0 and "Success." in said and "No files were eligible" not in said
    return {"id": notebook.id, "seconds": time.monotonic() - began, "error": None if passed else said[-5000:]}


@pytest.fixture(scope="session")
def mini_run(tmp_path_factory) -> Path:
    "All notebooks under nbdev_test in profile mini, two at a time: connections.txt, and each notebook with its outputs, by file name."
    out = tmp_path_factory.mktemp("mini_run")
    notebooks = sorted((notebook for notebook in workspace.syllabus() if notebook.ready), key=lambda notebook: -(notebook.seconds or 0))
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(nbdev_test, notebooks, repeat(out)))
    (out / "report.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return out


@pytest.fixture(scope="session")
def report(mini_run) -> list[dict]:
    return json.loads((mini_run / "report.json").read_text(encoding="utf-8"))
