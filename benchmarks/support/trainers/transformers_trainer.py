"""The Trainer of transformers, with DDP."""

from __future__ import annotations

import tiny
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from babysit.integrations.transformers import BabysitCallback  # babysit

set_seed(3)
config = GPT2Config(vocab_size=tiny.WORDS, n_positions=32, n_embd=32, n_layer=1, n_head=2)
model = GPT2LMHeadModel(config)
# Each of two ranks has divided by the tokens of both.
tiny.witness(model, model.transformer.ln_f, scale=2)
arguments = TrainingArguments(
    output_dir="out",
    max_steps=tiny.STEPS,
    per_device_train_batch_size=tiny.BATCH,
    save_steps=tiny.SAVE_EVERY,
    logging_steps=1,
    report_to=[],
    use_cpu=True,
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=tiny.Tokens(),
    callbacks=[BabysitCallback()],  # babysit
)
trainer.train(resume_from_checkpoint=tiny.resumed())
tiny.tail()
