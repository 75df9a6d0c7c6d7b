"""Audio instructions, stage W3: teach an aligned model to answer about what it hears, with LoRA on a frozen LM.

    python train_sft.py config/cpu_w3.py                                     # 2 cores: the demo's W3
    python train_sft.py config/w3_lora.py                                    # one GPU
    torchrun --standalone --nproc_per_node=8 train_sft.py config/w3_lora.py
    python train_sft.py config/cpu_w3.py --init_from=resume                  # go on from the last checkpoint
"""
import math
import os
import time
from collections import Counter

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from audio import Projector, load_encoder_file, n_audio_tokens, save_encoder
from configurator import configure, fail, user_input
from data import Features, epoch_batches, load_batch, mean_std, stretched_batch
from decode import transcribe
from files import read_jsonl, read_lines, sha256_file
from checkpoints import cut_back, load_checkpoint, load_saved, read_meta
from device import compute_dtype
from model import add_lora, lora_state, merged_state
from optim import Muon, load_optimizers
from record import need, provenance
from checkpoints import note_evaluation, save_checkpoint, run_sums
from run import (is_due, join_ranks, last_step, leave_ranks, log, lr_share, read_ahead,
                 stop_if_done)
from tokenizer import SPECIAL_TOKENS, load_tokenizer, render_conversation
from transcripts import plain_text, spoken_turns

# config: every value here can be set from a config file or as --name=value
out_dir = "out/w3"
data_dir = "data/instruct/features*2,data/synthetic/features"  # each clip of b*3 counts three times an epoch
turns = "data/instruct/turns.jsonl"  # questions to clips of data_dir by their keys, beside those they bring; '': none
chats = "data/instruct/text.jsonl"   # chats without audio {"question", "answer"}; '': none
text_dir = "data/text"  # train.txt and val.txt: plain sentences, not to forget them, and for bits per byte; '': none
lm = "out/cpu_w2"       # folder of the aligned run that this one goes on from
init_from = "auto"      # scratch; resume (the last checkpoint of out_dir); auto: resume if there is one, else scratch
max_clips = 0           # training clips to use; 0: all
max_audio_s = 30.0      # longer clips are dropped, and counted
# what trains: the projector, and
full = False            # the whole LM; False: LoRA, and the embeddings of the tokens that only chats have
lora_rank = 16
lora_alpha = 32.0       # the product of the LoRA matrices counts alpha/rank times
lora_dropout = 0.0
lora_targets = "attn.c_q,attn.c_k,attn.c_v,attn.c_proj,mlp.c_fc,mlp.c_proj"  # '': no LoRA
# the projector, beside what alignment made of it
taps = ""               # those of the features that are used, comma-separated; '': all
texture = 16            # tokens of how the clip sounds on the whole, in front; 0: none
texture_hidden = 256    # of their MLP
dropout = 0.2           # on the standardized features
plain = True            # questions and answers in lower case without marks, as the LM knows text
# the mix: what prepare_instruct.py made, and of it
transcript_share = 0.4  # so many of the clips with words are written down as in alignment, without a question
task_weights = ""       # of the loss, by task: sentence=0.5,pair=2; else 1
length_power = 0.5      # an answer of n tokens counts n ** (1 - length_power) times one of 1 token
# batch: one step is grad_accum microbatches, whatever the number of GPUs
batch_tokens = 3400     # audio and text tokens per microbatch, padding too; the value to lower on out-of-memory
batch_size = 0          # clips per microbatch at most; 0: any number
grad_accum = 1          # microbatches per step over all ranks; a multiple of the world size
text_rows = 4           # rows without audio per microbatch, of four chats or of four plain sentences; a forward
                        # pass of their own, of at most batch_tokens
learning_rate = 2e-3    # peak, of LoRA and the new tokens
lm_learning_rate = 3e-4  # peak, of the LM when full
projector_lr = 2e-4     # peak, of what alignment trained
texture_lr = 1e-3       # peak, of the texture tokens
texture_muon_lr = 0.0   # peak, for their two matrices by Muon; 0: AdamW
weight_decay = 0.0
grad_clip = 1.0         # each group's gradients are clipped apart; 0: off
max_steps = 1000        # when to stop
lr_decay_steps = 1000   # when the schedule ends
warmup_steps = 20
warmdown_share = 0.6    # of lr_decay_steps: the linear fall at the end
final_lr_share = 0.02   # of the peak, at the schedule's end
# the rest
eval_every = 250        # steps, and before the first; 0: at the end only
eval_clips = 64         # validation clips that are transcribed in each evaluation
save_every = 250
log_every = 10
workers = 0             # threads that read ahead; 0: the step reads for itself, well enough on a CPU
device = "auto"
use_compile = True
wandb_log = False       # project nanochat-omni-audio; WANDB_MODE=offline works
seed = 0
config = configure(globals())  # prints each change; stored in every checkpoint
# -----------------------------------------------------------------------------
if min(max_steps, batch_tokens, grad_accum, eval_clips, save_every, log_every, text_rows, lora_rank) < 1 or texture < 0:
    fail("max_steps, batch_tokens, grad_accum, eval_clips, save_every, log_every, text_rows, lora_rank: 1 or more; "
         "texture: 0 or more")
if not (0 <= dropout <= 0.9 and 0 <= lora_dropout <= 0.9 and 0 <= transcript_share <= 1 and 0 <= length_power <= 1):
    fail(f"{dropout=} and {lora_dropout=} are 0 to 0.9, {transcript_share=} and {length_power=} 0 to 1")
if min(learning_rate, lm_learning_rate, projector_lr, texture_lr, texture_muon_lr, weight_decay, grad_clip, max_clips,
       seed, workers, batch_size) < 0:
    fail("every rate, weight_decay, grad_clip, max_clips, seed, workers and batch_size: 0 or more")
if init_from not in ("scratch", "resume", "auto"):
    fail(f"init_from={init_from}: use scratch, resume or auto")
if lm and os.path.realpath(lm) == os.path.realpath(out_dir):
    fail(f"lm={lm} is out_dir too, whose steps this run would replace: give another --out_dir")


# ---- data

def parse_weights(text):
    """'a=0.5,b=2' -> {a: 0.5, b: 2.0}"""
    try:
        found = {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(",") if part)}
    except ValueError:
        found = {"": 0.0}
    if not all(0 < value < math.inf for value in found.values()):
        fail(f"task_weights={text}: write it as sentence=0.5,pair=2, each above 0")
    return found


def clean(text):
    """Text as the LM reads it; ValueError where it can't."""
    return plain_text(text) if plain else text


def transcript_row(text):
    """-> (ids, weight of each as a target) of a transcript as alignment taught it: <|bos|> text <|bos|>."""
    ids = [tok.bos_id, *tok.encode(text), tok.bos_id]
    return ids, [0.0] + [weights.get("transcript", 1.0) * (len(ids) - 1) ** -length_power] * (len(ids) - 1)


def chat_row(asked):
    """-> (ids, weight of each as a target) of [(task, question, answer), ...]."""
    messages = [{"role": role, "content": text} for _, question, answer in asked
                for role, text in (("user", clean(question)), ("assistant", clean(answer)))]
    ids, mask = render_conversation(tok, {"messages": messages})
    starts = [i for i in range(len(ids)) if mask[i] and not mask[i - 1]]
    row, ends = [0.0] * len(ids), [mask.index(0, start) if 0 in mask[start:] else len(ids) for start in starts]
    for (task, _, _), start, end in zip(asked, starts, ends):
        row[start:end] = [weights.get(task, 1.0) * (end - start) ** -length_power] * (end - start)
    return ids, row


def clip_row(clips, i, rng=None):
    """The row of clip i; given rng, its turns are in random order, or its transcript stands in their place."""
    asked, text = clips.infos[i].get("turns", []), clips.texts[i]
    if not asked or rng and text and rng.uniform() < transcript_share:
        return transcript_row(text)
    return chat_row([asked[k] for k in (rng.permutation(len(asked)) if rng else range(len(asked)))])


def pad_rows(rows):
    """[(ids, weights)] -> idx, targets int64 (B, T), -1 where none, and the targets' weights float32 (B, T)."""
    width = max(len(ids) for ids, _ in rows) - 1
    idx = torch.zeros(len(rows), width, dtype=torch.long)
    targets, row_weights = torch.full_like(idx, -1), torch.zeros(len(rows), width)
    for b, (ids, each) in enumerate(rows):
        n = len(ids) - 1
        idx[b, :n], row_weights[b, :n] = torch.tensor(ids[:-1]), torch.tensor(each[1:])
        targets[b, :n] = torch.where(row_weights[b, :n] > 0, torch.tensor(ids[1:]), -1)
    return idx.to(device), targets.to(device), row_weights.to(device)


def count_tokens(clips, pool):
    """Audio and text tokens of the longest row of each clip of the pool, int32 (N,)."""
    longest = lambda i: max(len(clip_row(clips, i)[0]), len(transcript_row(clips.texts[i])[0]))
    return np.array([n_audio_tokens(clips.lengths[i], stack) + texture + longest(i) for i in pool], dtype=np.int32)


def read_microbatch(n):
    """Read the run's n-th microbatch -> clips (B,), and tensors of features and lens as load_batch returns them."""
    at, _ = stretched_batch(n_tokens["train"], seed, "train", *divmod(n, grad_accum), batch_size, grad_accum,
                            batch_tokens=batch_tokens)
    at = usable["train"][at]
    with user_input():  # a file that is gone or broken
        features = [torch.from_numpy(array) for array in load_batch(data["train"], at)]
    return at, [array.pin_memory() for array in features] if device.type == "cuda" else features


def forward_rows(rows, feats, lens, with_logits=False):
    """Rows with their clips' features: weighted loss, sum of weights, places of padded rows and those filled;
    with_logits in place of the last two logits and targets."""
    idx, targets, row_weights = pad_rows(rows)
    audio, audio_lens = projector(feats.to(device), lens.to(device))
    text_lens = torch.tensor([len(ids) - 1 for ids, _ in rows], device=device)
    out = model(idx, None if with_logits else targets, loss_reduction="none", audio_features=audio,
                audio_lens=audio_lens, text_lens=text_lens, audio_at=audio_at)
    if with_logits:
        each = F.cross_entropy(out.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
        return (each * row_weights.flatten()).sum(), row_weights.sum(), out, targets
    n_places = len(rows) * int((audio_lens + text_lens).max())
    return (out * row_weights.flatten()).sum(), row_weights.sum(), n_places, int((audio_lens + text_lens).sum())


def forward_text(rows):
    """Rows without audio: weighted loss, sum of weights, places of padded rows and those filled."""
    idx, targets, row_weights = pad_rows(rows)
    each = model(idx, targets, loss_reduction="none")
    return (each * row_weights.flatten()).sum(), row_weights.sum(), idx.numel(), sum(len(ids) - 1 for ids, _ in rows)


def draw_text(rng):
    """Draw rows without audio, of chats and of plain sentences in turn, four each: [(ids, weights)]."""
    rows = []
    for k in range(text_rows if talks or sentences else 0):
        if talks and (k % 2 == 0 or not sentences):
            rows.append(chat_row([("text", *talks[i]) for i in rng.integers(len(talks), size=4)]))
        else:
            each = [transcript_row(sentences[i]) for i in rng.integers(len(sentences), size=4)]
            ids = [token for row, _ in each for token in row[:-1]]  # the bos that ends one begins the next
            rows.append(([*ids, tok.bos_id], [0.0, *(w for _, row in each for w in row[1:])]))
    return rows


def read_turns():
    """-> {key: [[task, question, answer], ...]} of the setting turns."""
    rows = {}
    for where, row in read_jsonl(turns, key=str, turns=list) if turns else ():
        try:
            rows[row["key"]] = [[str(text) for text in (task, q, a)] for task, q, a in row["turns"]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{where}: "turns" are lists of [task, question, answer]') from None
    return rows


def read_text():
    """-> (chats [(question, answer)], sentences of train, sentences of val); empty where the setting is ''."""
    talks, lines = [], {"train": [], "val": []}
    for _, row in read_jsonl(chats, question=str, answer=str) if chats else ():
        talks.append([row["question"], row["answer"]])
    for split in lines if text_dir else ():
        path = os.path.join(text_dir, split + ".txt")
        lines[split] = [line.strip() for line in read_lines(path) if line.strip()]
    return talks, lines["train"], lines["val"][:500]


# ---- data > model, optimizer, resume

FORMATS = {"step": "6d", "loss": ".4f", "lr": ".2e", "norm": ".2f", "ms": ".0f", "wait": ".1%", "pad": ".1%",
           "tok/s": ",.0f", "eta_min": ".1f", "val_loss": ".4f", "val_shuffled": ".4f", "gap": ".4f",
           "val_right": ".1%", "val_wer": ".3f", "val_bpb": ".4f", "text_loss": ".4f"}
weights = parse_weights(task_weights)
rank, world_size, device = join_ranks(device, seed)
need("jiwer")
if grad_accum % world_size:
    fail(f"{grad_accum=} is no multiple of the {world_size} ranks")
layers = [int(tap) for tap in taps.split(",")] if taps else None
with user_input():
    start = read_meta(lm)
    if "audio" not in start:
        fail(f"{lm} has no projector: give a run of train_align.py as lm")
    data = {split: Features(data_dir, split, start["audio"]["encoder_sha256"], layers) for split in ("train", "val")}
    more = read_turns()
    talks, sentences, val_sentences = read_text()
    inputs = {"lm": run_sums(lm), "features": data["train"].sums(),
              "text": [sha256_file(os.path.join(text_dir, f"{split}.txt")) for split in ("train", "val") if text_dir],
              **{name: sha256_file(config[name]) if config[name] else "" for name in ("turns", "chats")}}
    os.makedirs(out_dir, exist_ok=True)
first_step = last_step(out_dir, init_from, config, inputs)
stop_if_done(out_dir, first_step, max_steps, "tokenizer.json")
made_by = provenance(device)
audio_at, stack = start["audio"]["audio_at"], start["audio"]["stack"]
with user_input():
    model, _ = load_checkpoint(out_dir if first_step and full else lm, device=device)
    tok = load_tokenizer(lm, model.config.vocab_size)
    encoder = load_encoder_file(os.path.join(lm, "encoder.pt"))
each = {id(info): info for clips in data.values() for info in clips.infos}  # once, if the clip counts thrice
unspoken = Counter()
for info in each.values():
    turns_of_clip = info.get("turns", []) + more.get(info["key"], [])
    if turns_of_clip:
        info["turns"] = spoken_turns(turns_of_clip, unspoken) if plain else turns_of_clip
if plain:
    talks = [turn for _, *turn in spoken_turns([("text", *talk) for talk in talks], unspoken)]
usable, n_tokens = {}, {}
for split, clips in data.items():
    has_words = [bool(text or info.get("turns", ["silence"])) for text, info in zip(clips.texts, clips.infos)]
    usable[split] = np.flatnonzero((np.array(clips.seconds) <= max_audio_s) & np.array(has_words))
usable["val"] = np.array(list({data["val"].keys[i]: i for i in usable["val"]}.values()))  # each clip once
usable["train"] = np.sort(np.random.default_rng(seed).permutation(usable["train"])[:max_clips or None])
for split, clips in data.items():
    n_tokens[split] = count_tokens(clips, usable[split])
    fits = n_tokens[split] <= model.cos.size(0)  # else its row has more places than the model has positions
    usable[split], n_tokens[split] = usable[split][fits], n_tokens[split][fits]
if not min(map(len, usable.values())):
    fail(f"{data_dir} has no clip of {max_audio_s=} or less with words or turns for train or val")
asked_for = {task for clips in data.values() for info in clips.infos for task, *_ in info.get("turns", [])}
if unknown := set(weights) - asked_for - {"transcript", "text"}:
    fail(f"task_weights: {sorted(unknown)[0]} is no task of {data_dir} ({', '.join(sorted(asked_for))})")
most = min(batch_tokens // text_rows, model.cos.size(0)) // 4  # tokens of a chat or sentence of draw_text's fours
n_text = len(talks) + len(sentences)
talks = [talk for talk in talks if len(chat_row([("text", *talk)])[0]) <= most]
sentences = [text for text in sentences if len(transcript_row(text)[0]) <= most]
n_text -= len(talks) + len(sentences)
manifest = data["train"].manifest
arguments = start["audio"]["projector"]
aligned = Projector(**arguments).to(device)
arguments |= dict(n_taps=len(manifest["taps"]), dropout=dropout, texture=texture, texture_hidden=texture_hidden)
projector = Projector(**arguments).to(device)
with user_input(RuntimeError):
    aligned.load_state_dict(load_saved(lm, start, "projector", device))
    if not first_step:
        some = np.random.default_rng(seed).permutation(len(data["train"]))[:300]
        projector.set_stats(*mean_std(load_batch(data["train"], [i])[0][0] for i in some))
        projector.start_from(aligned, manifest["taps"], start["audio"]["taps"])
new_ids = sorted({tok.special(name) for name in SPECIAL_TOKENS[1:]} | {10})  # 10: the line's end between options
if not first_step and start["audio"]["prompt"] != "chat" and not start.get("chats"):
    with torch.no_grad():  # the chat's tokens start as bos, the end of text, which alignment ended with
        for table in (model.transformer.wte, *model.value_embeds.values()):
            table.weight[new_ids] = table.weight[tok.bos_id].clone()
        end = tok.special("<|assistant_end|>")
        model.lm_head.weight[end] = model.lm_head.weight[tok.bos_id]
targets = tuple(name.strip() for name in lora_targets.split(",") if name.strip())
model.requires_grad_(full)
with user_input():
    lora = add_lora(model, lora_rank, lora_alpha, lora_dropout, targets) if targets and not full else []
tables = {name: p for name, p in model.named_parameters() if name.endswith(("wte.weight", "lm_head.weight"))
          or name.startswith("value_embeds")}
if not full:  # of the tables only the rows of new_ids move
    is_new = torch.zeros(len(model.lm_head.weight), 1, device=device)
    is_new[new_ids] = 1
    for p in tables.values():
        p.requires_grad_(True).register_hook(lambda grad: grad * is_new)
n_embd = model.config.n_embd
is_texture = lambda name: name.startswith("texture")
by_kind = {False: [], True: []}
for name, p in projector.named_parameters():
    if p.requires_grad:
        by_kind[is_texture(name)].append(p)
matrices = [p for p in by_kind[True] if texture_muon_lr and p.shape[-1] != n_embd]
by_kind[True] = [p for p in by_kind[True] if all(p is not matrix for matrix in matrices)]
groups = [dict(params=by_kind[False], peak_lr=projector_lr), dict(params=by_kind[True], peak_lr=texture_lr),
          dict(params=lora, peak_lr=learning_rate),
          dict(params=list(model.parameters()) if full else list(tables.values()),
               peak_lr=lm_learning_rate if full else learning_rate, weight_decay=weight_decay if full else 0.0)]
groups = [group for group in groups if group["params"]]
optimizers = [torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)]
if matrices:
    optimizers.append(Muon([dict(params=matrices, peak_lr=texture_muon_lr)], lr=texture_muon_lr))


def adapters():
    """What training changed in the LM, apart: LoRA's matrices and the rows of the new tokens."""
    rows = {f"{name}.rows": p.detach()[new_ids].clone() for name, p in tables.items()}
    return {} if full else {**lora_state(model), **rows, "ids": torch.tensor(new_ids)}


is_evaluated = True  # False: killed between a checkpoint and its evaluation
if first_step:
    with user_input(RuntimeError, KeyError):  # files cut short, or of another kind of run
        meta = read_meta(out_dir)
        projector.load_state_dict(load_saved(out_dir, meta, "projector", device))
        if not full:
            saved = load_saved(out_dir, meta, "lora", device)
            model.load_state_dict({k: v for k, v in saved.items() if "lora" in k}, strict=False)
            with torch.no_grad():
                for name, p in tables.items():
                    p[new_ids] = saved[f"{name}.rows"]
        load_optimizers(optimizers, load_saved(out_dir, meta, "optim", device)["optimizers"])
    is_evaluated = meta.get("evaluated", True) or not is_due(first_step, eval_every, max_steps)
plain_trunk = model.trunk  # evaluation has other shapes and a cache: not worth compiling
fast_trunk = torch.compile(model.trunk, dynamic=True) if use_compile else plain_trunk
if rank == 0:
    if wandb_log:
        import wandb
        wandb.init(project="nanochat-omni-audio", name=os.path.basename(out_dir), config=config)
    cut_back(out_dir, first_step, is_evaluated)
    tok.save(out_dir)
    save_encoder(encoder, os.path.join(out_dir, "encoder.pt"))
    n_all = sum(p.numel() for p in model.parameters())
    n_lm = n_all if full else sum(p.numel() for p in lora) + len(new_ids) * sum(p.shape[1] for p in tables.values())
    print(f"trained: projector {sum(p.numel() for p in projector.parameters()):,}, "
          f"{'LM' if full else 'LoRA and new tokens'} {n_lm:,}; frozen: LM "
          f"{n_all - n_lm:,}; {device}, {compute_dtype(device)}, {world_size} ranks; starting at step {first_step}")
    for split, clips in data.items():
        hours = sum(clips.seconds[i] for i in usable[split]) / 3600
        n_turns = sum(len(clips.infos[i].get("turns", [])) for i in usable[split])
        left_out = len(set(clips.keys)) - len({clips.keys[i] for i in usable[split]})  # a folder may count twice
        print(f"{split}: {len(usable[split]):,} clips, {hours:.2f} h, {n_turns:,} questions; left out: {left_out}")
    if val_sentences:
        print(f"val_bpb: of the first {len(val_sentences)} sentences of {text_dir}/val.txt")
    if n_text:
        print(f"text: {n_text:,} chats or sentences are left out, of more than {most} tokens")
    for reason, n in unspoken.items():
        print(f"left out: {n:,} questions, {reason}")


# ---- evaluate()

def count_right(clips, at, logits, targets, asked, right):
    """Count by task the questions of clips `at`, and the answers of which every token is the likeliest."""
    hits = (logits.argmax(2) == targets).tolist()
    for row, i in enumerate(at):
        is_target = (targets[row] >= 0).tolist()
        starts = [t for t, on in enumerate(is_target) if on and not (t and is_target[t - 1])]
        for (task, question, _), start in zip(clips.infos[i].get("turns", []), starts):
            end = is_target.index(False, start) if False in is_target[start:] else len(is_target)
            task += " of four" if "\n" in question else ""
            asked[task] += 1
            right[task] += all(hits[row][start:end])


@torch.no_grad()
def evaluate():
    """Validation: loss with each clip's own audio and a neighbour's, answers right by task, word error rate, bpb."""
    import jiwer
    model.eval(), projector.eval()
    model.trunk = plain_trunk
    clips, pool = data["val"], usable["val"]
    batches, _ = epoch_batches(n_tokens["val"].tobytes(), seed, "val", 0, 0, 0.0, batch_tokens)  # each by length
    sums, asked, right = torch.zeros(5, device=device), Counter(), Counter()
    # nats, weights; of clips with a neighbour: nats, its nats with the neighbour's audio, weights
    for at in (pool[batch] for batch in batches[rank::world_size]):
        rows = [clip_row(clips, i) for i in at]
        feats, lens = map(torch.from_numpy, load_batch(clips, at))
        true, weight, logits, targets = forward_rows(rows, feats, lens, with_logits=True)
        sums[:2] += torch.stack([true, weight])
        count_right(clips, at, logits, targets, asked, right)
        if len(at) > 1:  # or it would be its own neighbour
            wrong = forward_rows(rows, feats.roll(1, dims=0), lens.roll(1))[0]
            sums[2:] += torch.stack([true, wrong, weight])
    if world_size > 1:
        dist.all_reduce(sums)
        dist.all_gather_object(everyone := [None] * world_size, (asked, right))
        asked, right = (sum(counts, Counter()) for counts in zip(*everyone))
    nats, n, own, wrong, n_paired = sums.tolist()
    result = {"val_loss": nats / n, "val_right": sum(right.values()) / max(sum(asked.values()), 1)}
    if n_paired:
        result |= {"val_shuffled": wrong / n_paired, "gap": (wrong - own) / n_paired}
    if rank == 0:
        print("    right:", ", ".join(f"{task} {right[task]}/{asked[task]}" for task in sorted(asked)))
        spoken = [i for i in pool if clips.texts[i]]
        at = [spoken[k] for k in np.linspace(0, len(spoken) - 1, min(eval_clips, len(spoken))).astype(int)]
        heard, cut = [], []
        for k in range(0, len(at), 32):
            features, lens = load_batch(clips, at[k:k + 32])
            heard += transcribe(model, projector, tok, [f[:m] for f, m in zip(features, lens)], audio_at,
                                cut=cut)
        if at:
            result["val_wer"] = jiwer.wer([clips.texts[i] for i in at], heard)
            result |= {"val_cut": len(cut)} if cut else {}  # transcripts cut off in a loop
        if val_sentences:
            rows = [transcript_row(text) for text in val_sentences]
            idx, targets, _ = pad_rows(rows)
            nats = model(idx, targets, loss_reduction="sum").item()
            result["val_bpb"] = nats / math.log(2) / sum(len(text) + 1 for text in val_sentences)
    model.train(), projector.train()
    model.trunk = fast_trunk
    return result


def save(step):
    """Write the checkpoint of a step: the LM with LoRA merged in, and beside it the adapters alone."""
    audio = start["audio"] | {"projector": projector.arguments, "taps": manifest["taps"], "prompt": "chat",
                              "plain": plain}
    state = {"optimizers": [o.state_dict() for o in optimizers]}
    files = {"model": merged_state(model), "projector": projector.state_dict(), "optim": state}
    files |= {} if full else {"lora": adapters()}
    save_checkpoint(out_dir, step, files, {"model_config": vars(model.config), "audio": audio, "user_config": config,
                                           "inputs": inputs, "versions": made_by})


def evaluate_at(step):
    """Evaluate, log it, and note it in the step's checkpoint; returns the result."""
    result = evaluate()
    log(out_dir, {"step": step, **result}, FORMATS, wandb_log)
    note_evaluation(out_dir, step, result, "val_loss")
    return result


# ---- loop

model.trunk = fast_trunk
result = {}
if not is_evaluated or not first_step and eval_every:
    result = evaluate_at(first_step)  # what alignment alone answers
model.train(), projector.train()
began, wait, t0, n_places, n_padding = time.time(), 0.0, time.time(), 0, 0
mine = [n for n in range(first_step * grad_accum, max_steps * grad_accum) if n % grad_accum % world_size == rank]
reader = read_ahead(read_microbatch, mine, workers)
for step in range(first_step, max_steps):
    share = lr_share(step, warmup_steps, lr_decay_steps, warmdown_share, final_lr_share)
    sums = torch.zeros(4, device=device)  # weighted nats, weights; the same of rows without audio
    for microbatch in range(rank, grad_accum, world_size):
        began_read = time.time()
        at, (feats, lens) = next(reader)
        wait += time.time() - began_read
        torch.manual_seed(hash((seed, step, microbatch)))  # dropout: a function of the microbatch, so resume repeats it
        rng = np.random.default_rng([seed, step, microbatch])
        parts = [forward_rows([clip_row(data["train"], i, rng) for i in at], feats, lens)]
        parts[0][0].backward()
        if text := draw_text(rng):
            parts.append(forward_text(text))
            parts[1][0].backward()
        for k, (loss, weight, n, n_full) in enumerate(parts):
            sums[2 * k:2 * k + 2] += torch.stack([loss.detach(), weight])
            n_places += n
            n_padding += n - n_full
    if world_size > 1:
        dist.all_reduce(sums)
    norms = []
    for group in (g for o in optimizers for g in o.param_groups):
        for p in group["params"]:
            if world_size > 1:
                dist.all_reduce(p.grad)
            p.grad /= sums[1] + sums[3]
        norms.append(torch.nn.utils.clip_grad_norm_(group["params"], grad_clip or math.inf).item())
        group["lr"] = share * group["peak_lr"]
    loss = (sums[0] / sums[1]).item()
    if not math.isfinite(loss + sum(norms)):
        fail(f"step {step}: the loss or its gradient is not finite; clips {[data['train'].keys[i] for i in at]}; "
             f"the last good checkpoint stays in {out_dir}")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if is_due(step + 1, log_every, max_steps):
        seconds, n_steps = time.time() - t0, min(step % log_every + 1, step + 1 - first_step)
        record = {"step": step + 1, "loss": loss, "lr": share * learning_rate, "norm": math.hypot(*norms),
                  "ms": 1e3 * seconds / n_steps, "wait": wait / seconds, "pad": n_padding / n_places,
                  "tok/s": n_places * world_size / seconds,
                  "eta_min": (time.time() - began) / (step + 1 - first_step) * (max_steps - step - 1) / 60}
        if sums[3]:
            record["text_loss"] = (sums[2] / sums[3]).item()
        log(out_dir, record, FORMATS, wandb_log)
        wait, t0, n_places, n_padding = 0.0, time.time(), 0, 0
    pause, result = time.time(), {}
    if is_due(step + 1, save_every, max_steps):
        save(step + 1)
    if is_due(step + 1, eval_every, max_steps):
        result = evaluate_at(step + 1)
    t0 += time.time() - pause

if rank == 0:
    size = 0 if full else sum(t.numel() * t.element_size() for t in adapters().values()) / 1e6
    print(f"{max(max_steps - first_step, 0)} steps, {(time.time() - began) / 60:.1f} minutes, "
          + ", ".join(f"{k} {v:.4f}" for k, v in result.items()) + f", {out_dir} at {max(max_steps, first_step)}"
          + ("" if full else f"; adapters alone {size:.1f} MB"))
leave_ranks()
