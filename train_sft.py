"""Audio instructions, W3: LoRA teaches an aligned model to answer about what it hears.

    python train_sft.py config/cpu_w3.py                     # the demo's W3, on 2 cores
    torchrun --standalone --nproc_per_node=8 train_sft.py config/w3_lora.py
"""
import itertools
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import trange

from audio import Projector, load_ears, n_audio_tokens
from checkpoints import load_checkpoint, read_meta, run_sums
from clips import ClipTrainer, Split
from configurator import configure, fail, user_input
from files import read_filled, read_jsonl, sha256_file
from language import Language, spoken_turns
from model import add_lora, free_rows, lora_state, merged_state
from practice import Speller, as_messages, count_right
from record import need
from rows import pad
from run import join_ranks
from texture import TEXTURE, Texture
from tokenizer import SPECIAL_TOKENS, load_tokenizer, render_conversation
from trainer import check_settings, first_step_of

# config: set by a config file or --name=value
out_dir = "out/w3"
data_dir = "data/instruct/features*2,data/synthetic/features"  # *2: a clip counts twice an epoch
turns = "data/instruct/turns.jsonl"  # questions to clips of data_dir by their keys; '': none
chats = "data/instruct/text.jsonl"   # chats without audio {"question", "answer"}; '': none
sentences = "data/text/train.txt"    # plain sentences, so that the LM keeps them; '': none
lm = "out/cpu_w2"       # folder of the aligned run that this one goes on from
init_from = "auto"      # scratch; resume; auto: resume if there is a run
lora_rank = 16
transcript_weight = 1.0  # of a transcript in the loss; that of an answer is 1
# batch
batch_tokens = 3400     # tokens per microbatch, padding too; lower it on out-of-memory
grad_accum = 1          # microbatches per step of all ranks
text_rows = 4           # rows without audio per microbatch, each of four chats or four sentences
learning_rate = 2e-3    # peak, of LoRA and the chat's tokens
max_steps = 1000        # when to stop
lr_decay_steps = 1000   # when the schedule ends
warmup_steps = 20
# the rest
eval_every = 250        # steps; 0: at the end only
save_every = 250
log_every = 10
device = "auto"
use_compile = True
seed = 0
config = configure(globals())  # each checkpoint stores it
# ----
LORA_ALPHA = 32.0       # the product of the LoRA matrices counts alpha / rank times
CTC_WEIGHT = 0.3        # of the words that the projector's CTC head shall tell
DROPOUT = 0.2           # share of the standardized features that is zeroed
PROJECTOR_LR = 2e-4     # peak, of what alignment trained
TEXTURE_CLIPS = 8000    # that show how recordings sound, at most
TRANSCRIPT_SHARE = 0.4  # of the clips with known words are transcribed, not asked about
LENGTH_POWER = 0.5      # an answer of n tokens counts n ** (1 - LENGTH_POWER) times one of 1 token


# ---- data: a row is (ids, their weights as targets)

def transcript_row(text):
    """Return the row of a transcript as alignment taught it: <|bos|> text <|bos|>."""
    ids = [tok.bos_id, *tok.encode(text), tok.bos_id]
    n = len(ids) - 1
    return ids, [0.0] + [transcript_weight * n ** -LENGTH_POWER] * n


def chat_row(turns):
    """Return the row of a chat [(task, question, answer), ...]."""
    ids, mask = render_conversation(tok, as_messages(turns, language))
    weights = []
    for is_answer, part in itertools.groupby(mask):
        n = len(list(part))
        weights += [is_answer * n ** -LENGTH_POWER] * n
    return ids, weights


def is_transcribed(info):
    """Whether a clip's words are known, even as none."""
    return bool(info["text"]) or "sentence" in info.get("labels", {})


def clip_row(split, i, rng=None):
    """Return the row of a clip; rng: of its turns in random order, or of its transcript."""
    info = split.infos[i]
    asked = info.get("turns", [])
    if not asked or rng and is_transcribed(info) and rng.uniform() < TRANSCRIPT_SHARE:
        return transcript_row(split.texts[i])
    order = rng.permutation(len(asked)) if rng else range(len(asked))
    return chat_row([asked[k] for k in order])


def draw_text(rng):
    """Draw text_rows rows without audio: four chats and four sentences in turn."""
    rows = []
    for k in range(text_rows if talks or texts else 0):
        if talks and (k % 2 == 0 or not texts):
            rows.append(chat_row([talks[i] for i in rng.integers(len(talks), size=4)]))
            continue
        ids, weights = [tok.bos_id], [0.0]  # the bos that ends a sentence begins the next
        for i in rng.integers(len(texts), size=4):
            more, each = transcript_row(texts[i])
            ids += more[1:]
            weights += each[1:]
        rows.append((ids, weights))
    return rows


def forward_rows(rows, heard=None):
    """Let the GPT read rows, with their clips' tokens and the numbers of these if given.

    Returns the weighted loss, the sum of weights, row lengths (B,), targets (B, T), and in training
    the losses (B*T,), else the logits.
    """
    ids, lens = pad([ids for ids, _ in rows], device)
    weights, _ = pad([weights for _, weights in rows], device)
    weights, row_lens, more = weights[:, 1:], lens - 1, {}
    targets = torch.where(weights > 0, ids[:, 1:], -1)
    if heard:
        more = dict(audio_features=heard[0], audio_lens=heard[1], text_lens=row_lens)
        row_lens = row_lens + heard[1]
    wanted = targets if model.training else None
    out = nats = model(ids[:, :-1], wanted, loss_reduction="none", **more)
    if not model.training:
        nats = F.cross_entropy(out.flatten(0, 1), targets.flatten(), ignore_index=-1,
                               reduction="none")
    return (nats * weights.flatten()).sum(), weights.sum(), row_lens, targets, out


# ---- model, optimizer, resume

def add_turns():
    """Give each clip its questions, and those of the file `turns`, that have a spoken form."""
    more = {}
    for where, row in read_jsonl(turns, key=str, turns=list) if turns else ():
        if not all(isinstance(turn, list) and len(turn) == 3 for turn in row["turns"]):
            raise ValueError(f'{where}: "turns" are lists of [task, question, answer]')
        more[row["key"]] = [list(map(str, turn)) for turn in row["turns"]]
    infos = {id(info): info for info in data["train"].infos + data["val"].infos}  # once a clip
    for info in infos.values():
        if asked := info.get("turns", []) + more.get(info["key"], []):
            info["turns"] = spoken_turns(asked, left_out, language)


def choose_clips(split):
    """Use clips with words or questions that are not too long for the GPT."""
    at, n_tokens = [], []
    for i, (text, info) in enumerate(zip(split.texts, split.infos)):
        has_words = text or info.get("turns", ["silence"])
        longest = max(len(clip_row(split, i)[0]), len(transcript_row(text)[0]))
        n = n_audio_tokens(split.lengths[i], ears["projector"]["stack"]) + TEXTURE + longest
        if has_words and n <= model.cos.size(0):
            at.append(i)
            n_tokens.append(n)
    split.use(at, n_tokens)


def keep_short(texts, row_of):
    """Return the texts of which four fit a row without audio; row_of(text) -> its row."""
    most = min(batch_tokens // text_rows, model.cos.size(0)) // 4  # tokens
    kept = [text for text in texts if len(row_of(text)[0]) <= most]
    left_out[f"a text of more than {most} tokens"] += len(texts) - len(kept)
    return kept


@torch.no_grad()
def start_texture():
    """Let the texture tokens tell of a clip what a regression on the training clips hears."""
    split = data["train"]
    clips = {split.keys[i]: i for i in split.at if facts_of(split.infos[i])}  # each once
    at = np.random.default_rng(seed).permutation(list(clips.values()))[:TEXTURE_CLIPS]
    if not len(at):
        return
    at, parts = sorted(at, key=lambda i: split.lengths[i]), []
    for start in trange(0, len(at), 16, desc="how clips sound", unit_scale=16):
        feats, lens = map(torch.from_numpy, split.read(at[start:start + 16]))
        parts.append(projector.pool(feats.to(device), lens.to(device)).cpu().numpy())
    weight, bias, spread = texture.fit(model, np.concatenate(parts),
                                       [facts_of(split.infos[i]) for i in at])
    is_told = weight.any(1)  # others stay as they are
    projector.texture_fc1.weight[is_told] = weight[is_told].to(device)
    projector.texture_fc1.bias[is_told] = bias[is_told].to(device)
    projector.texture_fc2.weight.data.copy_(spread)


def facts_of(info):
    """Return {task: answer} of what is known of how a clip sounds."""
    known = dict(turn[::2] for turn in info.get("turns", [])) | info.get("labels", {})
    return {task: answer for task, answer in known.items() if (task, answer) in texture.place}


ranks = rank, _, device = join_ranks(device, seed)
check_settings(config, "batch_tokens", "text_rows", "lora_rank")
need("jiwer")
left_out = Counter()  # questions, chats and sentences, by reason
with user_input():
    start = read_meta(lm)
    if "audio" not in start:
        fail(f"{lm} has no projector: give a run of train_align.py as lm")
    ears = start["audio"]
    language = Language(ears.get("language", "en"))
    data = {name: Split(data_dir, name, ears["encoder_sha256"]) for name in ("train", "val")}
    add_turns()
    rows = read_jsonl(chats, question=str, answer=str) if chats else ()
    talks = [["text", row["question"], row["answer"]] for _, row in rows]
    talks = spoken_turns(talks, left_out, language)
    texts = [line.strip() for _, line in read_filled(sentences)] if sentences else []
    sums = [path and sha256_file(path) for path in (turns, chats, sentences)]
    inputs = {"lm": run_sums(lm), "features": data["train"].sums(), "texts": sums}
manifest = data["train"].manifest
first_step = first_step_of(config, inputs, rank)
with user_input():
    model, _ = load_checkpoint(lm, device=device)
    tok = load_tokenizer(lm, model.config.vocab_size)
    encoder, aligned = load_ears(lm, start, device)
for split in data.values():
    choose_clips(split)
talks = keep_short(talks, lambda talk: chat_row([talk]))
texts = keep_short(texts, transcript_row)
texture = Texture(tok, device)
sizes = dict(n_taps=len(manifest["taps"]), dropout=DROPOUT, texture=TEXTURE,
             texture_hidden=len(texture.names))
projector = Projector(**aligned.arguments | sizes).to(device)
if not first_step:
    projector.set_stats(*data["train"].stats(seed))
    projector.texture_key.data = texture.key(model).detach()
    for p in projector.texture_fc1.parameters():
        p.data.zero_()
    with user_input():
        projector.start_from(aligned, manifest["taps"], ears["taps"])
    if rank == 0:  # the others get its weights
        start_texture()
new_ids = sorted({tok.special(name) for name in SPECIAL_TOKENS[1:]} | {10})  # 10 ends an option
if ears["prompt"] != "chat" and not start.get("chats"):  # start as bos, which ends a transcript
    for table in (model.transformer.wte, *model.value_embeds.values()):
        table.weight.data[new_ids] = table.weight.data[tok.bos_id].clone()
    logits = model.lm_head.weight.data
    logits[tok.special("<|assistant_end|>")] = logits[tok.bos_id]
lora = add_lora(model, lora_rank, LORA_ALPHA)
chat_tokens = free_rows(model, new_ids)
kept = [p for p in projector.parameters() if p.requires_grad]
groups = [dict(params=lora), dict(params=chat_tokens), dict(params=kept, lr=PROJECTOR_LR)]
optimizer = torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.98), weight_decay=0.0,
                              fused=True)


# ---- evaluate()

def score(at, feats, lens):
    rows = [clip_row(data["val"], i) for i in at]
    loss, weight, _, targets, logits = forward_rows(rows, projector(feats, lens))
    is_asked = [bool(data["val"].infos[i].get("turns")) for i in at]
    ids = logits.argmax(2)[is_asked], targets[is_asked]
    counts = count_right(*(x.cpu().numpy() for x in ids))
    return loss, weight, *torch.tensor(counts, device=device)


def words_loss(at, audio, audio_lens):
    """Return the CTC loss of the words of train's clips `at` (B,), whose tokens are given."""
    infos = [data["train"].infos[i] for i in at]
    ids = [speller.encode(info["text"]) for info in infos]
    weights = torch.tensor([is_transcribed(info) * max(len(each), 1) ** -LENGTH_POWER
                            for info, each in zip(infos, ids)])
    nats = projector.ctc_loss(audio, audio_lens, ids)
    return CTC_WEIGHT * (nats * weights.to(device)).sum()


# ---- loop

speller = Speller(tok, projector.arguments["ctc"])
audio = ears | {"projector": projector.arguments, "taps": manifest["taps"], "prompt": "chat",
                "plain": True}  # it reads and writes Language.plain()
trainer = ClipTrainer(
    config=config, inputs=inputs, ranks=ranks, first_step=first_step, model=model, tok=tok,
    projector=projector, optimizers=[optimizer], losses=["loss", "text_loss"], data=data,
    spoken=data["val"].spoken, score=score, right="val_right", meta={"audio": audio},
    files=lambda: {"model": merged_state(model), "lora": lora_state(model),
                   "projector": projector.state_dict()})
about = [f"left out: {n:,} texts, {why}" for why, n in left_out.items() if n]
trainer.begin(trainer.evaluate_clips, [*data.values(), *about], encoder=encoder)
for step in range(first_step, max_steps):
    sums = torch.zeros(2, 2, device=device)  # (with audio, without; weighted nats, weights)
    for rng, at, feats, lens in trainer.microbatches(step):
        heard = projector(feats, lens)
        if projector.ctc_head:
            words_loss(at, *heard).backward(retain_graph=True)
        rows = [clip_row(data["train"], i, rng) for i in at]
        for k, part in enumerate(((rows, heard), (draw_text(rng),))):
            if part[0]:
                loss, weight, row_lens, *_ = forward_rows(*part)
                loss.backward()
                sums[k] += torch.stack([loss.detach(), weight])
                trainer.count(row_lens)
    trainer.update(step, sums)

trainer.finish()
