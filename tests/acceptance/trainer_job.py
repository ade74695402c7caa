"""A script that trains with the Trainer, or trl's, and knows one word of babysit.

Words of the command line: `trl` for its SFTTrainer; `auto` for `babysit.auto()` in place of the
callback; `fsdp` for FSDP2 and `deepspeed` for ZeRO-2 in place of DDP.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import babysit
from babysit.ring import RingReader
from babysit.wire import ENV_RANK_DIR, RING_FILE

STEPS, LENGTH, BATCH = 16, 40, 2


if "auto" in sys.argv:
    babysit.auto()


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Few samples of fixed tokens, with some masked at random, as a collator would do."""

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 64, (8,), generator=torch.Generator().manual_seed(index))
        labels = tokens.masked_fill(torch.rand(8) < 0.3, -100)
        return {"input_ids": tokens, "labels": labels}


class Fault(TrainerCallback):
    """At a step of the environment: be killed, or be asked to leave."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if os.environ.get("KILL") == f"{os.environ['RANK']}:{state.global_step}":
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if os.environ.get("STOP") == f"{os.environ['RANK']}:{state.global_step}":
            RingReader(Path(os.environ[ENV_RANK_DIR]) / RING_FILE).request_stop()


sizes = {"vocab_size": 64, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
torch.manual_seed(3)
options: dict[str, Any] = {
    "output_dir": "out",
    "max_steps": STEPS,
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": 2,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "logging_steps": 5,
    "seed": 1,
}
zero: dict[str, Any] = {"stage": 2, "offload_optimizer": {"device": "none"}}
sharded: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": "GPT2Block"}},
    "deepspeed": {
        "deepspeed": {
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
        }
    },
}
kinds = sharded.keys() & set(sys.argv)
for kind in kinds:
    options |= sharded[kind] | {"eval_strategy": "steps", "eval_steps": 7}
callbacks: list[TrainerCallback] = [Fault()]
if "auto" not in sys.argv:
    from babysit.integrations.transformers import BabysitCallback

    callbacks.insert(0, BabysitCallback())
model = GPT2LMHeadModel(GPT2Config(**sizes))
if "trl" in sys.argv:
    from datasets import Dataset as Table
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(63)} | {"</s>": 63}, "w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")
    rows = [{"input_ids": [(7 * i * j + j) % 63 for j in range(8)]} for i in range(LENGTH)]
    trainer = SFTTrainer(
        model,
        args=SFTConfig(**options, bf16=False, max_length=8),
        train_dataset=Table.from_list(rows),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
else:
    arguments = TrainingArguments(**options)
    if kinds:
        PartialState().distributed_type = DistributedType.MULTI_GPU  # it asks for no more
    trainer = Trainer(
        *(model, arguments), train_dataset=Tokens(), eval_dataset=Tokens(), callbacks=callbacks
    )
trainer.train()
Path(f"tail-{os.environ['RANK']}").touch()
