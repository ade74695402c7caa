"""DeepSpeed's engine; the argument is the stage of ZeRO."""

from __future__ import annotations

import sys

import deepspeed
import tiny
import torch

import babysit  # babysit
from babysit.integrations.deepspeed import EngineState  # babysit

deepspeed.init_distributed("gloo")
torch.manual_seed(3)
run = babysit.init()  # babysit
model = tiny.Model()
tiny.witness(model, model.head)
config = {
    "train_micro_batch_size_per_gpu": tiny.BATCH,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "zero_optimization": {"stage": int(sys.argv[1])},
}
engine, _, loader, _ = deepspeed.initialize(
    model=model,
    model_parameters=model.parameters(),
    training_data=tiny.Tokens(),
    config=config,
)


def load() -> int:
    """As a script does that saves by itself: with the engine's own checkpoints."""
    if found := tiny.resumed():
        engine.load_checkpoint(str(found.parent), found.name)
    return tiny.step_of(tiny.resumed())


state = EngineState(engine)  # babysit
run.restore(state)  # babysit
# without it: for step, batch in tiny.numbered(loader, load()):
for step, batch in run.steps(loader, total=tiny.STEPS):  # babysit
    loss = engine(**batch)
    engine.backward(loss)
    engine.step()
    tiny.log(step, float(loss.detach()))
    # without it: if tiny.is_due(step): engine.save_checkpoint("out", f"checkpoint-{step}")
    run.report(loss=loss.detach())  # babysit
    run.checkpoint(state)  # babysit
    if run.should_stop:  # babysit
        run.checkpoint(state, now=True)  # babysit
        raise SystemExit  # babysit
tiny.tail()
