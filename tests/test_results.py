"""What a run gives back: curves, samples, a view for notebooks, copies, a model card on the hub, an ear for callbacks."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from transformers import AutoModelForCausalLM

import anypolicy as ap
from anypolicy.cli.app import main
from anypolicy.errors import InputError

POLICY = "transformer:layers=1,width=32,heads=2"
ROWS = [{"prompt": f"say {i}", "answer": "a"} for i in range(10)]
SMALL = {
    "steps": 4,
    "prompts": 2,
    "group_size": 2,
    "max_tokens": 4,
    "quiet": True,
    "trackers": (),
    "eval_every": 2,
    "minibatches": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    file = folder.parent / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return ap.train("ngrpo", task=str(file), policy=POLICY, out=folder, **SMALL)


def test_a_run_says_where_it_stands_in_one_line(run):
    assert repr(run) == f"Run({str(run.path)!r}: step 4, eval/accuracy {run.rows[-1]['eval/accuracy']:.4g})"
    shown = run._repr_html_()
    assert shown.startswith("<b>run</b>: step 4") and "<svg" in shown and len(shown) < 60_000


def test_values_of_the_ledger_are_drawn_over_the_steps(run):
    trace = run.plot("eval/accuracy", "length/mean").data
    assert [t.name for t in trace] == ["eval/accuracy", "length/mean"]
    assert list(trace[0].x) == [0, 2, 4] and list(trace[1].x) == [0, 1, 2, 3]
    assert list(trace[1].y) == [r["length/mean"] for r in run.rows if "length/mean" in r]
    assert [t.name for t in run.plot().data] == ["eval/accuracy"]
    with pytest.raises(InputError, match="did you mean 'length/mean'"):
        run.plot("length/men")


def test_samples_are_those_of_an_evaluation(run):
    assert run.samples() == run.samples(4) and {"prompt", "response", "correct"} <= run.samples(0)[0].keys()
    with pytest.raises(InputError, match="step: got 3; there are samples of steps 0, 2, 4"):
        run.samples(3)


def test_what_was_learnt_is_copied(run, tmp_path):
    saved = run.save(tmp_path / "model")
    assert sorted(f.name for f in saved.iterdir()) == sorted(f.name for f in (run.path / "policy").iterdir())
    again = ap.train("grpo", task=str(run.path.parent / "rows.jsonl"), policy=str(saved), out=tmp_path / "run", **SMALL)
    assert again.rows[0]["eval/length"] == run.rows[-1]["eval/length"]
    with pytest.raises(InputError, match="something is there"):
        run.save(tmp_path / "model")


def test_every_family_gives_the_same(tmp_path):
    made = ap.train("sac", task="gym/Pendulum-v1:max_steps=20", steps=60, warmup=10, batch=8, hidden=(8,), eval_episodes=1,
                    out=tmp_path / "sac", quiet=True, trackers=())  # fmt: skip
    assert "eval/return" in repr(made) and len(made.samples()) == 1 and made.plot().data[0].name == "eval/return"
    assert (made.save(tmp_path / "copy") / "controller.safetensors").exists()
    pairs = [{"prompt": f"say {i}", "chosen": "yes", "rejected": "no"} for i in range(10)]
    model = ap.train("bradley-terry", pairs=pairs, policy=POLICY, out=tmp_path / "rm", quiet=True, trackers=())
    model.save(tmp_path / "judge")
    scored = ap.train("grpo", task=ROWS, policy=POLICY, reward_model=str(tmp_path / "judge"), out=tmp_path / "grpo",
                      **SMALL)  # fmt: skip
    assert "eval/reward" in repr(scored)
    with pytest.raises(InputError, match="this run keeps none"):
        model.samples()


# --- callbacks -------------------------------------------------------------------------------------------------------
def test_a_callback_sees_every_row_and_ends_a_run(run, tmp_path):
    seen = []

    def listen(row):
        seen.append(row)
        return row["step"] < 2 or "event" not in row

    given = {"task": str(run.path.parent / "rows.jsonl"), "policy": POLICY, "out": tmp_path / "run"}
    ended = ap.train("ngrpo", callback=listen, **given, **SMALL)
    assert seen == ended.rows and ended.rows[-1]["step"] == 2 and ended.rows[-1]["event"] == "eval"
    assert (tmp_path / "run" / "policy").is_dir()
    gone_on = ap.resume(tmp_path / "run", quiet=True)
    assert [r for r in gone_on.rows if "event" not in r] == [r for r in run.rows if "event" not in r]
    with pytest.raises(InputError, match="callback: got 3; give a function"):
        ap.train("ngrpo", callback=3, **given | {"out": tmp_path / "no"}, **SMALL)
    with pytest.raises(ZeroDivisionError):
        ap.train("ngrpo", callback=lambda row: 1 / 0, **given | {"out": tmp_path / "fails"}, **SMALL)


# --- the hub ---------------------------------------------------------------------------------------------------------
class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload asks for; it keeps the files it is given."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        owner = self.path.removeprefix("/api/models/").partition("/preupload")[0].partition("/commit")[0]
        if self.path.endswith("/repos/create"):
            asked = json.loads(body)
            self.server.private = asked.get("private") or asked.get("visibility") == "private"
            self.answer({"url": f"{self.server.at}/{asked.get('organization') or 'me'}/{asked['name']}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                                   for f in files]})  # fmt: skip
        elif "/commit/" in self.path:
            rows = [json.loads(line) for line in body.splitlines()]
            self.server.files = {r["value"]["path"]: base64.b64decode(r["value"]["content"]) for r in rows
                                 if r["key"] == "file"}  # fmt: skip
            self.answer({"commitOid": "0" * 40, "commitUrl": f"{self.server.at}/{owner}/commit/{'0' * 40}"})
        else:
            self.answer({})

    def do_GET(self):
        self.answer({"sha": "0" * 40, "id": "me/mine"})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.at, server.files, server.private = f"http://127.0.0.1:{server.server_port}", {}, None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.at)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", server.at, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    yield server
    server.shutdown()


def test_a_policy_is_published_with_its_card(run, hub, tmp_path):
    run.push("me/mine", private=True)
    assert hub.private and {"README.md", "recipe.yaml", "metrics.jsonl", "model.safetensors"} <= hub.files.keys()
    for name, data in hub.files.items():
        (tmp_path / name).write_bytes(data)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() > 0
    card = hub.files["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "anypolicy" and "ngrpo" in head["tags"]
    assert "# mine" in card and "arXiv 2509.18851" in card and "Confirmed over 10 seeds" in card
    assert f"| eval/accuracy | {run.rows[0]['eval/accuracy']:.4g} | {run.rows[-1]['eval/accuracy']:.4g} |" in card
    assert str(run.path.parent) not in card + hub.files["recipe.yaml"].decode() and "rows.jsonl" in card


def test_what_cannot_be_published_is_refused(run, hub, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="write OWNER/NAME"):
        run.push("mine")
    with pytest.raises(InputError, match="the hub does not take it"):
        run.push("me/ mine")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", "http://127.0.0.1:9", raising=False)
    with pytest.raises(InputError, match=r"the hub does not take it.*network"):
        run.push("me/mine")
    assert main(["push", str(tmp_path), "me/mine"]) == 2


# --- a conversation --------------------------------------------------------------------------------------------------
def test_one_talks_to_what_was_trained(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("say 3\n\n"))
    assert main(["chat", str(run.path), "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip() == run.generate("say 3", max_tokens=4)[0].strip()


def test_a_policy_without_words_is_not_talked_to(tmp_path):
    made = ap.train("grpo", task="tabular-lock", steps=1, out=tmp_path / "run", quiet=True, trackers=())
    with pytest.raises(InputError, match=r"TablePolicy.*no tokenizer"):
        made.generate("hello")


# --- once more -------------------------------------------------------------------------------------------------------
def test_a_run_is_made_once_more_to_the_same_bits(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["rerun", str(run.path), "--out", "again", "--quiet"]) == 0
    assert "the same numbers to the last bit: again" in capsys.readouterr().out
    assert ap.load("again").rows == run.rows
    made = json.loads((tmp_path / "again" / "made-with.json").read_text())
    assert {"anypolicy", "commit", "torch", "transformers", "machine"} <= made.keys()
    (tmp_path / "again" / "made-with.json").write_text(json.dumps(made | {"torch": "2.0"}))
    ledger = tmp_path / "again" / "metrics.jsonl"
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    rows[1]["length/mean"] += 1
    ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ap.rerun("again", out="third", quiet=True)
    assert told.step == 0 and list(told.values) == ["length/mean"]
    assert told.made_with == {"torch": ("2.0", made["torch"])}
    assert "torch: 2.0 then" in str(told) and "differ first" in str(told)


def test_a_default_folder_that_is_taken_gets_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"task": "tabular-lock", "steps": 1, "quiet": True, "trackers": ()}
    names = [ap.train("grpo", **small).path.name for _ in range(3)]
    assert names == ["grpo-tabular-lock-0", "grpo-tabular-lock-0-2", "grpo-tabular-lock-0-3"]
    with pytest.raises(InputError, match="a run is there"):
        ap.train("grpo", out="runs/grpo-tabular-lock-0", **small)
