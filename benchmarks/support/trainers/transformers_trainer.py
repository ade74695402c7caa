"""The Trainer of transformers, with DDP; `fsdp`: FSDP2; `deepspeed`: ZeRO-2."""

from __future__ import annotations

import sys
from typing import Any

import tiny
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from babysit.integrations.transformers import BabysitCallback  # babysit

set_seed(3)
config = GPT2Config(vocab_size=tiny.WORDS, n_positions=32, n_embd=32, n_layer=1, n_head=2)
model = GPT2LMHeadModel(config)
# Each of two ranks has divided by the tokens of both.
tiny.witness(model, model.transformer.ln_f, scale=2)
kinds: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": "GPT2Block"}},
    "deepspeed": {
        "deepspeed": {
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
            "train_micro_batch_size_per_gpu": "auto",
        }
    },
}
chosen = [kinds[word] for word in sys.argv if word in kinds]
arguments = TrainingArguments(
    output_dir="out",
    max_steps=tiny.STEPS,
    per_device_train_batch_size=tiny.BATCH,
    save_steps=tiny.SAVE_EVERY,
    logging_steps=1,
    report_to=[],
    use_cpu=True,
    **(chosen[0] if chosen else {}),
)
if chosen:
    PartialState().distributed_type = DistributedType.MULTI_GPU  # it asks for no more
trainer = Trainer(
    model,
    arguments,
    train_dataset=tiny.Tokens(),
    callbacks=[BabysitCallback()],  # babysit
)
trainer.train(resume_from_checkpoint=tiny.resumed())
tiny.tail()
