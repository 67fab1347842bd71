"""The same DPO update by TRL: DPOTrainer's own loss on the given pairs, its reference computed anew or known."""

import copy
import json
import sys
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from loop import resident, serve
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
work = json.loads(Path(given["work"]).read_text())
tokenizer = PreTrainedTokenizerFast.from_pretrained(given["model"])
model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
reference = copy.deepcopy(model)
rng = torch.Generator().manual_seed(1)
with torch.no_grad():
    for p in model.parameters():
        p.add_(1e-3 * torch.randn(p.shape, generator=rng))
pairs = [
    {"prompt_ids": p, "chosen_ids": chosen, "rejected_ids": rejected}
    for p, (chosen, rejected) in zip(work["prompts"], work["completions"], strict=True)
]
config = DPOConfig(
    output_dir=given["scratch"], use_cpu=True, bf16=False, report_to=[], logging_strategy="no", save_strategy="no",
    learning_rate=given["lr"], lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, beta=0.1,
    gradient_checkpointing=False, optim="adamw_torch_fused", seed=0, max_steps=10_000, disable_tqdm=True,
    per_device_train_batch_size=len(pairs),
)  # fmt: skip
text = {"prompt": ["w3"], "chosen": ["w4"], "rejected": ["w5"]}
trainer = DPOTrainer(
    model=model, ref_model=reference, args=config, processing_class=tokenizer, train_dataset=Dataset.from_dict(text)
)  # fmt: skip
trainer.create_optimizer_and_scheduler(10_000)
trainer.model.train()
base = resident()
inputs = DataCollatorForPreference(tokenizer.pad_token_id)(pairs)
chosen, rejected = trainer.compute_ref_log_probs(reference, inputs)
known_inputs = inputs | {"ref_chosen_logps": chosen.detach(), "ref_rejected_logps": rejected.detach()}


def learn(batch, known):
    trainer.precompute_ref_logps = known
    trainer._compute_loss(trainer.model, batch, False).backward()
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def gradient():
    trainer.precompute_ref_logps = False
    loss = trainer._compute_loss(trainer.model, inputs, False)
    loss.backward()
    save_file({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}, given["out"])
    trainer.optimizer.zero_grad()
    return {"loss": float(loss.detach())}


versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
serve(
    {"update": lambda: learn(inputs, False), "known": lambda: learn(known_inputs, True), "gradient": gradient},
    versions, base,
)  # fmt: skip
