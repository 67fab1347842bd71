"""Rows as people have them: the same data in every kind of file make the same run."""

import csv
import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

import anypolicy as ap
from anypolicy.errors import InputError
from anypolicy.tasks.language.load import load_task

ROWS = [{"prompt": f"what is {i}?", "answer": f"0{i}", "kind": 'é, "quoted"\nline'} for i in range(12)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


def written(folder, ending, rows=ROWS):
    path = folder / f"rows{ending}"
    if ending == ".jsonl.gz":
        path.write_bytes(gzip.compress(TEXT.encode()))
    elif ending == ".json":
        path.write_text(json.dumps(rows))
    elif ending == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif ending == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(TEXT)
    return path


@pytest.mark.parametrize("ending", [".jsonl.gz", ".json", ".csv", ".parquet"])
def test_every_kind_holds_the_same_prompts(ending, tmp_path):
    plain, other = (load_task(str(written(tmp_path, e))) for e in (".jsonl", ending))
    for side in ("train", "heldout"):
        mine, theirs = ([(p.id, p.messages, p.answer, p.info) for p in getattr(t, side)] for t in (plain, other))
        assert mine == theirs
    renamed = [{"question": r["prompt"], "solution": r["answer"]} for r in ROWS]
    if ending != ".jsonl.gz":
        task = load_task(f"{written(tmp_path, ending, renamed)}:prompt=question,answer=solution")
        assert sorted(p.answer for p in task.train + task.heldout) == sorted(r["answer"] for r in ROWS)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".json", ".jsonl.gz"])
def test_a_run_refuses_to_go_on_with_other_rows(ending, tmp_path):
    path = written(tmp_path, ending)
    small = {"policy": "transformer:layers=1,width=32,heads=2", "steps": 1, "prompts": 2, "max_tokens": 4}
    ap.train("grpo", task=str(path), out=tmp_path / "run", quiet=True, trackers=(), **small)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(InputError, match="put it back as it was"):
        ap.resume(tmp_path / "run", steps=2, quiet=True)


def test_preference_pairs_come_from_every_kind(tmp_path):
    pairs = [{"prompt": f"say {i}", "chosen": "yes", "rejected": "no"} for i in range(12)]
    known = {e: load_task(str(written(tmp_path, e, pairs))) for e in (".csv", ".parquet", ".json")}
    said = [[(p.messages, p.info["responses"], p.info["scores"]) for p in t.train] for t in known.values()]
    assert said[0] == said[1] == said[2] and len(said[0]) > 6


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [("a.csv", b"prompt,answer\nwhat,1\nwho\n", "line 3.*not as many values as the header"),
     ("a.csv", b"prompt,answer\nwhat,1,2\n", "line 2.*not as many values"),
     ("a.csv", b'prompt,answer\n"what,1\n', "no row of comma-separated values"),
     ("a.csv", b"prompt,answer\n\xff\xff,1\n", "not UTF-8"), ("a.csv", b"question,answer\nwhat,1\n", "no 'prompt'"),
     ("a.json", b'{"prompt": 1}', "a list of objects"), ("a.json", b"[1, 2]", "entry 0.*must be an object"),
     ("a.json", b"[1, 2", "not JSON"), ("a.jsonl.gz", b"no archive", "cannot be unpacked"),
     ("a.jsonl.gz", gzip.compress(TEXT.encode())[:-9], "cannot be unpacked"),
     ("a.parquet", b"PAR1 no table", "no whole Parquet file"), ("a.parquet", b"", "empty")],
)  # fmt: skip
def test_damaged_files_are_one_error(name, data, told, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=told):
        load_task(str(tmp_path / name))
