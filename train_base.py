"""Pretrain the GPT on text, with listening practice: reading stretched, noisy token embeddings as it will read audio;
then, in a run that begins with that one, teach it conversations.

    python train_base.py config/cpu_base.py                                  # 2 cores
    python train_base.py config/base_d12.py                                  # documents, one GPU
    torchrun --standalone --nproc_per_node=8 train_base.py config/base_d12.py
    python train_base.py config/cpu_base.py --init_from=resume               # go on from the last checkpoint
    python train_base.py config/cpu_chat.py                                  # a base learns to hold conversations
"""
import json
import math
import os
import time
from collections import Counter

import numpy as np
import torch
import torch.distributed as dist

from configurator import configure, fail, user_input
from conversations import Conversations, made
from data import batch_indices
from decode import generate
from documents import Documents
from files import read_jsonl, read_lines, sha256_file, write_json
from checkpoints import checkpoint_steps, cut_back, load_checkpoint, load_saved, read_meta
from device import compute_dtype, peak_flops
from kernels import norm
from model import GPT, GPTConfig
from optim import gpt_optimizers, load_optimizers
from record import provenance
from checkpoints import note_evaluation, save_checkpoint
from run import is_due, join_ranks, last_step, leave_ranks, log, lr_share, stop_if_done
from tokenizer import BPETokenizer, chat_prompt, export_nanochat, load_tokenizer, render_conversation, train_bpe
from transcripts import plain_text, spoken_turns

# config: every value here can be set from a config file or as --name=value
out_dir = "out/base_d4"
data_dir = "data/text"  # train.txt and val.txt of prepare_text.py, a sentence a line
init_from = "auto"      # scratch; resume (the last checkpoint of out_dir); auto: resume if there is one, else scratch;
#                         or another run's folder, of ours or nanochat's, whose model and tokenizer it begins with
documents = ""          # folder of prepare_text.py --documents, which are the plain text then; '': the sentences
keep_rest = False       # documents longer than a row go on in another; False: they are cut there, as nanochat's are
conversations = ""      # folder of prepare_chat.py, whose answers are learnt in place of plain text; '': none
conversation_share = 1.0  # of the microbatches of plain text; the others stay, against forgetting
max_lines = 0           # sentences of train.txt to read; 0: all
# model
depth = 4               # the one dial: n_embd is 64*depth rounded up to a multiple of head_dim
head_dim = 64
vocab_size = 2048
sequence_len = 256      # the longest window, and the limit of a row is 10 times that
window_pattern = "L"
# batch: one step is grad_accum microbatches, whatever the number of GPUs
batch_size = 64         # rows per microbatch; the value to lower on out-of-memory
grad_accum = 2          # microbatches per step over all ranks; a multiple of the world size; 0: follows from depth
text_len = 64           # tokens of a row of plain text
# listening practice: embeddings of the sentence's pieces, imitating audio, before the sentence
practice = 0.7          # share of microbatches that practise; the others are plain text
ease_steps = 200        # its disturbances grow from nothing to full over so many steps
chats = ""              # chats.jsonl of prepare_instruct.py, about sentences that are imitated as recordings; '': none
chat_share = 0.4        # of the practice microbatches: asked what was heard, from the first step on (or it unlearns)
chat_rows = 32          # per microbatch of chats, whose rows are long
slip_share = 0.1        # share of the text's tokens, as the model reads them, that are wrong: it must trust its ears
practice_vocab = 512    # a recording is spelled with so much of the vocabulary (256: letters): speech has no words
spell_share = 0.15      # of lr_decay_steps, at the start: text is spelled so too, and it hears sooner (needs practice)
stretch = 4             # a token is repeated 1 to so many times
blank_share = 0.25      # share of tokens with 1-2 blanks before them; 0-2 blanks stand at both ends
swap_share = 0.04       # share of tokens replaced by a random one
blend_share = 0.3       # share of places blended with the place before
rival_share = 0.5       # share of tokens mixed with a random other one, as if misheard
rival_weight = 0.7      # of 0 to so much, the same through all of a token's repeats
noise = 0.6             # Gaussian noise of 0 to so much, drawn per row; rows are brought back to RMS 1
# what trains
max_steps = 1000        # when to stop; 0: follows from depth
lr_decay_steps = 1000   # when the schedule ends; 0: with max_steps
tokens_per_weight = 12.0  # of matrices and lm_head: the horizon that follows from depth
lr_scale = 1.0          # of all rates; 0: (tokens of a step / 2**19) ** 0.5, as nanochat's are tuned at 2**19
weight_decay = 0.0      # of the matrices; falls to nothing by a cosine
warmup_steps = 20
warmdown_share = 0.5    # of lr_decay_steps: the linear fall at the end
final_lr_share = 0.02   # of the peak, at the schedule's end
matrix_lr = 0.02        # Muon, for the blocks' matrices
embedding_lr = 0.2      # AdamW; this and the next scale with (n_embd / 768) ** -0.5, as nanochat's
unembedding_lr = 0.004
grad_clip = 1.0         # 0: off
recompute = False       # blocks anew in the backward pass: less memory, a third more time
# the rest
eval_every = 250        # steps; 0: at the end only
save_every = 250
log_every = 10
eval_rows = 512         # of held-out documents
sample_tokens = 40      # of a text that each evaluation prints; 0: none
device = "auto"
use_compile = True
wandb_log = False       # project nanochat-omni-base; WANDB_MODE=offline works
seed = 0
config = configure(globals())  # prints each change; stored in every checkpoint
# -----------------------------------------------------------------------------
def follow_depth():
    """-> steps of the schedule, microbatches a step, scale of the rates, weight decay: what depth asks for where 0.

    As nanochat (2026-07) scales its d12: 12 tokens a weight; a step's tokens grow with the horizon's 0.383th power
    (arXiv:2505.13738), rates with their root, and weight decay so that lr * decay * steps stays (arXiv:2405.13698).
    Other than there decay is not cautious, and as strong for tall matrices as for others.
    """
    V = load_tokenizer(documents).vocab_size if documents else vocab_size
    known = out_dir if init_from != "scratch" and checkpoint_steps(out_dir) else first
    shape = read_meta(known)["model_config"] if known else vars(GPTConfig.of_depth(depth, V, head_dim=head_dim))
    d12, C = 12 * 12 * 768**2 + shape["vocab_size"] * 768, shape["n_embd"]
    larger = (12 * shape["n_layer"] * C**2 + shape["vocab_size"] * C) / d12
    n = grad_accum or max(round(2 ** round(math.log2(2**19 * larger**0.383)) / batch_size / text_len), 1)
    scale = lr_scale or (n * batch_size * text_len / 2**19) ** 0.5
    steps = lr_decay_steps or max(int(tokens_per_weight * larger * d12 / (n * batch_size * text_len)), 1)
    return steps, n, scale, weight_decay if lr_scale else weight_decay * scale / larger


begun = os.path.join(out_dir, "begun.json")  # {"init_from": the folder whose model the run began with, or ""}
first = "" if init_from in ("scratch", "resume", "auto") else init_from
if init_from == "resume" and os.path.isfile(begun):
    with open(begun) as f:
        first = json.load(f)["init_from"]
is_new = not first
if min(depth, batch_size, text_len, head_dim) < 1 or min(max_steps, lr_decay_steps, grad_accum, lr_scale) < 0 or (
        text_len > 10 * sequence_len or tokens_per_weight <= 0):
    fail("depth, batch_size, text_len, head_dim are 1 or more; max_steps, lr_decay_steps, grad_accum, lr_scale 0 or "
         "more; tokens_per_weight above 0; text_len at most 10 times sequence_len")
if init_from not in ("scratch", "resume", "auto") and not os.path.isdir(init_from):
    fail(f"init_from={init_from}: use scratch, resume, auto or the folder of a run")
try:  # settings of 0 get their values here; config keeps them as given
    lr_decay_steps, grad_accum, lr_scale, weight_decay = follow_depth()
    max_steps = max_steps or lr_decay_steps
except ValueError as e:
    fail(e)
spell_steps = round(spell_share * lr_decay_steps) if practice and is_new else 0
TEXT, PRACTICE, CHATS, ANSWERS = range(4)  # kinds of microbatches
BLANK = np.array([-1.0, -1.0, 0.0])  # a place of an imitated recording without a token
if not (0 <= practice <= 1 and 0 <= spell_share <= 1 and spell_steps < max_steps) or practice_vocab < 256:
    fail(f"{practice=} and {spell_share=} are shares of 0 to 1, spelling ends before {max_steps=} (now at step "
         f"{spell_steps}), and {practice_vocab=} is at least the 256 bytes")
if (min(stretch, save_every, log_every, chat_rows, eval_rows) < 1 or not 0 <= chat_share <= 1
        or not 0 < conversation_share <= 1
        or min(seed, matrix_lr, embedding_lr, unembedding_lr, grad_clip, sample_tokens, weight_decay) < 0):
    fail("stretch, save_every, log_every, chat_rows, eval_rows are 1 or more; seed, grad_clip, matrix_lr, "
         "embedding_lr, unembedding_lr, sample_tokens, weight_decay 0 or more; chat_share 0 to 1; "
         "conversation_share 0 to 1, but not 0")


# ---- data

def read_sentences(name, limit=0):
    """Read sentences of data_dir/<name>.txt; a missing or empty file is the user's mistake."""
    path = os.path.join(data_dir, name + ".txt")
    if not os.path.isfile(path):
        fail(f"{path}: no such file: run prepare_text.py first")
    with user_input():
        lines = [line for line in read_lines(path) if line][:limit or None]
    return lines or fail(f"{path} holds no sentence: run prepare_text.py again")


def tokenize(lines, tokenizer):
    """Sentences -> ids int32 (N,), starts int64 (n_sentences + 1,), rows int32 (n_rows, text_len + 1).

    Sentence i is ids[starts[i]:starts[i + 1]]; rows cut the stream <|bos|> sentence <|bos|> sentence ...
    """
    each = [tokenizer.encode(line) for line in lines]
    starts = np.cumsum([0] + [len(ids) for ids in each])
    ids = np.concatenate(each).astype(np.int32)
    stream = np.insert(ids, starts[:-1], tok.bos_id)  # the model's, whichever tokenizer
    width = min(text_len, len(stream) - 1)
    n_rows = (len(stream) - 1) // width
    return ids, starts, np.lib.stride_tricks.sliding_window_view(stream, width + 1)[:n_rows * width:width]


def sentence_rows(ids, starts, at):
    """Pad sentences `at` (B,) to one width: (idx, targets), int64 (B, T) each; bos, text | text, bos."""
    lens = starts[at + 1] - starts[at]
    rows = np.full((len(at), lens.max() + 2), tok.bos_id, dtype=np.int64)
    for row, start, n in zip(rows, starts[at], lens):
        row[1:n + 1] = ids[start:start + n]
    targets = np.where(np.arange(rows.shape[1] - 1) <= lens[:, None], rows[:, 1:], -1)
    return rows[:, :-1], targets


def read_chats(limit):
    """-> {split: [(sentence in pieces, messages)], (split, "sizes"): int (N,)}; ValueError names a line of chats.

    A chat that could take over `limit` positions, its imitated recording included, is left out and counted.
    """
    rows, n_long, unspoken = {"train": [], "val": []}, 0, Counter()
    for where, row in read_jsonl(chats, split=str, text=str, turns=list):
        try:
            turns = [(str(task), str(question), str(answer)) for task, question, answer in row["turns"]]
            split = rows[row["split"]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{where}: "split" is train or val, "turns" are [task, question, answer]') from None
        messages, heard = [], np.array(speller.encode(row["text"]))
        for _, *turn in spoken_turns(turns, unspoken):
            messages += [{"role": role, "content": plain_text(text)} for role, text in zip(("user", "assistant"), turn)]
        if not messages:
            continue
        n_places = (stretch + 2) * len(heard) + 4 + len(render_conversation(speller, {"messages": messages})[0])
        if n_places > limit:
            n_long += 1
        else:
            split.append((heard, messages))
    if rank == 0:
        unspoken[f"over {limit} positions"] = n_long
        for reason, n in unspoken.items():
            if n:
                print(f"{chats}: left out: {n:,}, {reason}")
    if not min(map(len, rows.values())):
        raise ValueError(f"{chats} has no chat for train or val: run prepare_instruct.py again")
    for split in list(rows):
        rows[split, "sizes"] = np.array([sum(len(m["content"]) for m in messages) for _, messages in rows[split]])
    return rows


def read_rows(split, at, units):
    """Chats `at` (B,) -> (idx, targets) as sentence_rows gives them; text in 'tokens' or 'pieces'."""
    tokenizer, rows = tok if units == "tokens" else speller, []
    for i in at:
        ids, mask = map(np.array, render_conversation(tokenizer, {"messages": talks[split][i][1]}))
        ids = np.where(ids >= tokenizer.bos_id, ids - tokenizer.bos_id + tok.bos_id, ids)  # the special ones are last
        rows.append((ids, np.where(mask, ids, -1)))
    width = max(len(ids) for ids, _ in rows)
    pad = lambda row, value: np.pad(row, (0, width - len(row)), constant_values=value)
    return (np.stack([pad(ids, tok.bos_id)[:-1] for ids, _ in rows]),
            np.stack([pad(targets, -1)[1:] for _, targets in rows]))


def spelled(split, at):
    """Sentences `at` in pieces: a list of arrays."""
    ids, starts, _ = text[split, "pieces"]
    return [ids[starts[i]:starts[i + 1]] for i in at]


def imitate_audio(sentences, rng, ease=1.0):
    """Stretch sentences, arrays of pieces, as speech would: places that each name a token or a blank.

    ease: 0 to 1, how far disturbed. Returns places (B, T_a, 3) float32: a token, its rival and the rival's weight,
    the tokens -1 at a blank, and lens (B,).
    """
    out = []
    for ids in sentences:
        n = len(ids)
        ids = np.where(rng.random(n) < ease * swap_share, rng.choice(spelling, n), ids)
        weight = np.where(rng.random(n) < ease * rival_share, rng.random(n) * rival_weight, 0)
        tokens = np.stack([ids, rng.choice(spelling, n), weight], 1)  # (n, 3)
        blanks = np.where(rng.random(n) < blank_share, rng.integers(1, 3, n), 0)
        blanks[0], last = rng.integers(0, 3, 2)
        places = np.stack([np.broadcast_to(BLANK, (n, 3)), tokens], 1).reshape(-1, 3)  # blank, token, blank, token ...
        repeats = np.stack([blanks, rng.integers(1, stretch + 1, n)], 1).reshape(-1)
        out.append(torch.from_numpy(np.concatenate([places.repeat(repeats, axis=0), np.tile(BLANK, (last, 1))])))
    return torch.nn.utils.rnn.pad_sequence(out, batch_first=True).float(), torch.tensor([len(o) for o in out])


def practice_features(places, rng, ease=1.0):
    """Embed imitated recordings: places (B, T_a, 3) of imitate_audio -> (B, T_a, C), blended, noisy, of RMS 1."""
    draw = lambda *shape: torch.from_numpy(rng.random(shape, dtype=np.float32)).to(device)
    tokens, weight = places[..., :2].long().to(device), places[..., 2:].to(device)
    x = norm(model.transformer.wte(tokens.clamp(min=0)))  # (B, T_a, 2, C)
    x = torch.lerp(x[:, :, 0], x[:, :, 1], weight)
    x = torch.where(tokens[..., :1] < 0, norm(blank), x)
    before = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    share = (draw(*x.shape[:2], 1) < ease * blend_share) * 0.5 * draw(*x.shape[:2], 1)  # up to half of the place before
    x = norm(torch.lerp(x, before, share))
    gaussian = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)).to(device)
    return norm(x + ease * noise * draw(len(x), 1, 1) * gaussian)


def kind_of(n):
    """What microbatch n of the run is: TEXT, PRACTICE, CHATS or ANSWERS, spread evenly."""
    is_due = lambda n, share: math.floor((n + 1) * share) > math.floor(n * share)
    if not is_due(n, practice):
        return ANSWERS if said and is_due(n - math.floor(n * practice), conversation_share) else TEXT
    return CHATS if talks and is_due(math.floor(n * practice), chat_share) else PRACTICE


def get_batch(split, step, microbatch, kind):
    """A microbatch is a function of (seed, split, step, microbatch): the arguments of model.forward."""
    key = (seed, split, step, microbatch)
    rng = np.random.default_rng([seed, split == "train", step, microbatch])
    to = lambda a: torch.from_numpy(np.ascontiguousarray(a, dtype=np.int64)).to(device)
    units, ease = "pieces" if step < spell_steps else "tokens", min((step + 1) / max(ease_steps, 1), 1.0)
    if kind == TEXT and docs and units == "tokens":
        rows = docs[split].batch(step * grad_accum + microbatch, batch_size, seed)
        return dict(idx=to(rows[:, :-1]), targets=to(rows[:, 1:]))
    if kind == ANSWERS:
        n = len(said[split].rows)
        at = batch_indices(np.ones(n, np.int32), *key, min(batch_size, n), grad_accum)
        return dict(zip(("idx", "targets"), map(to, said[split].batch(at))))
    ids, starts, rows = text[split, units]
    if kind == TEXT:
        at = batch_indices(np.ones(len(rows), np.int32), *key, min(batch_size, len(rows)), grad_accum)
        return dict(idx=to(rows[at][:, :-1]), targets=to(rows[at][:, 1:]))
    if kind == CHATS:
        sizes = talks[split, "sizes"]
        at = batch_indices(sizes, *key, min(chat_rows, len(sizes)), grad_accum)
        heard = [talks[split][i][0] for i in at]
        idx, targets = read_rows(split, at, units)
    else:
        at = batch_indices(np.diff(starts), *key, min(batch_size, len(starts) - 1), grad_accum)
        heard = spelled(split, at)
        idx, targets = sentence_rows(ids, starts, at)
        slips = (rng.random(idx.shape) < ease * slip_share) & (idx != tok.bos_id)
        idx = np.where(slips, rng.choice(ids, idx.shape), idx)
    places, audio_lens = imitate_audio(heard, rng, ease)
    return dict(idx=to(idx), targets=to(targets), audio_features=practice_features(places, rng, ease),
                audio_lens=audio_lens.to(device))


# ---- data > model, optimizer, resume

FORMATS = {"step": "6d", "loss": ".4f", "practice_loss": ".4f", "lr": ".2e", "norm": ".2f", "ms": ".0f",
           "chat_loss": ".4f", "tok/s": ",.0f", "mfu": ".1%", "eta_min": ".1f", "val_bpb": ".4f", "val_ppl_word": ".2f",
           "val_practice": ".4f", "val_right": ".1%", "answer_loss": ".4f", "val_answer_bpb": ".4f",
           "val_letters": ".1%"}
rank, world_size, device = join_ranks(device, seed)
if grad_accum % world_size:
    fail(f"{grad_accum=} is no multiple of the {world_size} ranks")
os.makedirs(out_dir, exist_ok=True)
has_text = not conversations or conversation_share < 1
reads_sentences = practice or not documents and (has_text or is_new)  # a new run's tokenizer is made of them
lines = {"train": read_sentences("train", max_lines), "val": read_sentences("val")} if reads_sentences else {}
with user_input():
    inputs = {"text": [sha256_file(os.path.join(data_dir, f"{split}.txt")) for split in lines],
              "chats": sha256_file(chats) if chats and os.path.isfile(chats) else "",
              "conversations": made(conversations) if conversations else "",
              "documents_json": sha256_file(os.path.join(documents, "documents.json")) if documents else "",
              "first_model": read_meta(first).get("sha256", {}) if os.path.isdir(first) else "",
              "schedule": lr_decay_steps,
              "microbatches": grad_accum}
first_step = last_step(out_dir, init_from, config, inputs)
stop_if_done(out_dir, first_step, max_steps, "tokenizer.json")
made_by = provenance(device)
source = out_dir if first_step else first or documents  # of the tokenizer
with user_input():
    shards_tok = sha256_file(os.path.join(documents, "tokenizer.json")) if documents else ""
    docs = {split: Documents(documents, split, text_len + 1, shards_tok, keep_rest)
            for split in ("train", "val")} if documents else {}
    if documents and source != documents and load_tokenizer(documents).pieces != load_tokenizer(source).pieces:
        fail(f"{documents} was made with another tokenizer than {source}'s: prepare_text.py --tokenizer={source}")
    tok = load_tokenizer(source) if source else train_bpe(lines["train"], vocab_size)
speller = BPETokenizer(tok.tokens[256:practice_vocab])
text = {(split, units): tokenize(lines[split], tokenizer) for split in lines
        for units, tokenizer in (("tokens", tok), ("pieces", speller))}
with user_input():
    said = {split: Conversations(conversations, split, tok, text_len + 1)
            for split in ("train", "val")} if conversations else {}
spelling = np.unique(text["train", "pieces"][0]) if lines else []  # the pieces that occur

meta = {}
if first_step or first:
    with user_input():
        model, meta = load_checkpoint(out_dir if first_step else first, device=device)
else:
    with torch.device(device):
        model = GPT(GPTConfig.of_depth(depth, tok.vocab_size, sequence_len, head_dim, window_pattern))
with user_input():
    talks = read_chats(model.cos.size(0)) if chats and practice else {}
is_evaluated = True  # False: killed between a checkpoint and its evaluation
if first_step and is_due(first_step, eval_every, max_steps):
    is_evaluated = meta.get("evaluated", True)
if rank == 0:  # now that the inputs have been read, an earlier run may go
    write_json(begun, {"init_from": first})
    cut_back(out_dir, first_step, is_evaluated)
    export_nanochat(tok, out_dir)  # so that nanochat loads what is trained here
    tok.save(out_dir)
blank = torch.nn.Parameter(torch.randn(model.config.n_embd, device=device))  # training state, not the model's
model.recompute = recompute
optimizers = gpt_optimizers(model, lr_scale * matrix_lr, lr_scale * embedding_lr, lr_scale * unembedding_lr,
                            lr_scale * 0.01, weight_decay, more=[blank])
for group in (g for o in optimizers for g in o.param_groups):
    group["peak_lr"], group["peak_decay"] = group["lr"], group["weight_decay"]
trained = [p for o in optimizers for g in o.param_groups for p in g["params"]]
window = torch.zeros(8, device=device)  # sums since the last line of the log: nats and targets, of each kind
if first_step:
    with user_input(RuntimeError, KeyError):  # files cut short, or of another kind of run
        state = load_saved(out_dir, meta, "optim", device)
        blank.data.copy_(state["blank"])
        window.copy_(state.get("window", window))
        spell_steps = state.get("spell_steps", 0)  # as planned when the run began, whatever the schedule is now
        load_optimizers(optimizers, state["optimizers"])
plain_trunk = model.trunk  # evaluation has other shapes and a cache: not worth compiling
fast_trunk = torch.compile(model.trunk, dynamic=True if practice else None) if use_compile else plain_trunk
model.nll = torch.compile(model.nll) if use_compile else model.nll
token_bytes = torch.tensor(tok.token_bytes(), device=device)
peak = world_size * peak_flops(device)
if rank == 0:
    if wandb_log:
        import wandb
        wandb.init(project="nanochat-omni-base", name=os.path.basename(out_dir), config=config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {device}, {compute_dtype(device)}, "
          f"{world_size} ranks, "
          f"{max_steps} steps of {lr_decay_steps}, each {grad_accum} x {batch_size} rows, rates x {lr_scale:.3g}, "
          f"decay {weight_decay:.3g}")
    for split, rows in docs.items():
        print(f"{split}: {rows.n_docs:,} documents, {rows.n_tokens:,} tokens in {rows.n_rows:,} rows of {text_len}, "
              f"{rows.n_cropped:,} ({rows.share:.1%}) cropped")
    for split, talk in said.items():
        print(f"{split}: {len(talk.each):,} conversations in {len(talk.rows):,} rows of {text_len}, {talk.n_tokens:,} "
              f"tokens, {talk.n_answers:,} of answers; {talk.n_cropped:,} cropped, {talk.n_dropped:,} left out")
    print("".join(f"{split}: {len(lines[split]):,} sentences, {len(text[split, 'tokens'][0]):,} tokens; "
                  for split in lines) + f"starting at step {first_step}"
          + f"; text in pieces until step {spell_steps}, where losses jump" * (first_step < spell_steps))


# ---- evaluate()

@torch.no_grad()
def evaluate(units):
    """Held-out text: what evaluate_sentences finds, bits per byte of documents (or sentences) and answers, a sample."""
    model.eval()
    result = {"val_bpb": bits_per_byte(docs["val"].n_rows, document_rows)} if docs else {}
    if said:
        result["val_answer_bpb"] = bits_per_byte(len(said["val"].rows), said["val"].batch)
    model.trunk = plain_trunk
    result = (evaluate_sentences(units) if lines else {}) | result | (count_letters() if said else {})
    if rank == 0 and sample_tokens:
        prompt, ends = [tok.bos_id], ()
        if said:
            prompt, ends = chat_prompt(tok, [], "Who are you?"), [tok.special("<|assistant_end|>")]
        sample = generate(model, [prompt], max_tokens=min(sample_tokens, sequence_len), temperature=0.8, top_k=50,
                          stop_ids=ends, seed=seed)
        print("  " + tok.decode([ids[0] for ids in sample]).replace("\n", "\\n"))  # pieces have the same ids
    model.train()
    model.trunk = fast_trunk
    return result


def document_rows(at):
    """Rows `at` of held-out documents -> (idx, targets), int64 (B, text_len) each."""
    rows = docs["val"].rows(at)
    return rows[:, :-1], rows[:, 1:]


def bits_per_byte(n_rows, get_rows):
    """Of the targets of the first eval_rows of n_rows rows; special tokens don't count, as nanochat's."""
    nats, total_bytes, n = 0.0, 0.0, min(eval_rows, n_rows)
    for i in range(rank * batch_size, n, world_size * batch_size):
        at = np.arange(i, i + batch_size)
        idx, targets = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in get_rows(at % n_rows))
        targets[at >= n] = -1  # the last batch is filled up, as another shape would be compiled anew
        n_bytes = token_bytes[targets.clamp(min=0).flatten()] * (targets.flatten() >= 0)
        each = model(idx, targets, loss_reduction="none")
        nats, total_bytes = nats + (each * (n_bytes > 0)).sum().item(), total_bytes + n_bytes.sum().item()
    if world_size > 1:
        dist.all_reduce(sums := torch.tensor([nats, total_bytes], dtype=torch.float64, device=device))
        nats, total_bytes = sums.tolist()
    return nats / max(total_bytes, 1) / math.log(2)


def count_letters():
    """The share of held-out multiple choice, eval_rows at most, where the right letter is the likeliest of them."""
    asked, found = said["val"].questions[:eval_rows], torch.zeros(2, device=device)
    for i in range(rank * chat_rows, len(asked), world_size * chat_rows):
        questions, letters, right = zip(*asked[i:i + chat_rows])
        idx = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids, device=device) for ids in questions], True)
        logits = model(idx, logits_at=torch.tensor([len(ids) - 1 for ids in questions], device=device))[:, 0]
        best = logits.gather(1, torch.tensor(letters, device=device)).argmax(1)
        found += torch.tensor([(best == torch.tensor(right, device=device)).sum(), len(right)], device=device)
    if world_size > 1:
        dist.all_reduce(found)
    return {"val_letters": (found[0] / found[1]).item()} if found[1] else {}


def evaluate_sentences(units):
    """Sentences in 'tokens' or 'pieces': bits per byte and perplexity per word alone, and the loss listening."""
    nats = torch.zeros(4, device=device)  # plain nats, practice nats, practice targets, words
    n_bytes, (ids, starts, _) = 0, text["val", units]
    batches = np.array_split(np.argsort(np.diff(starts), kind="stable"), -(-(len(starts) - 1) // batch_size))
    for i, at in enumerate(batches):
        n_bytes += sum(len(lines["val"][j].encode()) + 1 for j in at)  # the sentence and its end
        if i % world_size != rank:
            continue
        idx, targets = (torch.from_numpy(a).to(device) for a in sentence_rows(ids, starts, at))
        rng = np.random.default_rng([seed, i])
        places, audio_lens = imitate_audio(spelled("val", at), rng)
        nats[0] += model(idx, targets, loss_reduction="sum")
        nats[1] += model(idx, targets, loss_reduction="sum", audio_features=practice_features(places, rng),
                         audio_lens=audio_lens.to(device))
        nats[2] += (targets >= 0).sum()
        nats[3] += sum(len(lines["val"][j].split()) for j in at)
    asked = count_right(units) if talks else torch.ones(2, device=device)
    if world_size > 1:
        dist.all_reduce(nats)
        dist.all_reduce(asked)
    (plain, heard, n_targets, n_words), (n_right, n_asked) = nats.tolist(), asked.tolist()
    return {"val_bpb": plain / math.log(2) / n_bytes, "val_ppl_word": math.exp(plain / n_words),
            "val_practice": heard / n_targets, **({"val_right": n_right / n_asked} if talks else {})}


def count_right(units):
    """Of this rank's share of val's chats: (questions of which every token of the answer is the likeliest, all)."""
    found = torch.zeros(2, device=device)
    for i in range(rank * chat_rows, len(talks["val"]), world_size * chat_rows):
        at = range(i, min(i + chat_rows, len(talks["val"])))
        idx, targets = (torch.from_numpy(a).to(device) for a in read_rows("val", at, units))
        rng = np.random.default_rng([seed, i])
        places, audio_lens = imitate_audio([talks["val"][k][0] for k in at], rng)
        logits = model(idx, audio_features=practice_features(places, rng), audio_lens=audio_lens.to(device))
        on, wrong = targets >= 0, (targets >= 0) & (logits.argmax(2) != targets)
        answer = (on & ~torch.nn.functional.pad(on, (1, 0))[:, :-1]).cumsum(1) * on  # the number of the row's answer
        n = int(answer.max()) + 1
        failed = torch.zeros(len(idx), n, device=device).scatter_add_(1, answer, wrong.float())[:, 1:] > 0
        n_asked = answer.max(1).values.sum()
        found += torch.stack([n_asked - failed.sum(), n_asked])
    return found


def save(step):
    """Write the checkpoint of a step."""
    state = {"blank": blank.data, "spell_steps": spell_steps, "window": window,
             "optimizers": [o.state_dict() for o in optimizers]}
    meta = {"model_config": vars(model.config), "max_seq_len": text_len, "device_batch_size": batch_size,
            "chats": bool(talks or said), "conversations": bool(said), "user_config": config, "inputs": inputs,
            "versions": made_by}
    save_checkpoint(out_dir, step, {"model": model.state_dict(), "optim": state}, meta)


def evaluate_at(step):
    """Evaluate, log it, and note it in the step's checkpoint; returns the result."""
    result = evaluate("pieces" if step <= spell_steps else "tokens")
    log(out_dir, {"step": step, **result}, FORMATS, wandb_log)
    note_evaluation(out_dir, step, result, "val_answer_bpb" if said else "val_bpb")
    return result


# ---- loop

model.train()
model.trunk = fast_trunk
result = {} if is_evaluated else evaluate_at(first_step)
began, t0, n_places = time.time(), time.time(), 0
for step in range(first_step, max_steps):
    share = lr_share(step, warmup_steps, lr_decay_steps, warmdown_share, final_lr_share)
    if step == spell_steps > 0:  # from here on losses are nats a whole token
        for i in range(practice_vocab, len(tok.tokens)):
            model.start_from_pieces(i, speller.spell(tok.tokens[i]))
    sums = torch.zeros(8, device=device)  # nats and targets, of each kind
    for microbatch in range(rank, grad_accum, world_size):
        kind = kind_of(step * grad_accum + microbatch)
        batch = get_batch("train", step, microbatch, kind)
        loss = model(**batch, loss_reduction="sum")
        loss.backward()
        sums[2 * kind] += loss.detach()
        sums[2 * kind + 1] += (batch["targets"] >= 0).sum()
        n_places += batch["idx"].numel() + int(sum(batch.get("audio_lens", [])))
    if world_size > 1:
        dist.all_reduce(sums)
        for p in (p for p in trained if p is not blank or sums[3] + sums[5]):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # a rank may have had no practice
            dist.all_reduce(p.grad)
    n_targets = sums[1::2].sum()
    window += sums
    for p in trained:
        if p.grad is not None:
            p.grad /= n_targets
    total_norm = torch.nn.utils.clip_grad_norm_(trained, grad_clip or math.inf)
    if not math.isfinite(total_norm.item() + sums.sum().item()):
        fail(f"step {step}: the loss or its gradient is not finite; the last good checkpoint stays in {out_dir}")
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak_lr"]
            group["weight_decay"] = group["peak_decay"] * (1 + math.cos(math.pi * min(step / lr_decay_steps, 1))) / 2
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if is_due(step + 1, log_every, max_steps):
        seconds, n_steps = time.time() - t0, min(step % log_every + 1, step + 1 - first_step)
        losses = (window[::2] / window[1::2].clamp(min=1)).tolist()
        if world_size > 1:  # other ranks have had other kinds
            dist.all_reduce(n_places := torch.tensor(float(n_places), device=device))
        rate = float(n_places) / seconds
        record = {"step": step + 1, **({"loss": losses[TEXT]} if has_text else {}),
                  **({"practice_loss": losses[PRACTICE]} if practice else {}),
                  **({"chat_loss": losses[CHATS]} if talks else {}),
                  **({"answer_loss": losses[ANSWERS]} if said else {}), "lr": share * lr_scale * matrix_lr,
                  "norm": total_norm.item(), "ms": 1e3 * seconds / n_steps, "tok/s": rate,
                  "mfu": rate * model.flops_per_token(text_len) / peak,
                  "eta_min": (time.time() - began) / (step + 1 - first_step) * (max_steps - step - 1) / 60}
        log(out_dir, record, FORMATS, wandb_log)
        window.zero_()
        t0, n_places = time.time(), 0
    pause, result = time.time(), {}
    if is_due(step + 1, save_every, max_steps):
        save(step + 1)
    if is_due(step + 1, eval_every, max_steps):
        result = evaluate_at(step + 1)
    t0 += time.time() - pause

if rank == 0:
    print(f"{max(max_steps - first_step, 0)} steps, {(time.time() - began) / 60:.1f} minutes, "
          + ", ".join(f"{k} {v:.4f}" for k, v in result.items()) + f", {out_dir} at {max(max_steps, first_step)}")
leave_ranks()
