"""New sentences in real voices: recordings cut between words, and a speaker's parts joined anew.

    python prepare_spliced.py config/real_spliced.py          # after config/real_w2.py, whose run finds the cuts
    python prepare_spliced.py config/real_spliced.py --limit=40 --n_clips=50 --out_dir=data/toy_spliced

A model trained on few recordings soon knows them by heart (results.md). Joined anew they hold the same voices and
words in other sentences. To find the cuts, an aligned run (ckpt) reads a recording's first audio tokens, one more at a
time, and scores how many of its known words they hold: the words, then the end of text. The likeliest count that never
falls (Viterbi) rises where a word ends, and the quietest sample up to the next word's rise is the cut.
Reads  source, prepare_librispeech.py's train.jsonl: {"audio": path from there, "text", "speaker"} a line; no text of it
       or of the .jsonl files beside it (held-out clips) is made again. A speaker needs three clips with cuts.
Writes <out_dir>/clips/<nnnnn>.flac (16 kHz mono PCM16, about 4.6 s and 78 kB each) and, when all are there, clips.jsonl
       ({"audio", "text", "split": "train", "speaker"} a line, a source for prepare_librispeech.py) and meta.json.
About 3 recordings and 130 clips a second on one core with tests on the other (2026-11). It works in <out_dir>/.part, so
the clips of an earlier run stay until all of the new are there; interrupted, it starts over.
"""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from audio import HOP, SAMPLE_RATE, read_audio
from augment import change_speed
from configurator import configure, fail
from talk import Talker
from tokenizer import normalize_transcript

# config: every value here can be set from a config file or as --name=value
ckpt = "out/real_w2"
source = "data/speechocean762/features/train.jsonl"
out_dir = "data/real_spliced"
n_clips = 10_000
limit = 0               # so many of source's clips, from the first, for a toy; 0: all
min_words = 3
max_words = 12
speed = 0.15            # a clip is played up to so much faster or slower
cut_db = 10.0           # at a cut the clip is at least so much quieter than on average
min_share = 0.6         # least probability of the number of words before a cut; either lower: more cuts, less sure
seed = 1337
device = "auto"
config = configure(globals()) if __name__ == "__main__" else {}  # prints each change; stored in meta.json
# -----------------------------------------------------------------------------
SMOOTH = 480            # samples, 30 ms, over which loudness is taken
ROWS = 64               # beginnings of a recording that the model reads at once
FADE = 80               # samples, 5 ms, at both ends of a part
RULES = ("1 <= min_words <= max_words", "1 <= n_clips", "0 <= limit", "0 <= cut_db", "0 <= seed", "0 <= speed < 1",
         "0 < min_share < 1", "out_dir != ''")


@torch.inference_mode()
def count_words(talker, wav, words):
    """-> log-probability (T_a, len(words) + 1) that the first 1.. audio tokens of wav hold so many of its words."""
    audio, tok = talker.hear([wav])[0], talker.tok
    ends = [len(tok.encode(" ".join(words[:n]))) for n in range(len(words) + 1)]
    ids, scores = torch.tensor([tok.bos_id, *tok.encode(" ".join(words))], device=audio.device), []
    for lens in torch.arange(1, len(audio) + 1, device=audio.device).split(ROWS):  # (B,)
        heard = audio * (torch.arange(len(audio), device=audio.device) < lens[:, None])[..., None]  # (B, T_a, C)
        idx = ids.expand(len(lens), -1)
        logits = talker.model(idx, None, audio_features=heard, audio_lens=lens,
                              text_lens=torch.full_like(lens, len(ids)), audio_at=talker.ears["audio_at"])
        logp = logits.float().log_softmax(2)  # (B, T, V)
        said = logp[:, :-1].gather(2, idx[:, 1:, None])[..., 0].cumsum(1)
        said = torch.nn.functional.pad(said, (1, 0))[:, ends]  # (B, len(words) + 1): the first words
        scores.append((said + logp[:, ends, tok.bos_id]).log_softmax(1))
    return torch.cat(scores).cpu().numpy()


def rising_path(scores):
    """-> (T,): of scores (T, N) the columns, never falling, from 0 or 1 to the last, of the greatest sum (Viterbi)."""
    best = np.where(np.arange(scores.shape[1]) < 2, scores[0], -np.inf)
    back = []
    for row in scores[1:]:
        top = np.maximum.accumulate(best)
        back.append(np.maximum.accumulate(np.where(best == top, np.arange(len(best)), 0)))
        best = top + row
    path = [scores.shape[1] - 1]
    for row in back[::-1]:
        path.append(int(row[path[-1]]))
    return np.array(path[::-1])


def find_cuts(talker, wav, words):
    """-> [(number of words before it, sample)] of a recording's cuts, in order."""
    logp = count_words(talker, wav, words)
    step = 2 * HOP * talker.ears["stack"]  # samples of an audio token
    power = np.convolve(wav.astype(np.float64) ** 2, np.ones(SMOOTH) / SMOOTH, "same")
    loud = np.flatnonzero(power > 0.02 * np.percentile(power, 95))
    if not len(loud):
        return []  # silence
    logp[:int(loud[0] / step + 0.5), 1:] = -14  # before the speech there is no word
    logp[int(loud[-1] / step):, :-1] = -14  # and at its end there are all
    path, cuts = rising_path(np.maximum(logp, -14)), []
    for n in range(1, len(words)):
        at = np.flatnonzero(path == n)
        if len(at) and logp[at, n].max() > np.log(min_share):
            first, last = int((at[0] + 0.5) * step), int((at[-1] + 1.5) * step)
            cut = first + int(np.argmin(power[first:last]))
            if power[cut] < power.mean() / 10 ** (cut_db / 10):
                cuts.append((n, cut))
    return cuts


def draw_part(clip, rng):
    """-> (words, samples) between two random cuts of a clip, its ends among them."""
    places = [(0, 0), *clip["cuts"], (len(clip["words"]), None)]
    i = rng.integers(len(places) - 1)
    (first, start), (last, end) = places[i], places[rng.integers(i + 1, len(places))]
    wav = read_audio(clip["path"])[start:end].copy()
    n = min(FADE, len(wav) // 4)
    wav[:n] *= np.linspace(0, 1, n, dtype=np.float32)
    wav[len(wav) - n:] *= np.linspace(1, 0, n, dtype=np.float32)
    return clip["words"][first:last], wav


def read_source():
    """-> {speaker: [{"words", "path"}]}; ValueError for a row that can't be used, with its line."""
    speakers = {}
    if not os.path.isfile(source):
        raise ValueError(f"source={source}: no such list of clips; prepare_librispeech.py makes one, train.jsonl")
    with open(source, encoding="utf-8") as file:
        for n, line in enumerate(list(file)[:limit or None], 1):
            try:
                row = json.loads(line)
                words = normalize_transcript(row["text"]).split()
                clip = {"words": words, "path": os.path.join(os.path.dirname(source), row["audio"])}
                speaker, split = row["speaker"], row.get("split", "train")
            except (ValueError, KeyError, TypeError) as e:
                raise ValueError(f'{source}:{n}: no row of "audio", "text" and "speaker" ({e!r})') from None
            if split != "train" or speaker in (None, "") or not words:
                raise ValueError(f"{source}:{n}: {split=}, {speaker=}, {len(words)} words; it takes clips of the split "
                                 "train, with a speaker and words")
            if not os.path.isfile(clip["path"]):
                raise ValueError(f"{source}:{n}: no file {clip['path']}")
            speakers.setdefault(str(speaker), []).append(clip)
    if max(map(len, speakers.values()), default=0) < 3:
        raise ValueError(f"{source}: no speaker has three clips there, the least that can be joined anew")
    return speakers


def read_texts():
    """-> set of the texts in source and the other .jsonl files beside it, the held-out ones among them."""
    texts = set()
    for path in Path(source).parent.glob("*.jsonl"):
        try:
            rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            texts |= {normalize_transcript(row.get("text") or "") for row in rows}
        except (ValueError, AttributeError, TypeError) as e:
            raise ValueError(f"{path}: a line is no JSON object ({e}); its sentences may not be made again") from None
    return texts


def make_part():
    """Make an empty <out_dir>/.part -> its path; ValueError for clips there that this script hasn't made."""
    here, meta = Path(out_dir), Path(out_dir, "meta.json")
    is_ours = not any(here.glob("clips*")) or meta.is_file() and b'"cuts"' in meta.read_bytes()
    if not is_ours or Path(source).resolve().is_relative_to(here.resolve()):
        raise ValueError(f"out_dir={out_dir} holds source, or clips that are not of this script: choose another one")
    shutil.rmtree(here / ".part", ignore_errors=True)
    (here / ".part/clips").mkdir(parents=True)
    return here / ".part"


def replace_clips(part):
    """Move what .part holds to out_dir, meta.json first (the clips are this script's), clips.jsonl last (all there)."""
    part.with_name("clips.jsonl").unlink(missing_ok=True)
    os.replace(part / "meta.json", part.with_name("meta.json"))
    shutil.rmtree(part.with_name("clips"), ignore_errors=True)
    for name in ("clips", "clips.jsonl"):
        os.replace(part / name, part.with_name(name))
    part.rmdir()


def write_clips(part, speakers, seen):
    """Write clips.jsonl and its clips, {speaker: clips with cuts} joined, no text of seen: -> (how many, seconds)."""
    import soundfile
    names, rng, lines, seconds = sorted(speakers), np.random.default_rng(seed), [], 0.0
    progress = tqdm(total=n_clips, desc="clips", unit="clip")
    for _ in range(50 * n_clips):
        name = names[rng.integers(len(names))]
        words, wavs = zip(*(draw_part(speakers[name][k], rng)
                            for k in rng.choice(len(speakers[name]), rng.integers(2, 4), replace=False)))
        text = " ".join(word for part in words for word in part)
        if not min_words <= len(text.split()) <= max_words or text in seen:
            continue
        seen.add(text)
        wav = change_speed(np.concatenate(wavs), rng.uniform(1 - speed, 1 + speed))
        row = {"audio": f"clips/{len(lines):05d}.flac", "text": text, "split": "train", "speaker": name}
        soundfile.write(part / row["audio"], wav, SAMPLE_RATE)
        lines.append(json.dumps(row) + "\n")
        seconds += len(wav) / SAMPLE_RATE
        progress.update()
        if len(lines) == n_clips:
            break
    if not lines:
        raise ValueError(f"{source}: no new sentence of {min_words=} to {max_words=} can be joined")
    (part / "clips.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines), seconds


def main():
    if broken := [rule for rule in RULES if not eval(rule)]:
        raise ValueError(f"these settings break the rule {broken[0]}")
    speakers, seen, part = read_source(), read_texts(), make_part()
    talker = Talker(ckpt, device=device)
    if not talker.ears or talker.ears["prompt"] != "transcript":
        raise ValueError(f"{ckpt} doesn't write transcripts: set ckpt to a run of train_align.py")
    clips = [clip for clips in speakers.values() for clip in clips]
    for clip in tqdm(clips, "cuts", unit="clip"):
        clip["cuts"] = find_cuts(talker, read_audio(clip["path"], 30.0), clip["words"])
    found, n_gaps = sum(len(clip["cuts"]) for clip in clips), sum(len(clip["words"]) - 1 for clip in clips)
    whole = [clip["path"] for clip in clips if not clip["cuts"] and len(clip["words"]) > 1]
    print(f"{found:,} cuts between {n_gaps:,} pairs of words | none in {len(whole)} of {len(clips)} recordings"
          + (f", {whole[0]} first" if whole else ""))
    usable = {name: clips for name, clips in speakers.items() if sum(bool(clip["cuts"]) for clip in clips) > 2}
    if not usable:
        raise ValueError(f"{source}: no speaker has three clips with cuts: does {ckpt} hear them? A lower cut_db or "
                         "min_share finds more")
    n, seconds = write_clips(part, usable, seen)
    (part / "meta.json").write_text(json.dumps({"settings": config, "cuts": found, "clips": n}), encoding="utf-8")
    replace_clips(part)
    print(f"{out_dir}: {n:,} of {n_clips:,} clips, {len(usable)} speakers, {seconds / 3600:.2f} h | features: "
          f"python prepare_librispeech.py --source={out_dir}/clips.jsonl")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        fail(e)
