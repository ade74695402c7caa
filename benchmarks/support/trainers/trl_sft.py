"""The SFTTrainer of trl, with DDP."""

from __future__ import annotations

import tiny
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from babysit.integrations.transformers import BabysitCallback  # babysit

set_seed(3)
config = GPT2Config(vocab_size=tiny.WORDS, n_positions=32, n_embd=32, n_layer=1, n_head=2)
model = GPT2LMHeadModel(config)
# The model divides by the tokens that it predicts, and the SFTTrainer by all.
tiny.witness(model, model.transformer.ln_f, scale=(tiny.LENGTH - 1) / tiny.LENGTH)
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(tiny.WORDS)}, "w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w63", pad_token="w63")
rows = [{"input_ids": tiny.tokens_of(index).tolist()} for index in range(tiny.SAMPLES)]
arguments = SFTConfig(
    output_dir="out",
    max_steps=tiny.STEPS,
    per_device_train_batch_size=tiny.BATCH,
    max_length=tiny.LENGTH,
    save_steps=tiny.SAVE_EVERY,
    logging_steps=1,
    report_to=[],
    use_cpu=True,
    bf16=False,
)
trainer = SFTTrainer(
    model,
    args=arguments,
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
    callbacks=[BabysitCallback()],  # babysit
)
trainer.train(resume_from_checkpoint=tiny.resumed())
tiny.tail()
