"""A script that trains with the Trainer, or trl's, and knows one word of babysit.

Words of the command line: `trl` for its SFTTrainer; `auto` for `babysit.auto()` in place of the
callback; `fsdp` for FSDP2, `fsdp1` for FSDP 1, `deepspeed` for ZeRO-2, `zero3` for ZeRO-3 and
`offload` for ZeRO-3 with parameters and optimizer offloaded, in place of DDP.
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
from tests.acceptance.asked_to_leave import leave_now, meet_at_each_step

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
            leave_now()


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
on_cpu, kept = {"device": "cpu"}, {"device": "none"}


def zero(stage: int, **options: Any) -> dict[str, Any]:
    """DeepSpeed in place of DDP."""
    config = {
        "zero_optimization": {"stage": stage, "offload_optimizer": kept, **options},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    }
    return {"deepspeed": config}


def fsdp(version: int) -> dict[str, Any]:
    """FSDP in place of DDP."""
    config = {"version": version, "transformer_layer_cls_to_wrap": "GPT2Block"}
    config["sync_module_states"] = version == 2  # FSDP 1 does so on GPUs only
    return {"fsdp": True, "fsdp_config": config}


small = {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0}
sharded = {
    "fsdp": fsdp(2),
    "fsdp1": fsdp(1),
    "deepspeed": zero(2),
    "zero3": zero(3, **small),
    "offload": zero(3, **small | {"offload_optimizer": on_cpu, "offload_param": on_cpu}),
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
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # not cpu:0, which FSDP 1 refuses
    arguments = TrainingArguments(**options)
    if kinds:
        PartialState().distributed_type = DistributedType.MULTI_GPU  # it asks for no more
    trainer = Trainer(
        *(model, arguments), train_dataset=Tokens(), eval_dataset=Tokens(), callbacks=callbacks
    )
meet_at_each_step()
trainer.train()
Path(f"tail-{os.environ['RANK']}").touch()
