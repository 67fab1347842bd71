"""The same GRPO step by TRL: GRPOTrainer's own loss on given rows, and its training step with generation."""

import json
import sys
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from loop import resident, serve
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, StoppingCriteria
from trl import GRPOConfig, GRPOTrainer

given = json.loads(sys.argv[1])
torch.set_num_threads(given.get("threads", 1))
work = json.loads(Path(given["work"]).read_text())
tokenizer = PreTrainedTokenizerFast.from_pretrained(given["model"])
model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=getattr(torch, given.get("dtype", "float32")))
prompts = [" ".join(f"w{i}" for i in ids) for ids in work["prompts"]]
assert [tokenizer(p)["input_ids"] for p in prompts] == work["prompts"]
rows, passes = len(prompts) * given["group"], given.get("passes", 1)


silent = set(prompts[: given.get("silent", 0)])


def reward(prompts, completion_ids, **_):
    return [0.5 if p in silent else (int(sum(ids)) % 7) / 6 for p, ids in zip(prompts, completion_ids, strict=True)]


config = GRPOConfig(
    output_dir=given["scratch"], use_cpu=given.get("device", "cpu") == "cpu", bf16=False, report_to=[],
    logging_strategy="no", save_strategy="no",
    per_device_train_batch_size=rows // passes, gradient_accumulation_steps=passes, num_generations=given["group"],
    max_completion_length=given["completion"],
    learning_rate=given["lr"], lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, loss_type="grpo",
    beta=0.0, temperature=1.0, gradient_checkpointing=False, optim="adamw_torch_fused", seed=0, max_steps=10_000,
    generation_kwargs={"min_new_tokens": given["completion"]}, shuffle_dataset=False, disable_tqdm=True,
)  # fmt: skip
trainer = GRPOTrainer(
    model=model, reward_funcs=reward, args=config, processing_class=tokenizer,
    train_dataset=Dataset.from_dict({"prompt": prompts}),
)  # fmt: skip
trainer.create_optimizer_and_scheduler(10_000)
trainer.current_gradient_accumulation_steps = passes
trainer.model.train()

if "lengths" in given:
    plain, ends = model.generate, torch.tensor(given["lengths"], device=model.device)

    class Lengths(StoppingCriteria):
        """Every row ends at its own length."""

        def __init__(self, prompt):
            self.prompt = prompt

        def __call__(self, input_ids, scores, **_):
            return input_ids.shape[1] >= self.prompt + ends

    def uneven(input_ids, **more):
        prompt = input_ids.shape[1]
        made = plain(input_ids, stopping_criteria=[Lengths(prompt)], **more)
        made[torch.arange(len(made)), prompt + ends - 1] = tokenizer.eos_token_id
        return made

    model.generate = uneven

base = resident()


def padded(rows, dtype):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r, dtype=dtype) for g in rows for r in g], batch_first=True)


device = trainer.accelerator.device
flat, noise = padded(work["completions"], torch.long), padded(work["noise"], torch.float32)
valid = padded([[[1] * len(r) for r in g] for g in work["completions"]], torch.long)
context = torch.tensor([ids for ids in work["prompts"] for _ in range(given["group"])])
flat, noise, valid, context = (x.to(device) for x in (flat, noise, valid, context))
r = torch.tensor(work["rewards"], device=device)
advantage = ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)).flatten()
with torch.no_grad():
    whole, seen = torch.cat([context, flat], 1), torch.cat([torch.ones_like(context), valid], 1)
    old = trainer._get_per_token_logps_and_entropies(trainer.model, whole, seen, flat.shape[1])[0] + noise
inputs = {
    "prompt_ids": context, "prompt_mask": torch.ones_like(context), "completion_ids": flat, "completion_mask": valid,
    "advantages": advantage, "old_per_token_logps": old, "num_items_in_batch": valid.sum(),
}  # fmt: skip


def apply():
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def update():
    trainer.compute_loss(trainer.model, inputs).backward()
    apply()


def step():
    for _ in range(passes):
        trainer.training_step(trainer.model, [{"prompt": p} for p in prompts for _ in range(given["group"])], None)
    apply()


def gradient():
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    save_file({n: p.grad.cpu() for n, p in trainer.model.named_parameters() if p.grad is not None}, given["out"])
    trainer.optimizer.zero_grad()
    return {"loss": float(loss.detach())}


versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
serve({"update": update, "step": step, "gradient": gradient}, versions, base, device)
