"""Audio instructions, W3: LoRA teaches an aligned model to answer about what it hears.

    python train_sft.py config/cpu_w3.py                     # the demo's W3, on 2 cores
    torchrun --standalone --nproc_per_node=8 train_sft.py config/w3_lora.py   # or python, on one GPU
    python train_sft.py config/cpu_w3.py --init_from=resume  # go on from the last checkpoint
"""
import itertools
import math
import os
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F

from audio import Projector, load_ears, n_audio_tokens
from checkpoints import load_checkpoint, load_saved, read_meta, run_sums
from configurator import configure, fail, user_input
from files import read_jsonl, read_lines, sha256_file
from model import add_lora, lora_state, merged_state
from optim import Muon
from record import need
from run import join_ranks, last_step, leave_ranks, stop_if_done, sum_over_ranks
from tokenizer import SPECIAL_TOKENS, load_tokenizer, render_conversation
from trainer import MAX_AUDIO_S, Split, Trainer, check_settings
from transcripts import plain_text, spoken_turns

# config: every value here can be set from a config file or as --name=value
out_dir = "out/w3"
data_dir = "data/instruct/features*2,data/synthetic/features"  # *2: each clip counts twice an epoch
turns = "data/instruct/turns.jsonl"  # questions to clips of data_dir by their keys; '': none
chats = "data/instruct/text.jsonl"   # chats without audio {"question", "answer"}; '': none
text_dir = "data/text"  # train.txt and val.txt: sentences, so that the LM keeps them; '': none
lm = "out/cpu_w2"       # folder of the aligned run that this one goes on from
init_from = "auto"      # scratch; resume: the last checkpoint of out_dir; auto: resume if there is one
lora_rank = 16
texture_hidden = 256    # width of the MLP that makes the texture tokens
transcript_weight = 1.0  # of a transcript in the loss; an answer's is 1
# batch: one step is grad_accum microbatches, whatever the number of GPUs
batch_tokens = 3400     # audio and text tokens per microbatch, padding too; lower it on out-of-memory
grad_accum = 1          # microbatches per step over all ranks; a multiple of the number of ranks
text_rows = 4           # rows without audio per microbatch, each of four chats or four sentences
learning_rate = 2e-3    # peak, of LoRA and the chat's tokens
max_steps = 1000        # when to stop
lr_decay_steps = 1000   # when the schedule ends
warmup_steps = 20
# the rest
eval_every = 250        # steps, and before the first; 0: at the end only
save_every = 250
log_every = 10
device = "auto"
use_compile = True
wandb_log = False       # project nanochat-omni-audio; WANDB_MODE=offline works
seed = 0
config = configure(globals())  # prints each change; stored in every checkpoint
# -----------------------------------------------------------------------------
LORA_ALPHA = 32.0       # the product of the LoRA matrices counts alpha / rank times
TEXTURE = 16            # tokens of how the clip sounds on the whole, before those of its words
DROPOUT = 0.2           # share of the standardized features that is zeroed
PROJECTOR_LR = 2e-4     # peak, of what alignment trained
TEXTURE_LR = 1e-3       # peak, of the texture tokens
TEXTURE_MUON_LR = 0.02  # peak, of their two matrices by Muon
TRANSCRIPT_SHARE = 0.4  # of the clips with words are written down, without a question
LENGTH_POWER = 0.5      # an answer of n tokens counts n ** (1 - LENGTH_POWER) times one of 1 token


# ---- data: a row is (ids, weight of each as a target)

def transcript_row(text):
    """Return the row of a transcript as alignment taught it: <|bos|> text <|bos|>."""
    ids = [tok.bos_id, *tok.encode(text), tok.bos_id]
    n = len(ids) - 1
    return ids, [0.0] + [transcript_weight * n ** -LENGTH_POWER] * n


def chat_row(turns):
    """Return the row of a chat [(task, question, answer), ...]."""
    messages = []
    for _, question, answer in turns:
        messages += [{"role": "user", "content": plain_text(question)},
                     {"role": "assistant", "content": plain_text(answer)}]
    ids, mask = render_conversation(tok, {"messages": messages})
    weights = []
    for is_answer, part in itertools.groupby(mask):
        n = len(list(part))
        weights += [is_answer * n ** -LENGTH_POWER] * n
    return ids, weights


def clip_row(split, i, rng=None):
    """Return clip i's row; with rng its turns are in random order, or it is its transcript's."""
    asked, text = split.infos[i].get("turns", []), split.texts[i]
    if not asked or rng and text and rng.uniform() < TRANSCRIPT_SHARE:
        return transcript_row(text)
    return chat_row([asked[k] for k in (rng.permutation(len(asked)) if rng else range(len(asked)))])


def draw_text(rng):
    """Draw text_rows rows without audio: four chats and four sentences in turn."""
    rows = []
    for k in range(text_rows if talks or sentences else 0):
        if talks and (k % 2 == 0 or not sentences):
            rows.append(chat_row([talks[i] for i in rng.integers(len(talks), size=4)]))
            continue
        ids, weights = [tok.bos_id], [0.0]  # the bos that ends a sentence begins the next
        for i in rng.integers(len(sentences), size=4):
            more, each = transcript_row(sentences[i])
            ids += more[1:]
            weights += each[1:]
        rows.append((ids, weights))
    return rows


def pad_rows(rows):
    """Rows -> ids, targets (-1: none), their weights, (B, T) each, and row lengths (B,)."""
    lens = torch.tensor([len(ids) - 1 for ids, _ in rows])
    idx = torch.zeros(len(rows), int(lens.max()), dtype=torch.long)
    targets, weights = torch.full_like(idx, -1), torch.zeros(idx.shape)
    for b, (ids, each) in enumerate(rows):
        n = len(ids) - 1
        idx[b, :n], weights[b, :n] = torch.tensor(ids[:-1]), torch.tensor(each[1:])
        targets[b, :n] = torch.where(weights[b, :n] > 0, torch.tensor(ids[1:]), -1)
    return [x.to(device) for x in (idx, targets, weights, lens)]


def read_microbatch(n):
    """Read the run's n-th microbatch -> clips (B,), features (B, T, n_taps, D), frames (B,)."""
    at, _ = data["train"].microbatch(n)
    return at, *data["train"].read(at)


def forward_rows(rows, feats=None, lens=None, with_logits=False):
    """Let the GPT read rows, with their clips' features if given.

    Returns the weighted loss, the sum of weights, row lengths (B,); with_logits: logits and
    targets (B, T) too.
    """
    idx, targets, weights, text_lens = pad_rows(rows)
    row_lens, heard = text_lens, {}
    if feats is not None:
        audio, audio_lens = projector(feats.to(device), lens.to(device))
        row_lens = audio_lens + text_lens
        heard = dict(audio_features=audio, audio_lens=audio_lens, text_lens=text_lens,
                     audio_at=ears["audio_at"])
    if with_logits:
        logits = model(idx, **heard)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1,
                               reduction="none")
        more = logits, targets
    else:
        nats, more = model(idx, targets, loss_reduction="none", **heard), ()
    return (nats * weights.flatten()).sum(), weights.sum(), row_lens, *more


def add_turns():
    """Give each clip its questions, and those of the file `turns`, that have a spoken form."""
    more = {}
    for where, row in read_jsonl(turns, key=str, turns=list) if turns else ():
        try:
            more[row["key"]] = [[task, str(q), str(a)] for task, q, a in row["turns"]]
        except (ValueError, TypeError):
            raise ValueError(f'{where}: "turns" are lists of [task, question, answer]') from None
    infos = {id(info): info for info in data["train"].infos + data["val"].infos}  # once a clip
    for info in infos.values():
        if asked := info.get("turns", []) + more.get(info["key"], []):
            info["turns"] = spoken_turns(asked, unspoken)


def read_text():
    """Return chats [("text", question, answer), ...] with a spoken form, and {split: sentences}."""
    talks, lines = [], {"train": [], "val": []}
    for _, row in read_jsonl(chats, question=str, answer=str) if chats else ():
        talks.append(["text", row["question"], row["answer"]])
    for split in lines if text_dir else ():
        texts = map(str.strip, read_lines(os.path.join(text_dir, f"{split}.txt")))
        lines[split] = [text for text in texts if text]
    return spoken_turns(talks, unspoken), lines


# ---- data > model, optimizer, resume

def choose_clips(split, is_val):
    """Use clips with words or questions that are not too long for the encoder or the GPT."""
    at, n_tokens = [], []
    for i, (text, info) in enumerate(zip(split.texts, split.infos)):
        if split.seconds[i] > MAX_AUDIO_S or not (text or info.get("turns", ["silence"])):
            continue
        longest = max(len(clip_row(split, i)[0]), len(transcript_row(text)[0]))
        n = n_audio_tokens(split.lengths[i], ears["stack"]) + TEXTURE + longest
        if n <= model.cos.size(0):
            at.append(i)
            n_tokens.append(n)
    split.use(at, n_tokens, config, is_once=is_val)


def make_projector():
    """Return a projector that goes on from the aligned one, with texture tokens in front."""
    sizes = dict(n_taps=len(manifest["taps"]), dropout=DROPOUT, texture=TEXTURE,
                 texture_hidden=texture_hidden)
    projector = Projector(**aligned.arguments | sizes).to(device)
    if not first_step:
        projector.set_stats(*data["train"].stats())
        with user_input():
            projector.start_from(aligned, manifest["taps"], ears["taps"])
    return projector


@torch.no_grad()
def start_chat_tokens():
    """Start the chat's tokens as bos, the end of text, with which alignment ended."""
    for table in (model.transformer.wte, *model.value_embeds.values()):
        table.weight[new_ids] = table.weight[tok.bos_id].clone()
    model.lm_head.weight[tok.special("<|assistant_end|>")] = model.lm_head.weight[tok.bos_id]


def free_chat_tokens():
    """Let only the rows of the chat's tokens move in the LM's tables -> {name: table}."""
    is_new = torch.zeros(len(model.lm_head.weight), 1, device=device)
    is_new[new_ids] = 1
    tables = {name: p for name, p in model.named_parameters()
              if name.startswith(("transformer.wte", "lm_head.weight", "value_embeds"))}
    for p in tables.values():
        p.requires_grad_(True).register_hook(lambda grad: grad * is_new)
    return tables


def make_optimizers():
    """Return [AdamW, Muon for the texture's matrices]; each group has its own peak_lr."""
    kept, texture, matrices = [], [], []
    for name, p in projector.named_parameters():
        if not name.startswith("texture"):
            kept += [p] if p.requires_grad else []
        elif p.shape[-1] == model.config.n_embd:  # the gain, and fc2 of a texture_hidden of n_embd
            texture.append(p)
        else:
            matrices.append(p)
    groups = [(kept, PROJECTOR_LR), (texture, TEXTURE_LR), (lora, learning_rate),
              (list(tables.values()), learning_rate)]
    groups = [dict(params=params, peak_lr=peak) for params, peak in groups]
    return [torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
            Muon([dict(params=matrices, peak_lr=TEXTURE_MUON_LR)])]


def adapters():
    """Return what training changed in the LM: LoRA's matrices and the rows of the chat's tokens."""
    rows = {f"{name}.rows": p.detach()[new_ids].clone() for name, p in tables.items()}
    return {**lora_state(model), **rows, "ids": torch.tensor(new_ids)}


@torch.no_grad()
def load_adapters():
    """Load what adapters() gave at this run's last step."""
    with user_input(RuntimeError, KeyError):  # cut short, or of another kind of run
        saved = load_saved(out_dir, read_meta(out_dir), "lora", device)
        model.load_state_dict({k: v for k, v in saved.items() if "lora" in k}, strict=False)
        for name, p in tables.items():
            p[new_ids] = saved[f"{name}.rows"]


def checkpoint():
    """Return the files of a checkpoint beside projector and optimizers, and its meta."""
    audio = ears | {"projector": projector.arguments, "taps": manifest["taps"], "prompt": "chat",
                    "plain": True}  # plain: it reads and writes words in lower case
    return {"model": merged_state(model), "lora": adapters()}, {"audio": audio}


ranks = rank, world_size, device = join_ranks(device, seed)
check_settings(config, world_size)
need("jiwer")
unspoken = Counter()  # questions, chats and sentences that are left out, by reason
with user_input():
    start = read_meta(lm)
    if "audio" not in start:
        fail(f"{lm} has no projector: give a run of train_align.py as lm")
    ears = start["audio"]
    data = {name: Split(data_dir, name, ears["encoder_sha256"]) for name in ("train", "val")}
    add_turns()
    talks, lines = read_text()
    texts = [os.path.join(text_dir, f"{split}.txt") for split in lines if text_dir]
    inputs = {"lm": run_sums(lm), "features": data["train"].sums()}
    inputs |= {path: sha256_file(path) for path in (turns, chats, *texts) if path}
os.makedirs(out_dir, exist_ok=True)
first_step = last_step(out_dir, init_from, config, inputs)
stop_if_done(out_dir, first_step, max_steps, "tokenizer.json")
manifest = data["train"].manifest
with user_input():
    model, _ = load_checkpoint(lm, device=device)
    tok = load_tokenizer(lm, model.config.vocab_size)
    encoder, aligned = load_ears(lm, start, device)
for name, split in data.items():
    choose_clips(split, name == "val")
most = min(batch_tokens // text_rows, model.cos.size(0)) // 4  # tokens of a quarter of a text row
n_text = len(talks) + len(lines["train"])
talks = [talk for talk in talks if len(chat_row([talk])[0]) <= most]
sentences = [text for text in lines["train"] if len(transcript_row(text)[0]) <= most]
unspoken[f"longer than {most} tokens"] = n_text - len(talks) - len(sentences)
val_texts = lines["val"][:500]
projector = make_projector()
new_ids = sorted({tok.special(name) for name in SPECIAL_TOKENS[1:]} | {10})  # 10 ends an option
if not first_step and ears["prompt"] != "chat" and not start.get("chats"):
    start_chat_tokens()
lora = add_lora(model, lora_rank, LORA_ALPHA)
tables = free_chat_tokens()
optimizers = make_optimizers()
if first_step:
    load_adapters()


# ---- evaluate()

def count_answers(logits, targets):
    """Count the answers of rows (B, T) of which every token is the likeliest, and all answers."""
    on = targets >= 0
    answer = (on & ~F.pad(on, (1, 0))[:, :-1]).cumsum(1) * on  # (B, T): 1, 2 .. in each row; 0: none
    wrong = (on & (logits.argmax(2) != targets)).float()
    n = answer.max(1).values  # (B,)
    n_wrong = torch.zeros(len(n), int(n.max()) + 1, device=device).scatter_add_(1, answer, wrong)
    return torch.stack([n.sum() - (n_wrong[:, 1:] > 0).sum(), n.sum()])


def evaluate():
    """Return losses with each clip's own audio and its neighbour's, answers right, WER, bpb."""
    split, answers = data["val"], torch.zeros(2, device=device)  # right, all

    def forward(at, feats, lens, is_own):
        rows = [clip_row(split, i) for i in at]
        loss, weight, _, *more = forward_rows(rows, feats, lens, with_logits=is_own)
        has_turns = [bool(split.infos[i].get("turns")) for i in at]
        if is_own and any(has_turns):
            answers.add_(count_answers(*(x[has_turns] for x in more)))
        return loss, weight

    result = trainer.compare_audio(split, forward)
    sum_over_ranks(answers)
    n_right, n = answers.tolist()
    result["val_right"] = n_right / max(n, 1)
    spoken = np.array([i for i in split.at if split.texts[i]])
    if rank == 0 and len(spoken):
        result |= trainer.hear(split, spoken, tok, ears["audio_at"])[0]
    if rank == 0 and val_texts:
        idx, targets, *_ = pad_rows([transcript_row(text) for text in val_texts])
        nats = model(idx, targets, loss_reduction="sum").item()
        result["val_bpb"] = nats / math.log(2) / sum(len(text) + 1 for text in val_texts)
    return result


# ---- loop

trainer = Trainer(config, inputs, ranks, first_step, model, projector, optimizers, read_microbatch,
                  evaluate, checkpoint)
n_rows = len(new_ids) * sum(p.shape[1] for p in tables.values())
trainer.begin(encoder, tok, sum(p.numel() for p in lora) + n_rows, data, evaluate_first=eval_every > 0)
if rank == 0:
    for reason, n in unspoken.items():
        print(f"left out: {n:,} questions, chats or sentences: {reason}")
for step in range(first_step, max_steps):
    sums = torch.zeros(2, 2, device=device)  # (with audio, without; weighted nats, weights)
    for microbatch, at, feats, lens in trainer.microbatches(step):
        rng = np.random.default_rng([seed, step, microbatch])
        parts = [([clip_row(data["train"], i, rng) for i in at], feats, lens), (draw_text(rng),)]
        for k, part in enumerate(parts):
            if part[0]:
                loss, weight, row_lens = forward_rows(*part)
                loss.backward()
                sums[k] += torch.stack([loss.detach(), weight])
                trainer.count(row_lens)
    sum_over_ranks(sums)
    loss, text_loss = (sums[:, 0] / sums[:, 1]).tolist()
    more = {"text_loss": text_loss} if math.isfinite(text_loss) else {}  # 0 / 0: no text
    names = [data["train"].keys[i] for i in at]
    trainer.update(step, loss, sums[:, 1].sum(), names, **more)

# ---- closing line

if rank == 0:
    size = sum(t.numel() * t.element_size() for t in adapters().values()) / 1e6
    print(f"{trainer.clock.closing_line(trainer.result, out_dir)}; adapters alone {size:.1f} MB")
leave_ranks()
