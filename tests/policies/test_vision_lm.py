"""Vision-language policies of several families: what they score and sample is what the model's own forward pass gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.engines.base import Sampling, ask
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.small_vision import byte_tokenizer, word_tokenizer
from anypolicy.policies.language.vision_lm import VisionLM, placed

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
TEXT = {"vocab_size": 310, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip


def llava():
    return load_policy("vlm:layers=2,width=32,heads=4,image=16", seed=0)


def tokenizer(more):
    t = byte_tokenizer()
    t.add_tokens(more, special_tokens=True)
    return t


class ImageOnly(Qwen2VLProcessor):
    """The family's processor without videos, whose class needs torchvision."""

    def __init__(self, image_processor, t, template):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = (
            t.convert_tokens_to_ids(x) for x in (self.image_token, self.video_token)
        )
        self.image_token_ids, self.video_token_ids, self.audio_token_ids = (
            [self.image_token_id],
            [self.video_token_id],
            [],
        )
        self.image_processor, self.tokenizer, self.chat_template, self.video_processor = (
            image_processor,
            t,
            template,
            None,
        )


def qwen(config, model, **vision):
    names = {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
             "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}  # fmt: skip
    t = tokenizer(list(names.values()))
    size = {"shortest_edge": 256, "longest_edge": 4096}
    images = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=2, size=size)
    processor = ImageOnly(images, t, TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"))
    vision |= {"depth": 2, "num_heads": 4, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    ids = {k: t.convert_tokens_to_ids(v) for k, v in names.items()}
    return VisionLM(
        model(config(text_config=TEXT | {"rope_parameters": rope}, vision_config=vision, **ids)), processor, (1,)
    )


def idefics(config, model):
    t = tokenizer(["<fake_token_around_image>", "<end_of_utterance>", "<global-img>"])
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    processor = Idefics3Processor(images, t, image_seq_len=4)
    processor.chat_template = TEMPLATE.replace("IMAGE", "<image>")
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
              "patch_size": 8}  # fmt: skip
    made = config(text_config=TEXT | {"model_type": "llama"}, vision_config=vision, scale_factor=2,
                  image_token_id=t.convert_tokens_to_ids("<image>"))  # fmt: skip
    return VisionLM(model(made), processor, (1,))


FAMILIES = {
    "llava": llava,
    "qwen2-vl": lambda: qwen(Qwen2VLConfig, Qwen2VLForConditionalGeneration, embed_dim=32, hidden_size=32, mlp_ratio=2),
    "qwen2.5-vl": lambda: qwen(
        Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, hidden_size=32, out_hidden_size=32, intermediate_size=64,
        window_size=32, fullatt_block_indexes=[1],
    ),
    "idefics3": lambda: idefics(Idefics3Config, Idefics3ForConditionalGeneration),
    "smolvlm": lambda: idefics(SmolVLMConfig, SmolVLMForConditionalGeneration),
}  # fmt: skip


def picture(seed, height=20, width=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def user(text, *images, name="p"):
    return Prompt(name, ({"role": "user", "content": text},), media={"images": images} if images else {})


PROMPTS = (
    user("what?", picture(0), name="one"),
    user("is <image> <image>?", picture(1), picture(2, 40, 33), name="two"),
    user("what?", picture(3), name="other image"),
    user("hi", name="text"),
)


def sampled(policy, prompts=PROMPTS, n=2, tokens=7):
    requests = [ask(policy, p, n) for p in prompts]
    answers = NativeEngine(policy).generate(requests, Sampling(tokens), torch.Generator().manual_seed(0))
    return [
        Group(p.id, p, [Trajectory(f"{p.id}/{i}", [s], reward=0.0) for i, (s, _) in enumerate(row)])
        for p, row in zip(prompts, answers, strict=True)
    ]


def own(policy, ids, response, media):
    """Log-probabilities from one pass of the model over the whole row, without a cache."""
    row = torch.cat([torch.from_numpy(ids), response])[None]
    kinds = {name: (row == policy.image_id).long() for name in policy.types}
    logits = policy.module(input_ids=row, **kinds, **media).logits[0, len(ids) - 1 : -1]
    return logits.log_softmax(-1).gather(1, response[:, None])[:, 0]


def batch_of(policy, prompt, response):
    group = sampled(policy, [prompt], n=1, tokens=1)[0]
    segment = group.trajectories[0].segments[0]
    group.trajectories[0].segments = [
        replace(segment, response=np.array(response), logp=np.zeros(len(response), np.float32),
                mask=np.ones(len(response), bool), version=np.zeros(len(response), int))
    ]  # fmt: skip
    return from_groups([group])


@pytest.fixture(scope="module")
def small():
    return llava()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_samples_are_those_of_the_models_own_forward_pass(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = FAMILIES[family]()
    groups = sampled(policy)
    batch = from_groups(groups)
    assert len(batch.context) == 4
    with torch.no_grad():
        scores = policy.score(batch, 1.0)
        assert (scores.logp - batch.logp_old)[batch.valid].abs().max() < 1e-5
        for i, t in enumerate(t for g in groups for t in g.trajectories):
            segment = t.segments[0]
            want = own(policy, segment.context, torch.from_numpy(segment.response), segment.media)
            assert (want - scores.logp[i, : len(want)]).abs().max() < 1e-5
    swapped = replace(batch, media=(batch.media[2], *batch.media[1:]))
    moved = (policy.score(swapped, 1.0).logp - scores.logp)[batch.valid & (batch.context_index == 0)[:, None]]
    assert moved.abs().max() > 1e-4


def test_gradients_reach_the_vision_tower_and_are_the_models_own(small):
    batch = from_groups(sampled(small))
    policy = small
    policy.module.zero_grad()
    policy.score(batch, 1.0).logp[batch.valid].sum().backward()
    ours = {n: p.grad.clone() for n, p in policy.module.named_parameters() if p.grad is not None}
    policy.module.zero_grad()
    for i, c in enumerate(batch.context_index.tolist()):
        ids = batch.context[c][batch.context_valid[c]].numpy()
        own(policy, ids, batch.response[i][batch.valid[i]], batch.media[c]).sum().backward()
    want = {n: p.grad for n, p in policy.module.named_parameters() if p.grad is not None}
    assert ours.keys() == want.keys()
    assert any("vision_tower" in n and float(g.abs().max()) > 0 for n, g in ours.items())
    for n, g in ours.items():
        assert torch.allclose(g, want[n], atol=1e-4 * max(float(want[n].abs().max()), 1e-3)), n


def test_each_context_is_read_once_with_its_images(small, monkeypatch):
    batch, seen = from_groups(sampled(small, n=5)), []
    tower = small.model.model.vision_tower
    monkeypatch.setattr(
        tower,
        "forward",
        lambda *a, f=tower.forward, **k: (seen.append(len(k.get("pixel_values", a[0] if a else ()))), f(*a, **k))[1],
    )
    small.score(batch, 1.0)
    assert sum(seen) == 4
    assert batch.rows == 20


def test_entropy_states_and_logits_belong_together(small):
    batch = from_groups(sampled(small))
    batch = replace(batch, target=batch.valid)
    scores = small.score(batch, 0.5, entropy=True, hidden=True, logits=True)
    z = scores.logits.map(lambda x: x)
    logp = z.log_softmax(-1)
    assert torch.allclose(
        logp.gather(1, batch.response[batch.valid][:, None])[:, 0], scores.logp[batch.valid], atol=1e-5
    )
    assert torch.allclose(-(logp.exp() * logp).sum(-1), scores.entropy[batch.valid], atol=1e-5)
    assert torch.allclose(small.head(scores.hidden[batch.valid]) / 0.5, z, atol=1e-5)


def test_a_placeholder_in_a_response_is_text(small):
    response = [5, small.image_id, 6]
    batch = batch_of(small, PROMPTS[0], response)
    assert batch.response.tolist() == [response]
    assert torch.isfinite(small.score(batch, 1.0).logp).all()


def test_images_and_placeholders_need_each_other(small):
    batch = from_groups(sampled(small, PROMPTS[:1]))
    with pytest.raises(InputError, match="its images are missing"):
        small.score(replace(batch, media=None), 1.0)
    with pytest.raises(InputError, match="its images are missing"):
        small.prefill([small.encode(PROMPTS[0])])
    with pytest.raises(InputError, match="no image tokens"):
        small.prefill([small.encode(PROMPTS[3])], [small.media(PROMPTS[0])])
    with pytest.raises(InputError, match="do not fit"):
        small.prefill([small.encode(PROMPTS[0])], [small.media(PROMPTS[1])])
    with pytest.raises(InputError, match="holds 256"):
        small.prefill([np.zeros(257, np.int64)])


def test_images_stand_at_their_markers_or_first():
    parts = placed(user("a <image> b<image>", picture(0), picture(1)), 2)[0]["content"]
    assert [p.get("text", p["type"]) for p in parts] == ["a ", "image", " b", "image"]
    system = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "user", "content": "v"})
    shown = placed(Prompt("p", system), 1)
    assert [[p.get("text", p["type"]) for p in m["content"]] for m in shown] == [["s"], ["image", "u"], ["v"]]
    with pytest.raises(InputError, match="1 times <image> and 2 images"):
        placed(user("a <image>"), 2)
    with pytest.raises(InputError, match="no message of the user"):
        placed(Prompt("p", ({"role": "system", "content": "s"},)), 1)


@pytest.mark.parametrize("image", [picture(0).astype(np.float32), picture(0)[..., 0], np.zeros((0, 4, 3), np.uint8)])
def test_images_are_bytes_of_three_channels(small, image):
    with pytest.raises(InputError, match="uint8 arrays"):
        small.encode(user("a", image))


def test_other_media_and_several_messages_without_a_template_are_refused(small):
    with pytest.raises(InputError, match="images alone"):
        small.encode(Prompt("p", ({"role": "user", "content": "a"},), media={"sound": 1}))
    with pytest.raises(InputError, match="no chat template"):
        small.encode(Prompt("p", ({"role": "user", "content": "a"}, {"role": "user", "content": "b"})))


def test_prompts_of_ids_show_images_too(small):
    ids, media = small.encode(PROMPTS[0]), small.media(PROMPTS[0])
    given = Prompt("ids", tokens=tuple(ids.tolist()), media=PROMPTS[0].media)
    assert small.encode(given).tolist() == ids.tolist()
    assert torch.equal(small.media(given)["pixel_values"], media["pixel_values"])
    assert small.media(Prompt("plain", tokens=(5,))) == {}


def test_it_comes_back_from_its_folder(small, tmp_path):
    small.save(tmp_path)
    again = load_policy(str(tmp_path))
    assert isinstance(again, VisionLM)
    assert again.stop_ids == small.stop_ids
    batch = from_groups(sampled(small))
    assert torch.equal(again.score(batch, 1.0).logp, small.score(batch, 1.0).logp)
    for p in PROMPTS:
        assert again.encode(p).tolist() == small.encode(p).tolist()
        assert all(torch.equal(x, small.media(p)[k]) for k, x in again.media(p).items())
    named = load_policy(f"vlm:{tmp_path}")
    assert torch.equal(named.score(batch, 1.0).logp, again.score(batch, 1.0).logp)
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(InputError, match="no vision-language model"):
        load_policy(str(tmp_path))


def test_adapters_are_trained_alone_and_merged_when_saved(small, tmp_path):
    small.save(tmp_path)
    policy = load_policy(str(tmp_path), lora_rank=2)
    batch = from_groups(sampled(small))
    assert torch.allclose(policy.score(batch, 1.0).logp, small.score(batch, 1.0).logp, atol=1e-6)
    trained = [n for n, p in policy.module.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in n for n in trained)
    for n, p in policy.module.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
    (tmp_path / "merged").mkdir()
    policy.save(tmp_path / "merged")
    merged = load_policy(str(tmp_path / "merged"))
    assert torch.allclose(merged.score(batch, 1.0).logp, policy.score(batch, 1.0).logp, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "told"),
    [("vlm:no-such-folder/at-all", "can be loaded"), ("vlm:width=65", "multiple of the heads"),
     ("vlm:image=30,patch=8", "multiple of the patch"), ("vlm:depth=2", "layers, width, heads, context, image, patch")],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(spec, told, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=told):
        load_policy(spec)


def test_words_come_back_as_they_were():
    t = word_tokenizer(["one", "two", "red", "circle", "circles", "."])
    text = "one red circle. two red circles."
    assert t.decode(t.encode(text), skip_special_tokens=True) == text
    assert t.encode("one red circle.") + t.encode(" two red circles.") == t.encode(text)
    b = byte_tokenizer()
    for words in (text, "é ß\n ", " <b>"):
        assert b.decode(b.encode(words)) == words


def test_seeds_make_the_weights():
    a, b, c = (dict(load_policy("vlm:layers=1,width=16,heads=2", seed=s).module.named_parameters()) for s in (0, 0, 1))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(
        a["model.vision_tower.embeddings.patch_embedding.weight"],
        c["model.vision_tower.embeddings.patch_embedding.weight"],
    )


def test_a_template_that_leaves_words_out_is_refused():
    policy = FAMILIES["idefics3"]()
    asked = {"role": "user", "content": "a"}
    heard = Prompt("p", ({"role": "system", "content": "b"}, asked))
    assert len(policy.encode(heard))
    policy.processor.chat_template = "{% for m in messages if m.role == 'user' %}{% for c in m.content if c.type == 'text' %}" \
        "{{ c.text }}{% endfor %}{% endfor %}"  # fmt: skip
    policy.heard.clear()
    assert len(policy.encode(Prompt("p", (asked,))))
    with pytest.raises(InputError, match="leaves out the words of its message of the system"):
        policy.encode(Prompt("q", heard.messages))
    with pytest.raises(InputError, match="its last message is the assistant's"):
        policy.encode(Prompt("r", (asked, {"role": "assistant", "content": "b"})))
