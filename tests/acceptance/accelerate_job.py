"""A script of accelerate's, with one line of babysit in it.

Words of the command line: `auto` for `babysit.auto()` in place of that line; `fsdp` for FSDP2,
`fsdp1` for FSDP 1, `deepspeed` for ZeRO-2 and `zero3` for ZeRO-3 in place of DDP.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch.utils.data import DataLoader, Dataset

import babysit
from tests.acceptance.asked_to_leave import leave_now, meet_at_each_step

STAGES = {"deepspeed": 2, "zero3": 3}
FSDP = {"fsdp": 2, "fsdp1": 1}

if "auto" in sys.argv:
    babysit.auto()


class Noisy(Dataset[torch.Tensor]):
    """Samples with noise from the global generator, as augmentation draws it."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((4,), index / 40) + 0.1 * torch.rand(4)


def on_cpus() -> Accelerator:
    """The accelerator, also of kinds that accelerate takes for those of GPUs."""
    if stage := STAGES.get(sys.argv[-1]):
        PartialState(cpu=True)
        plugin = DeepSpeedPlugin(zero_stage=stage, gradient_accumulation_steps=2)
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 2
        plugin.deepspeed_config["zero_allow_untested_optimizer"] = True
        if stage == 3:
            plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return Accelerator(deepspeed_plugin=plugin)
    if version := FSDP.get(sys.argv[-1]):
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # not cpu:0, which FSDP 1 refuses
        PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU  # it asks for no more
        # Without the original parameters, an optimizer that is made before would update none.
        sharded = FullyShardedDataParallelPlugin(
            fsdp_version=version, use_orig_params=version == 1 or None
        )
        return Accelerator(cpu=True, gradient_accumulation_steps=2, fsdp_plugin=sharded)
    return Accelerator(cpu=True, gradient_accumulation_steps=2)


meet_at_each_step()
torch.manual_seed(3)
accelerator = on_cpus()
if "auto" not in sys.argv:
    from babysit.integrations.accelerate import watch

    watch(accelerator)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
loader = DataLoader(Noisy(), batch_size=2, shuffle=True)
held_out = DataLoader(Noisy(), batch_size=10)
model, optimizer, loader, held_out, scheduler = accelerator.prepare(
    model, optimizer, loader, held_out, scheduler
)
rank = os.environ["RANK"]
for epoch in range(3):
    model.train()
    for number, batch in enumerate(loader):
        where = f"{rank}:{epoch}:{number}"
        if os.environ.get("KILL") == where:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("STOP") == where:
            leave_now()
        with accelerator.accumulate(model):
            loss = (model(batch) - 1).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        seen = sum(accelerator.gather_for_metrics(model(batch)).numel() for batch in held_out)
    assert seen == 40, seen
Path(f"tail-{rank}").touch()
