"""Teach a base to hold conversations: it learns the answers in conversations of prepare_chat.py.

    python train_chat.py config/cpu_chat.py      # then: python chat.py --ckpt=out/cpu_chat
    torchrun --standalone --nproc_per_node=8 train_chat.py --lm=out/base_d12 --batch_size=64
"""
import numpy as np
import torch

from checkpoints import load_checkpoint, read_meta
from configurator import configure, fail, user_input
from conversations import Conversations, chat_sums
from data import batch_indices
from optim import gpt_optimizers
from rows import to_tensor
from run import join_ranks, leave_ranks, lr_share
from tokenizer import load_tokenizer
from trainer import Trainer, check_settings, first_step_of

# config: every value here can be set from a config file or as --name=value
out_dir = "out/chat"
lm = "out/base_d4"      # folder of the run to begin with, ours or nanochat's
data_dir = "data/chat"  # folder of prepare_chat.py
init_from = "auto"      # scratch; resume; auto: resume where out_dir has a checkpoint
batch_size = 8          # rows of a step over all ranks, as long as the base's attention
max_steps = 1000        # when the run and its schedule end
lr_scale = 1.0          # of the rates that train_base.py takes
save_every = 300        # steps; evaluates too
device = "auto"
use_compile = True
config = configure(globals())  # prints each change; stored in every checkpoint
# -----------------------------------------------------------------------------
WARMUP_STEPS, WARMDOWN_SHARE, FINAL_LR_SHARE = 20, 0.7, 0.02
EVAL_ROWS = 512         # held-out rows
RATES = 0.02, 0.2, 0.004, 0.01  # matrices (Muon), embeddings, lm_head, scalars
SEED = 0


# ---- data, model, optimizer, resume

def get_batch(step):
    """Return this rank's rows of a step, (idx, targets): a function of (seed, step)."""
    n = len(talks["train"].rows)
    at = batch_indices(np.ones(n), SEED, "train", step, 0, min(batch_size, n))[rank::world_size]
    return [to_tensor(array, dev) for array in talks["train"].batch(at)]


rank, world_size, dev = join_ranks(device, SEED)
check_settings(config, world_size, "batch_size")
if batch_size % world_size:
    fail(f"{batch_size=} is no multiple of the {world_size} ranks")
with user_input():
    inputs = {"conversations": chat_sums(data_dir), "schedule": max_steps,
              "first_model": read_meta(lm).get("sha256", {})}
first_step = first_step_of(config, inputs)
source = out_dir if first_step else lm
with user_input():
    tok = load_tokenizer(source)
    model, _ = load_checkpoint(source, device=dev)
    width = model.config.sequence_len + 1
    talks = {split: Conversations(data_dir, split, tok, width) for split in ("train", "val")}
optimizers = gpt_optimizers(model, *[lr_scale * rate for rate in RATES])
trainer = Trainer(
    config=config | {"eval_every": save_every}, inputs=inputs, ranks=(rank, world_size, dev),
    first_step=first_step, model=model, tok=tok, optimizers=optimizers, losses=["answer_loss"],
    best="val_answer_bpb", files=lambda: {"model": model.state_dict()}, row_len=width - 1,
    meta={"max_seq_len": width - 1, "device_batch_size": batch_size,
          "chats": True, "conversations": True})  # for train_sft.py, for chat.py and serve.py
if use_compile:
    model.nll = torch.compile(model.nll)


# ---- evaluate()

def evaluate(step):
    """Return the bits per byte of held-out answers."""
    rows = talks["val"]
    return {"val_answer_bpb": trainer.bits_per_byte(rows.batch, min(EVAL_ROWS, len(rows.rows)))}


# ---- loop

trainer.begin(evaluate, [
    f"{split}: {len(rows.each):,} conversations in {len(rows.rows):,} rows of {width - 1}, "
    f"{rows.n_tokens:,} tokens, {rows.n_answers:,} of answers; {rows.n_cropped:,} cropped, "
    f"{rows.n_dropped:,} conversations left out" for split, rows in talks.items()])
for step in range(first_step, max_steps):
    idx, targets = get_batch(step)
    loss = model(idx, targets, loss_reduction="sum")
    loss.backward()
    trainer.meter["places"] += idx.numel()
    sums = torch.stack([loss.detach(), (targets >= 0).sum()])[None]  # nats, targets
    share = lr_share(step, WARMUP_STEPS, max_steps, WARMDOWN_SHARE, FINAL_LR_SHARE)
    trainer.update(step, sums, share)

if rank == 0:
    print(trainer.clock.closing_line(trainer.result, out_dir))
leave_ranks()
