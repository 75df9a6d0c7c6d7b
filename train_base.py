"""Pretrain the GPT on text, with listening practice (practice.py, texture.py).

    python train_base.py config/cpu_base.py                        # 2 cores
    torchrun --standalone --nproc_per_node=8 train_base.py config/base_d12.py
"""
import math
import re

import numpy as np
import torch

from checkpoints import load_checkpoint, run_sums
from configurator import configure, fail, user_input
from data import stretched_batch
from documents import Documents
from files import read_sentences, sha256_file
from model import GPT, GPTConfig
from optim import gpt_optimizers
from practice import (EASE_STEPS, Speller, count_right, imitate_audio, practice_features,
                      read_chats, render_chats, slip)
from rows import Sentences
from run import join_ranks, sum_over_ranks
from texture import TEXTURE, Texture
from tokenizer import load_tokenizer, train_bpe, train_syllables
from trainer import Trainer, check_settings, first_step_of

# config: set by a config file or --name=value
out_dir = "out/base_d4"
data_dir = "data/text"  # train.txt and val.txt of prepare_text.py, one sentence a line
documents = ""          # folder of prepare_documents.py, read as plain text; '': the sentences
lm = ""                 # folder of a run to begin with, ours or nanochat's; '': a new model
init_from = "auto"      # scratch; resume; auto: resume if there is a run
# model: n_embd is 64 * depth, rounded up to a multiple of head_dim
depth = 4
head_dim = 64
vocab_size = 2048       # of a new tokenizer; documents have their own
# batch
batch_size = 64         # rows of a microbatch; the value to lower on out-of-memory
grad_accum = 2          # microbatches of a step over all ranks
text_len = 64           # tokens of a row of plain text
# listening practice
practice = 0.7          # share of the microbatches that practise; the others are plain text
chats = ""              # chats.jsonl of prepare_practice.py: half of the practice; '': none
chat_rows = 32          # rows of a microbatch of chats
practice_vocab = 512    # tokens that imitated audio is spelled with (256: bytes alone)
pinyin = False          # True: spell with Chinese syllables and their tones in place of text
spell_share = 0.15      # share of lr_decay_steps, at the start, where text is spelled so too
# what trains
max_steps = 1000        # when to stop
lr_decay_steps = 1000   # when the schedule ends
warmup_steps = 20
matrix_lr = 0.02        # Muon, for the blocks' matrices
grad_clip = 1.0         # 0: off
# the rest
eval_every = 250        # steps; 0: at the end only
save_every = 250
log_every = 10
device = "auto"
use_compile = True
zero1 = False           # ranks share the optimizers' states: less memory, slower saves
seed = 0
config = configure(globals())  # each checkpoint stores it
# ----
CHAT_SHARE = 0.5        # of the practice; from the first step on, else it forgets how to answer
EVAL_ROWS = 512         # held-out rows of documents
# tokens back that attention reaches; a row may be 10 times as long. The same in all layers:
# nanochat's SSSL needs masks, a step of a GPU takes 1.8 times as long (computed)
WINDOW = max(256, text_len)
TEXT, PRACTICE, CHATS = range(3)  # kinds of microbatches
WORD = re.compile("[\u3040-\u9fff]|[^ \u3040-\u9fff]+")  # or a Chinese character

spell_steps = round(spell_share * lr_decay_steps) if practice and not lm else 0
if practice > 1 or practice_vocab < 256 or spell_steps >= max_steps:
    fail(f"{practice=} must be at most 1, {practice_vocab=} at least 256, and spelling must end "
         f"before {max_steps=} (it ends at step {spell_steps}: lower spell_share)")


# ---- data

def kind_of(n):
    """Return the kind of microbatch n of the run: TEXT, PRACTICE or CHATS, spread evenly."""
    def is_next(k, share):  # True for `share` of all k, evenly spread
        return math.floor((k + 1) * share) > math.floor(k * share)

    if not is_next(n, practice):
        return TEXT
    return CHATS if talks and is_next(math.floor(n * practice), CHAT_SHARE) else PRACTICE


def pick(lengths, n, size):
    """Draw microbatch n's rows, `size` of similar length."""
    return stretched_batch(lengths, seed, n, size)[0]


def hear(sentences, rng, ease=1.0, texture=None, facts=None):
    """Return the model's arguments about imitated audio of sentences (arrays of pieces).

    facts: how each recording sounds, {task: answer}, which tokens of a Texture in front tell.
    """
    pairs, weights, lens = imitate_audio(sentences, spelling, rng, ease)
    audio, lens = practice_features(model, blank, pairs, weights, rng, ease), lens.to(dev)
    if texture and any(facts):
        told = texture.imitate(model, facts, rng, ease)
        audio, lens = torch.cat([told.to(audio.dtype), audio], 1), lens + TEXTURE
    return {"audio_features": audio, "audio_lens": lens}


def render(chats, tokenizer, rng, ease=1.0):
    """Return the model's arguments about chats of read_chats(), targets among them."""
    heard, facts = zip(*(recording for recording, _ in chats))
    texture = Texture(tokenizer, dev)
    idx, targets = map(to_gpu, render_chats(chats, tokenizer))
    return hear(heard, rng, ease, texture, facts) | {"idx": idx, "targets": targets}


def to_gpu(array):
    """Return ints as an int64 tensor on dev; a GPU works on meanwhile."""
    ids = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
    return ids.pin_memory().to(dev, non_blocking=True) if dev.type == "cuda" else ids.to(dev)


def next_tokens(rows):
    """Return the model's arguments about rows of plain text (B, text_len + 1)."""
    rows = to_gpu(rows)
    return {"idx": rows[:, :-1], "targets": rows[:, 1:]}


def get_batch(step, microbatch, kind):
    """Return the model's arguments: a function of (seed, step, microbatch)."""
    n, is_spelled = step * grad_accum + microbatch, step < spell_steps
    if kind == TEXT and docs and not is_spelled:
        return next_tokens(docs["train"].batch(n, batch_size, seed))
    sentences = (pieces if is_spelled else words)["train"]
    if kind == TEXT:
        return next_tokens(sentences.rows[pick(np.ones(len(sentences.rows)), n, batch_size)])
    rng = np.random.default_rng([seed, 1, step, microbatch])
    ease = min((step + 1) / EASE_STEPS, 1.0)
    if kind == CHATS:
        some = [talks["train"][i] for i in pick(talk_sizes, n, chat_rows)]
        return render(some, speller if is_spelled else tok, rng, ease)
    at = pick(sentences.lens, n, batch_size)
    idx, targets = sentences.padded(at)
    idx = slip(idx, sentences.ids, tok.bos_id, rng, ease)
    return hear(pieces["train"].each(at), rng, ease) | {
        "idx": to_gpu(idx), "targets": to_gpu(targets)}


ranks = rank, world_size, dev = join_ranks(device, seed)
check_settings(config, "depth", "head_dim", "batch_size", "text_len", "chat_rows")
splits = ("train", "val") if practice or not documents else ()  # of the sentences
docs = {}
with user_input():
    if documents:
        docs = {name: Documents(documents, name, text_len + 1) for name in ("train", "val")}
    lines = {split: read_sentences(data_dir, split) for split in splits}
    inputs = {"text": [sha256_file(f"{data_dir}/{split}.txt") for split in splits],
              "chats": sha256_file(chats) if chats else "",
              "shards": sha256_file(f"{documents}/meta.json") if documents else "",
              "first_model": run_sums(lm) if lm else ""}
first_step = first_step_of(config, inputs, rank)
source = out_dir if first_step else lm  # of model and tokenizer; '': new ones
with user_input():
    if source or documents:
        tok = load_tokenizer(source or documents)
    elif pinyin:
        tok = train_syllables(lines["train"], vocab_size, practice_vocab - 256)
    else:
        tok = train_bpe(lines["train"], vocab_size)
    if pinyin and not tok.readings:
        fail(f"{pinyin=} needs a new tokenizer: leave out lm and documents")
    if documents and source and load_tokenizer(documents).pieces != tok.pieces:
        fail(f"{documents} was made with another tokenizer than {source}'s: run "
             f"prepare_documents.py --tokenizer={source}")
speller = Speller(tok, practice_vocab)
words = {split: Sentences(lines[split], tok, text_len) for split in splits}
pieces = {split: Sentences(lines[split], speller, text_len) for split in splits}
spelling = np.unique(pieces["train"].ids) if splits else []  # the pieces that occur


# ---- model, optimizer, resume

if source:
    with user_input():
        model, _ = load_checkpoint(source, device=dev)
else:
    with torch.device(dev):
        model = GPT(GPTConfig.of_depth(depth, tok.vocab_size, WINDOW, head_dim, "L"))
if dev.type == "cuda":
    gb = torch.cuda.get_device_properties(dev).total_memory / 1e9
    model.recompute = model.training_gb(batch_size * text_len) > 0.9 * gb
talks, left_out = {}, {}
if chats and practice:
    with user_input():
        talks, left_out = read_chats(chats, speller, len(model.cos))
    talk_sizes = [sum(len(m["content"]) for m in chat["messages"]) for _, chat in talks["train"]]
blank = torch.nn.Parameter(torch.randn(model.config.n_embd, device=dev))  # no part of the model
optimizers = gpt_optimizers(model, matrix_lr, [blank], zero1 and world_size > 1)
trainer = Trainer(
    config=config, inputs=inputs, ranks=ranks, first_step=first_step, model=model,
    tok=tok, optimizers=optimizers, losses=["loss", "practice_loss", "chat_loss"],
    files=lambda: {"model": model.state_dict()}, row_len=text_len,
    warmdown_share=0.65 if documents else 0.5, final_lr_share=0.05 if documents else 0.02,
    meta={"max_seq_len": text_len, "device_batch_size": batch_size, "chats": bool(talks)})
if first_step:
    with user_input(KeyError):
        blank.data.copy_(trainer.state["blank"])
        spell_steps = trainer.state["spell_steps"]  # as planned when the run began
trainer.state = {"blank": blank.data, "spell_steps": spell_steps}
if use_compile:
    model.nll = torch.compile(model.nll)


# ---- evaluate()

def evaluate(step):
    result = evaluate_sentences(step) if splits else {}
    if docs:
        result["val_bpb"] = evaluate_documents()
    if talks:
        result["val_right"] = evaluate_chats(step)
    return result


def evaluate_documents():
    """Return the bits per byte of EVAL_ROWS rows of documents; special tokens don't count."""
    sums, n_rows = torch.zeros(2, device=dev), min(EVAL_ROWS, docs["val"].n_rows)  # nats, bytes
    token_bytes = torch.tensor(tok.token_bytes(), device=dev)
    for i in range(rank * batch_size, n_rows, world_size * batch_size):
        at = np.arange(i, min(i + batch_size, n_rows))
        batch = next_tokens(docs["val"].rows(at))
        n_bytes = token_bytes[batch["targets"].flatten()]
        nats = model(**batch, loss_reduction="none") * (n_bytes > 0)
        sums += torch.stack([nats.sum(), n_bytes.sum()])
    sum_over_ranks(sums)
    nats, total_bytes = sums.tolist()
    return nats / max(total_bytes, 1) / math.log(2)


def evaluate_sentences(step):
    """Return bits per byte and perplexity per word of text alone, and the loss of listening."""
    sentences = (pieces if step <= spell_steps else words)["val"]
    nats = torch.zeros(3, device=dev)  # of the text, of listening; targets
    order = np.argsort(sentences.lens, kind="stable")
    for i, at in enumerate(np.array_split(order, -(-len(order) // batch_size))):
        if i % world_size == rank:
            idx, targets = map(to_gpu, sentences.padded(at))
            heard = hear(pieces["val"].each(at), np.random.default_rng([seed, i]))
            nats[0] += model(idx, targets, loss_reduction="sum")
            nats[1] += model(idx, targets, loss_reduction="sum", **heard)
            nats[2] += (targets >= 0).sum()
    sum_over_ranks(nats)
    plain, listened, n_targets = nats.tolist()
    n_bytes = sum(len(line.encode()) + 1 for line in lines["val"])  # a sentence and its end
    n_words = sum(len(WORD.findall(line)) for line in lines["val"])
    return {"val_bpb": plain / math.log(2) / n_bytes, "val_ppl_word": math.exp(plain / n_words),
            "val_practice": listened / n_targets}


def evaluate_chats(step):
    """Return the share of val's questions that are answered right in every token."""
    tokenizer = speller if step <= spell_steps else tok
    counts = torch.zeros(2, device=dev)
    for i in range(rank * chat_rows, len(talks["val"]), world_size * chat_rows):
        some = talks["val"][i:i + chat_rows]
        batch = render(some, tokenizer, np.random.default_rng([seed, i]))
        targets = batch.pop("targets").cpu().numpy()
        best = model(**batch).argmax(2).cpu().numpy()
        counts += torch.tensor(count_right(best, targets), device=dev)
    sum_over_ranks(counts)
    n_right, n_all = counts.tolist()
    return n_right / n_all


# ---- loop

about = ["blocks are recomputed"] * model.recompute
for split, rows in docs.items():
    about.append(f"{split}: {rows.n_docs:,} documents, {rows.n_tokens:,} tokens in {rows.n_rows:,} "
                 f"rows, {rows.n_cropped:,} cropped")
for split in splits:
    about.append(f"{split}: {len(lines[split]):,} sentences, {len(words[split].ids):,} tokens")
about += [f"{chats}: left out: {n:,}, {reason}" for reason, n in left_out.items()]
if first_step < spell_steps:
    about.append(f"text in pieces until step {spell_steps}, where losses jump")
trainer.begin(evaluate, about)
for step in range(first_step, max_steps):
    if step == spell_steps > 0:  # from here on losses are nats per whole token
        for i in range(len(speller.tokens), len(tok.tokens)):
            model.start_from_pieces(i, speller.spell(tok.tokens[i]))
    sums = torch.zeros(3, 2, device=dev)  # nats and targets of each kind
    for microbatch in trainer.own:
        kind = kind_of(step * grad_accum + microbatch)
        batch = get_batch(step, microbatch, kind)
        loss = model(**batch, loss_reduction="sum")
        loss.backward()
        sums[kind] += torch.stack([loss.detach(), (batch["targets"] >= 0).sum()])
        trainer.places += batch["idx"].numel()
        if kind != TEXT:
            trainer.places += batch["audio_lens"].sum()
    trainer.update(step, sums)

trainer.finish()
