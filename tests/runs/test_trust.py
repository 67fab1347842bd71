"""Code that a file names runs only where the user said so: every field that can name code is attacked, and every other
is listed as one that cannot."""

import ast
import json
import py_compile
import stat
import sys
import typing
from dataclasses import fields
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from anypolicy import catalogue
from anypolicy.cli.app import main
from anypolicy.errors import InputError
from anypolicy.families import control, diffusion, reward_models
from anypolicy.families import language as training
from anypolicy.families.base import evaluate
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.reward_model import RewardModel
from anypolicy.runs import trust
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.recipes import MAY_CHANGE, recipe_of
from anypolicy.stages.rewards import load_reward
from anypolicy.studies import datasets, inspection, revisions
from anypolicy.studies.record import record
from anypolicy.studies.reproduce import CHECKOUT, reproduce
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import load_environment

SOURCES = Path(trust.__file__).parents[1]
REFUSED = "did not name on this command"

RECIPES = {
    "policy": training.Settings, "controller": control.ControlSettings, "diffusion": diffusion.DiffusionSettings,
    "reward-model": reward_models.RewardSettings,
}  # fmt: skip
"""What a recipe.yaml is read into."""
COMMANDS = (datasets.DatasetSettings, revisions.Settings)
"""Settings that only a command or a program gives."""
NO_CODE = {
    # names of data, looked up in tables or read as JSON, safetensors or arrays
    "pairs", "demos", "reward_model", "trackers",
    # numbers, choices, places to write
    "behaviour", "block_length", "checkpoint_every", "checkpoint_minutes", "denoising_steps", "device", "dtype", "envs", "epochs", "epsilon",
    "eval_episodes", "eval_every", "eval_prompts", "eval_samples", "evaluations", "expert", "group_size", "guidance",
    "heldout", "long_prompts", "lora_rank", "lr", "max_tokens", "micro", "micro_tokens", "minibatches", "mix", "optimiser", "out",
    "products", "prompts", "record", "recompute", "reward_scale", "sampler_steps", "seed", "steps", "temperature", "threads",
    "top_k", "top_p", "transitions",
}  # fmt: skip
KNOBS_NO_CODE = {
    # words that are looked for or written
    "adaptthink.end_of_thinking", "adaptthink.start_of_response", "adaptthink.opening_of_thinking",
    "expo-self-explanation.marker", "expo-self-explanation.conclusion", "mcts-dpo.step_end",
    # policy/ folders of runs: JSON and safetensors
    "dsrl.base", "dsrl-sac.base", "expo-expressive.base", "resfit.base", "lipschitz-certificate.policy",
    # data sets: a name of a table, arrays, episodes
    "context-semi-bandit-ftpl.data", "exp2.data", "horizon-free-rfe.data", "lipschitz-certificate.demos",
    "lipschitz-imitation.demos", "lipschitz-imitation.plant", "realizability.data",
    # an id of Gymnasium's registry; of a problem, which no recipe describes
    "horizon-free-rfe.env",
}  # fmt: skip
NEVER = {("diffusion", "policy"), ("diffusion", "task"), ("policy", "task")}
"""Asked for, and not run with trust either: a pipeline has no classes of its own, and what acts nowhere no environment."""
ATTACKS = [(kind, name) for kind, t in RECIPES.items() for name in trust.FIELDS if name in {f.name for f in fields(t)}]


@pytest.fixture(autouse=True)
def nothing_allowed(tmp_path, monkeypatch):
    """A user who has run nothing yet."""
    monkeypatch.setenv("ANYPOLICY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    before = set(trust.ALLOWED)
    trust.ALLOWED.clear()
    yield
    sys.modules.pop("mine", None)
    trust.ALLOWED.clear()
    trust.inherit(before)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


def evil(mark: Path) -> str:
    """A line that leaves a mark, every time."""
    return f"with open({str(mark)!r}, 'a') as file: file.write('x')\n"


def marks(mark: Path) -> int:
    return len(mark.read_text()) if mark.exists() else 0


def code_file(folder: Path, mark: Path) -> Path:
    path = folder / "mine.py"
    path.write_text(evil(mark) + "def score(prompt, responses): return [0.0] * len(responses)\n")
    return path


def model_folder(folder: Path, mark: Path, **config: object) -> Path:
    """A model with classes of its own, one of which leaves a mark when it is imported."""
    folder.mkdir()
    (folder / "mine.py").write_text(
        f"from transformers import PretrainedConfig\n{evil(mark)}class Mine(PretrainedConfig):\n    model_type = 'mine'\n"
    )
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(own | config))
    (folder / "model.safetensors").touch()
    return folder


def attack(tmp_path: Path, kind: str, name: str, mark: Path) -> tuple[Path, Path]:
    """A run whose recipe names code by one field, and the file that would run."""
    if name in ("policy", "reference"):
        folder = model_folder(tmp_path / f"model-{kind}-{name}", mark)
        path, value = folder / "mine.py", f"masked-diffusion:{folder},own-code=true"
    else:
        path = code_file(tmp_path, mark)
        value = {"method_file": (path,), "imports": (str(path),), "task": "gym/mine:Mine-v0"}.get(name, f"{path}:score")
    if kind == "reward-model":
        pairs = tmp_path / "pairs.jsonl"
        rows = [json.dumps({"prompt": f"{i}", "chosen": "a", "rejected": "b"}) for i in range(20)]
        pairs.write_text("".join(f"{row}\n" for row in rows))
        method, given = "bradley-terry", {"pairs": str(pairs)}
    else:
        method = {"policy": "dpo" if name == "reference" else "grpo", "controller": "sac", "diffusion": "seppo"}[kind]
        task = {"policy": "tabular-lock", "controller": "gym/Pendulum-v1", "diffusion": "ring8:winners=20"}[kind]
        given = {"task": task}
    if name == "reference":
        rows = [json.dumps({"prompt": f"{i}", "chosen": "a", "rejected": "b"}) for i in range(20)]
        (tmp_path / "pairs.jsonl").write_text("".join(f"{row}\n" for row in rows))
        given = {"task": str(tmp_path / "pairs.jsonl"), "policy": "transformer:layers=1,width=8,heads=1"}
    run = tmp_path / "run"
    settings = RECIPES[kind](**{**given, "trackers": (), name: value})
    RunDirectory.create(run, recipe_of(method, {}, settings)).__exit__(None, None, None)
    return run, path


def in_python(kind: str, run: Path) -> list[typing.Callable[..., object]]:
    """What a program may do with a run."""
    return {
        "policy": [lambda: training.resume(run, quiet=True), lambda: evaluate(run)],
        "controller": [
            lambda: control.resume(run, quiet=True), lambda: control.evaluate_run(run),
            lambda: record(run, episodes=1, out="x.safetensors"),
            lambda: inspection.inspect([str(run)], reference=str(run), g_max=1.0, quiet=True),
        ],
        "diffusion": [lambda: diffusion.resume(run, quiet=True), lambda: diffusion.evaluate_run(run)],
        "reward-model": [lambda: reward_models.resume(run, quiet=True), lambda: reward_models.evaluate(run)],
    }[kind]  # fmt: skip


def on_the_command_line(kind: str, run: str) -> list[list[str]]:
    more = [["record", run, "--out", "x.safetensors"], ["inspect", run, "--reference", run, "--g-max", "1"]]
    return [["eval", run], ["resume", run, "--quiet"], *(more if kind == "controller" else [])]


# --- every field -----------------------------------------------------------------------------------------------------
def test_every_setting_is_known_to_name_code_or_not():
    assert not NO_CODE & set(trust.FIELDS)
    assert {name for _, name in ATTACKS} | {"claim"} == set(trust.FIELDS)
    for kind in (*RECIPES.values(), *COMMANDS):
        unknown = {f.name for f in fields(kind)} - NO_CODE - set(trust.FIELDS)
        assert not unknown, (
            f"{kind.__name__}: can these name code? Then trust.FIELDS reads them and ATTACKS attacks them"
        )


def test_every_setting_of_a_method_that_is_text_is_known_to_name_no_code():
    found = set()
    for slug, m in catalogue.methods(None).items():
        if not m.build.__module__.startswith("anypolicy.methods."):
            continue
        hints = typing.get_type_hints(m.build)
        kinds = {k: {hints[k], *typing.get_args(hints[k])} for k in m.knobs}
        found |= {f"{slug}.{k}" for k, types in kinds.items() if types & {str, Path, typing.Any, object}}
    assert found == KNOBS_NO_CODE


def test_what_names_code_may_not_change_between_stop_and_resume():
    assert not set(MAY_CHANGE) & set(trust.FIELDS)


@pytest.mark.parametrize(("kind", "name"), ATTACKS)
def test_a_run_that_names_code_runs_it_only_with_trust(kind, name, tmp_path, monkeypatch, mark, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    run, path = attack(tmp_path, kind, name, mark)
    (run / "report.html").touch()
    for command in on_the_command_line(kind, str(run)):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert REFUSED in told and "--trust" in told and str(path if path.parent == tmp_path else path.parent) in told
    for call in in_python(kind, run):
        with pytest.raises(InputError, match=REFUSED):
            call()
    assert main(["open", str(run)]) == 0
    assert not mark.exists()

    command = [["eval"], ["resume", "--quiet"]][kind == "reward-model"]  # whose evaluation needs no policy
    main([*command, str(run), "--trust"])
    assert REFUSED not in capsys.readouterr().err
    ran = (kind, name) not in NEVER
    assert marks(mark) == (1 if ran else 0)

    trust.ALLOWED.clear()  # another process
    main([*command, str(run)])
    assert REFUSED not in capsys.readouterr().err
    before = marks(mark)

    path.write_text(path.read_text() + "# changed\n")
    assert main([*command, str(run)]) == 2
    assert REFUSED in capsys.readouterr().err
    assert marks(mark) == before


def test_what_the_user_wrote_runs_again_from_a_recipe(tmp_path, mark):
    path = code_file(tmp_path, mark)
    p = training.plan("grpo", training.Settings("tabular-lock", method_file=(path,), reward=f"{path}:score"))
    assert marks(mark) == 1
    trust.ALLOWED.clear()
    again = training.plan_from(p.written())
    training.world_of(again)
    assert marks(mark) == 3
    folder = tmp_path / "home" / "trusted"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()] == [0o600]


# --- the door itself -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("enter", [
    lambda path, folder: catalogue.load_file(path), lambda path, folder: load_reward(f"{path}:score"),
    lambda path, folder: load_policy(f"masked-diffusion:{folder},own-code=true"),
])  # fmt: skip
def test_nothing_goes_through_that_was_not_allowed(enter, tmp_path, mark):
    path, folder = code_file(tmp_path, mark), model_folder(tmp_path / "m", mark)
    with pytest.raises(InputError, match=REFUSED):
        enter(path, folder)
    assert not mark.exists()


def test_a_program_may_say_so(tmp_path, mark):
    catalogue.load_file(code_file(tmp_path, mark), trust=True)
    assert marks(mark) == 1
    with pytest.raises(InputError, match="can be loaded"):
        load_policy(f"masked-diffusion:{model_folder(tmp_path / 'm', mark)},own-code=true", trust=True)
    assert marks(mark) == 2


def test_a_folder_whose_name_says_own_code(tmp_path, monkeypatch, mark):
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "m", mark)
    model_folder(tmp_path / "m,own-code=true", mark, architectures=["MineForMaskedLM"])
    with pytest.raises(InputError, match=REFUSED):
        load_policy("m,own-code=true")
    assert not mark.exists()


def test_bytecode_beside_the_file_is_not_what_runs(tmp_path, mark):
    path = tmp_path / "mine.py"
    path.write_text(evil(mark))
    py_compile.compile(
        str(path), cache_from_source(str(path)), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    path.write_text("HARMLESS = 1\n")
    catalogue.load_file(path, trust=True)
    assert not mark.exists()


def test_the_content_runs_that_was_looked_at(tmp_path, mark):
    path = tmp_path / "mine.py"
    path.write_text("HARMLESS = 1\n")
    trust.allow({"method_file": path})
    path.write_text(evil(mark))
    with pytest.raises(InputError, match=REFUSED):
        catalogue.load_file(path)
    assert not mark.exists()


def test_a_memory_that_others_can_write_is_not_believed(tmp_path, mark):
    path = code_file(tmp_path, mark)
    trust.allow({"method_file": path})
    trust.ALLOWED.clear()
    trust.check({"method_file": path})
    (tmp_path / "home" / "trusted").chmod(0o777)
    with pytest.raises(InputError, match=REFUSED):
        trust.check({"method_file": path})


def test_a_cache_that_cannot_be_written_forgets(tmp_path, mark):
    (tmp_path / "home").touch()
    path = code_file(tmp_path, mark)
    catalogue.load_file(path, trust=True)
    catalogue.load_file(path)
    assert marks(mark) == 2
    trust.ALLOWED.clear()
    with pytest.raises(InputError, match=REFUSED):
        catalogue.load_file(path)


@pytest.mark.parametrize("file", [
    ("config.json", {"auto_map": {"AutoModel": "owner/name--mine.Mine"}}),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["owner/name--mine.Mine", None]}}),
    ("adapter_config.json", {"base_model_name_or_path": "owner/name"}),
    None,
])  # fmt: skip
def test_classes_that_lie_elsewhere_are_asked_for_every_time(file, tmp_path, mark):
    source = "owner/name"
    if file is not None:
        source = str(model_folder(tmp_path / "m", mark))
        (tmp_path / "m" / file[0]).write_text(json.dumps(file[1]))
    recipe = {"policy": f"masked-diffusion:{source},own-code=true"}
    trust.allow(recipe)
    trust.check(recipe)
    trust.ALLOWED.clear()
    with pytest.raises(InputError, match="every time"):
        trust.check(recipe)


@pytest.mark.parametrize("load", [
    lambda f: load_policy(f), lambda f: load_policy(f"masked-diffusion:{f}"), lambda f: load_policy(f"vlm:{f}"),
    lambda f: RewardModel.load(f),
])  # fmt: skip
def test_a_model_that_has_classes_of_its_own_runs_none_and_asks_nobody(load, tmp_path, monkeypatch, mark):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(InputError):
        load(str(model_folder(tmp_path / "m", mark)))
    assert not mark.exists()


# --- claims ----------------------------------------------------------------------------------------------------------
def claim(folder: Path, mark: Path) -> Path:
    folder.mkdir()
    path = folder / "mine.py"
    path.write_text(
        evil(mark) + "from anypolicy.evidence.checks import Check\n"
        "CLAIM, SEEDS, ARMS = 'c', 5, ('a',)\n"
        "def run(arm, seed): return {'end': 1.0 + seed}\n"
        "CHECKS = [Check('n', '> 0', lambda r: r['a']['end'], above=-50.0)]\n"
    )
    return path


def test_claims_of_the_working_directory_run_only_with_trust(tmp_path, monkeypatch, mark, capsys):
    monkeypatch.chdir(tmp_path)
    path = claim(tmp_path / "claims", mark)
    assert main(["reproduce", "mine"]) == 2
    assert REFUSED in capsys.readouterr().err
    with pytest.raises(InputError, match=REFUSED):
        reproduce("mine")
    assert not mark.exists()
    assert main(["reproduce", "mine", "--trust"]) == 0
    trust.ALLOWED.clear()
    assert main(["reproduce", "mine"]) == 0
    before = marks(mark)
    path.write_text(path.read_text() + "# changed\n")
    assert main(["reproduce", "mine"]) == 2
    assert marks(mark) == before
    assert main(["reproduce", "mine", "--claims", "claims"]) == 0


def test_workers_honour_what_their_parent_was_told(tmp_path, monkeypatch, mark):
    (tmp_path / "home").touch()  # nothing can be remembered
    monkeypatch.chdir(tmp_path)
    claim(tmp_path / "claims", mark)
    assert reproduce("mine", workers=2, trust=True).verdict == "confirmed"


def test_the_claims_of_the_checkout_are_our_own(monkeypatch):
    monkeypatch.setattr("anypolicy.studies.reproduce.run_claim", lambda path, *, trust, **_: trust)
    monkeypatch.chdir(CHECKOUT)
    assert reproduce("ngrpo") is True


# --- data and environments -------------------------------------------------------------------------------------------
def test_a_minari_data_set_names_no_code(tmp_path, mark):
    pytest.importorskip("minari")
    spec = {
        "id": "Mine-v0", "entry_point": "subprocess:check_call", "reward_threshold": None, "nondeterministic": False,
        "max_episode_steps": None, "disable_env_checker": True, "kwargs": {"args": ["touch", str(mark)]},
        "additional_wrappers": [], "vector_entry_point": None,
    }  # fmt: skip
    known = {"env_spec": json.dumps(spec), "data_format": "hdf5", "total_episodes": 1, "total_steps": 1,
             "dataset_id": "a/b-v0", "minari_version": "0.5"}  # fmt: skip
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / "metadata.json").write_text(json.dumps(known))
    with pytest.raises(InputError, match="no observation_space and no action_space"):
        load_demonstrations(str(tmp_path / "set"), load_environment("gym/Pendulum-v1"))
    assert not mark.exists()


def test_a_policy_folder_that_names_a_module_imports_none(tmp_path, monkeypatch, mark):
    monkeypatch.chdir(tmp_path)
    code_file(tmp_path, mark)
    run = control.train_controller("dqn", task="gym/CartPole-v1", steps=1, eval_episodes=1, trackers=(), quiet=True,
                                   out=tmp_path / "run")  # fmt: skip
    config = run.path / "policy" / "config.json"
    config.write_text(config.read_text().replace("gym/CartPole-v1", "gym/mine:Mine-v0"))
    with pytest.raises(InputError, match=REFUSED):
        control.load_controller(config.parent)
    (tmp_path / "datasets.json").write_text(json.dumps({"task": "gym/mine:Mine-v0", "g_min": 0, "g_max": 1}))
    with pytest.raises(InputError, match=REFUSED):
        inspection.inspect(["one.safetensors"], quiet=True)
    assert not mark.exists()


@pytest.mark.parametrize("task", ["gym/mine:Mine-v0", "gym/mine:Mine=1", "gym/mine", "mine:main", "mine.py:main"])
def test_a_task_imports_no_module_by_name(task, tmp_path, monkeypatch, mark):
    code_file(tmp_path, mark)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for load in (load_environment, training.load_task, diffusion.load_pictures):
        with pytest.raises(InputError):
            load(task)
    assert not mark.exists()


# --- nobody goes around ----------------------------------------------------------------------------------------------
PLACES = {
    "exec_module": {"runs/trust.py"},
    "spec_from_file_location": {"runs/trust.py"},
    "SourceFileLoader": set(),
    "__import__": set(),
    "run_path": {"sandbox/"},
    "run_module": set(),
    "compile": {"sandbox/"},
    # of names that stand in our own tables
    "import_module": {"runs/trust.py", "__init__.py", "catalogue.py", "runs/trackers.py", "sandbox/scorers.py", "families/base.py",
                      "tasks/control/scripted.py", "tasks/control/environments.py", "tasks/exact/one_sided.py", "tasks/language/load.py"},
    "make": {"tasks/control/environments.py", "tasks/control/given.py", "tasks/control/back_and_forth.py", "tasks/control/reacher_sparse.py",
             "tasks/exact/reward_free.py", "tasks/control/pointmaze_sparse.py", "tasks/control/fetchreach_sparse.py"},
    # commands of our own
    "Popen": {"sandbox/"},
    "run": {"sandbox/", "policies/language/smollm2.py", "policies/language/kernels.py", "evidence/provenance.py"},
    "system": set(),
}  # fmt: skip
"""Name of a call (of a module, where several have one of that name) → where it may stand."""
OWNERS = {"run": ("subprocess",), "make": ("gymnasium",), "system": ("os",), "compile": ("",)}


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCES)))
def test_code_and_commands_run_only_where_they_are_known_to(path):
    where = str(path.relative_to(SOURCES))
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        owner, _, name = ast.unparse(node.func).rpartition(".")
        if name in PLACES and owner in OWNERS.get(name, (owner,)):
            assert where.startswith(tuple(PLACES[name])), f"{where}:{node.lineno}: {name}"
        if name == "settings_from":
            assert (where, ast.unparse(node.args[0])) == ("families/base.py", "self.settings"), f"{where}:{node.lineno}"
            assert {k.arg for k in node.keywords} == {"trust"}
        if name == "from_pretrained" and (owner.startswith("Auto") or owner in ("kind", "tokenizer")):
            [value] = [ast.unparse(k.value) for k in node.keywords if k.arg == "trust_remote_code"]
            assert value == "False" or (value == "own_code" and where == "policies/language/load.py")
        for k in node.keywords:
            own = k.arg == "trust_remote_code" and ast.unparse(k.value) != "False"
            assert not own or where == "policies/language/load.py", f"{where}:{node.lineno}"


def test_a_model_enters_before_its_code_is_loaded():
    tree = ast.parse((SOURCES / "policies" / "language" / "load.py").read_text())
    [f] = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "masked_diffusion"]
    calls = [n for n in ast.walk(f) if isinstance(n, ast.Call)]
    [door] = [n.lineno for n in calls if ast.unparse(n.func) == "enter_model"]
    assert all(door < n.lineno for n in calls if ast.unparse(n.func).endswith("from_pretrained"))
    others = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and n not in calls]
    assert not [n for n in others if ast.unparse(n.func) == "masked_diffusion" and len(n.args) != 4]
