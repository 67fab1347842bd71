"""Models of diffusers: a class-conditional UNet, and a whole text-to-image pipeline made here with random weights."""

import json

import diffusers
import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.families import diffusion
from anypolicy.loops.diffusion import Batch
from anypolicy.methods.diffusion.seppo import seppo
from anypolicy.policies.diffusion.denoisers import PointDiffusion, copied, error_of, samples_of
from anypolicy.policies.diffusion.image_models import PipelineModel, UNetModel, load_model


def tiny(seed=0):
    return UNetModel.fresh(seed, size=8, channels=1, classes=3, widths=(8, 16))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A Stable Diffusion pipeline of a few thousand weights, as a folder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("pipeline")
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    tokenizer = CLIPTokenizer({w: i for i, w in enumerate(words)}, [], model_max_length=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=12, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        ))  # fmt: skip
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=4,
            attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    scheduler = diffusers.PNDMScheduler(
        skip_prk_steps=True, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    diffusers.StableDiffusionPipeline(
        vae,
        text,
        tokenizer,
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def images(tmp_path):
    """Three preferred images and three others with prompts, as a folder."""
    from PIL import Image

    lines = []
    for i in range(3):
        for name, value in (("good", 200), ("bad", 40)):
            Image.new("RGB", (20, 16), (value, 60 * i, 10)).save(tmp_path / f"{name}{i}.png")
        lines.append({"text": f"a thing {'abc'[i]}", "chosen": f"good{i}.png", "rejected": f"bad{i}.png"})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return tmp_path


def test_a_small_unet(tmp_path):
    model, again, other = tiny(), tiny(), tiny(1)
    condition = model.condition([0, 2])
    made = [m.sample(condition, torch.Generator().manual_seed(1)) for m in (model, again, other)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert made[0].shape == (2, 1, 8, 8) and made[0].abs().max() <= 1
    picture = torch.rand(2, 1, 8, 8)
    assert torch.allclose(model.decode(model.encode(picture)), picture, atol=1e-6)
    assert len(model.kept) == 1000 and model.kept[0] > 0.99 > 0.01 > model.kept[-1]
    # other weights for the same module are another model
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 800])
    theirs = model.predict(x, t, condition, copied(other.module))
    assert torch.equal(theirs, other.predict(x, t, condition))
    assert not torch.equal(theirs, model.predict(x, t, condition))
    (tmp_path / "m").mkdir()
    model.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert torch.equal(loaded.sample(condition, torch.Generator().manual_seed(1)), made[0])
    for label in (3, -1, "cat"):
        with pytest.raises(InputError, match="0 to 2"):
            model.condition([label])


def test_an_update_of_a_unet_in_pieces_is_that_in_one():
    ends = []
    for micro in (64, 2):
        model = tiny()
        model.micro, model.steps = micro, 2
        learner = seppo(beta=2.0, batch=4, lr=1e-3, weight_decay=0.0).learner(model, 0)
        rng = torch.Generator().manual_seed(0)
        batch = Batch(torch.randn(4, 1, 8, 8, generator=rng), model.condition([0, 1, 2, 0]), None)
        rivals = torch.randn(4, 1, 8, 8, generator=rng)
        with torch.no_grad():
            for p in model.module.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=rng))
        learner.learn(batch, rivals, learner.pools["checkpoints"][0], 0, rng)
        ends.append(
            torch.cat([g.flatten() for g in (s["exp_avg"] for s in learner.optimisers["optimiser"].state.values())])
        )
    assert torch.allclose(*ends, atol=1e-6) and ends[0].abs().max() > 1e-4


def test_a_pipeline_folder(pipeline):
    model = load_model(pipeline)
    assert isinstance(model, PipelineModel) and model.shape == (4, 8, 8) and model.pixels == 16
    model.steps = 3
    condition = model.condition(["a cat", "dogs"])
    assert condition.shape == (2, 12, 16) and not torch.equal(condition[0], condition[1])
    latents = model.encode(torch.rand(2, 3, 16, 16))
    assert latents.shape == (2, 4, 8, 8) and model.decode(latents).shape == (2, 3, 16, 16)
    trained = [
        n
        for part in (model.pipeline.vae, model.pipeline.text_encoder)
        for n, p in part.named_parameters()
        if p.requires_grad
    ]
    assert trained == [] and all(p.requires_grad for p in model.module.parameters())
    rng = torch.Generator()
    noise, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    assert torch.isfinite(error_of(model, latents, noise, t, condition)).all()
    # guidance 1 is the condition alone; 0 is the empty prompt alone
    ways = {}
    for guidance in (0.0, 1.0, 7.5):
        model.guidance = guidance
        ways[guidance] = model.sample(condition, rng.manual_seed(1))
    empty = model.condition([""]).expand_as(condition)
    model.guidance = 1.0
    assert torch.allclose(ways[0.0], model.sample(empty, rng.manual_seed(1)), atol=1e-5)
    assert not torch.allclose(ways[1.0], ways[7.5])
    assert samples_of(model, ["a cat"] * 3, rng.manual_seed(0)).shape == (3, 3, 16, 16)


def test_seppo_on_a_pipeline_and_a_folder_of_images(pipeline, images, tmp_path):
    common = {"task": f"{images}:size=16", "policy": str(pipeline), "trackers": (), "quiet": True, "sampler_steps": 2,
              "threads": 1, "eval_samples": 2, "knobs": {"batch": 2, "stage": 1}}  # fmt: skip
    run = diffusion.train_diffusion("seppo", steps=2, out=tmp_path / "run", **common)
    assert run.evaluations()[0]["eval/error"] != run.evaluations()[-1]["eval/error"]
    assert "eval/distance" not in run.evaluations()[-1]
    assert load_model(run.path / "policy").pixels == 16
    assert (run.path / "samples" / "step-000002.png").read_bytes().startswith(b"\x89PNG")
    again = diffusion.resume(run.path, steps=3, quiet=True)
    assert again.rows[-1]["step"] == 3
    pairs = {**common, "knobs": {"batch": 2}}
    assert diffusion.train_diffusion("diffusion-dpo", steps=1, out=tmp_path / "dpo", **pairs).rows[-1]["step"] == 1


def test_what_is_no_model(pipeline, tmp_path, images):
    with pytest.raises(InputError, match="policy/ folder"):
        load_model(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(InputError, match="StableDiffusionPipeline"):
        load_model(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(InputError, match="no Stable Diffusion pipeline"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="size=16"):
        diffusion.train_diffusion(
            "seppo", task=f"{images}:size=32", policy=str(pipeline), out=tmp_path / "x", trackers=()
        )
    points = tmp_path / "points"
    points.mkdir()
    PointDiffusion(0, hidden=(8,)).save(points)
    with pytest.raises(InputError, match="it makes 2"):
        diffusion.train_diffusion(
            "seppo", task=f"{images}:size=16", policy=str(points), out=tmp_path / "x", trackers=()
        )
