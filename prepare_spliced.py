"""New sentences in real voices: recordings cut between words, and a speaker's parts joined anew.

    python prepare_spliced.py config/real_spliced.py          # after config/real_w2.py, whose run finds the cuts
    python prepare_spliced.py config/real_spliced.py --limit=40 --n_clips=50 --out_dir=data/toy_spliced

A model trained on few recordings soon knows them by heart (results.md). Joined anew they hold the same voices and
words in sentences that nobody said. To find the cuts, an aligned run (ckpt) hears a recording's beginning, longer by an
audio token at a time, and scores how many of its known words that holds: the words, then the end of text. The likeliest
count that never falls (Viterbi) rises where a word ends, and the quietest sample about there is the cut.
Reads  source, the train.jsonl of prepare_librispeech.py: {"audio": path from there, "text", "speaker"} a line.
Writes <out_dir>/clips/<nnnnn>.flac (16 kHz mono PCM16, about 3 s and 60 kB each) and, when all are there, clips.jsonl
       ({"audio", "text", "split": "train", "speaker"} a line, a source for prepare_librispeech.py) and meta.json.
"""
import json
import os
import shutil

import numpy as np
import torch
from tqdm import tqdm

from audio import HOP, SAMPLE_RATE, read_audio
from augment import change_speed
from configurator import configure, fail
from data import write_json
from talk import Talker

# config: every value here can be set from a config file or as --name=value
ckpt = "out/real_w2"
source = "data/speechocean762/features/train.jsonl"
out_dir = "data/real_spliced"
n_clips = 10_000
limit = 0               # of source's clips, for a toy; 0: all
min_words = 3
max_words = 12
speed = 0.15            # a clip is played up to so much faster or slower
cut_db = 10.0           # at a cut the clip is at least so much quieter than on average
min_share = 0.6         # least probability of the number of words before a cut
seed = 1337
device = "auto"
config = configure(globals()) if __name__ == "__main__" else {}  # prints each change; stored in meta.json
# -----------------------------------------------------------------------------
SMOOTH = 480            # samples, 30 ms, over which loudness is taken
FADE = 80               # samples, 5 ms, at both ends of a part


def count_words(talker, wav, words):
    """-> log-probability (T_a, len(words) + 1) that the first 1.. audio tokens of wav hold so many of its words."""
    audio = talker.hear([wav])[0]
    T_a, device = len(audio), audio.device
    ends = [len(talker.tok.encode(" ".join(words[:n]))) for n in range(len(words) + 1)]
    ids = torch.tensor([talker.tok.bos_id, *talker.tok.encode(" ".join(words))], device=device).expand(T_a, -1)
    lens = torch.arange(1, T_a + 1, device=device)
    heard = audio * (torch.arange(T_a, device=device) < lens[:, None])[..., None]  # (T_a, T_a, C), zero past lens
    with torch.inference_mode():
        logits = talker.model(ids, None, audio_features=heard, audio_lens=lens,
                              text_lens=torch.full_like(lens, ids.shape[1]), audio_at=talker.ears["audio_at"])
    logp = logits.float().log_softmax(2)  # (T_a, T, V)
    said = logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0].cumsum(1)
    said = torch.nn.functional.pad(said, (1, 0))[:, ends]  # (T_a, len(words) + 1): the first words
    return (said + logp[:, ends, talker.tok.bos_id]).log_softmax(1).cpu().numpy()


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
    before, after = int(loud[0] / step + 0.5), int(loud[-1] / step)  # audio tokens before and up to the end of speech
    logp[:before, 1:], logp[after:, :-1] = -14, -14  # silence holds no word, and the end no less than all
    path, cuts = rising_path(np.maximum(logp, -14)), []
    for n in range(1, len(words)):
        at = np.flatnonzero(path == n)
        if len(at) and logp[at, n].max() > np.log(min_share):
            first, last = int((at[0] + 0.5) * step), min(int((at[-1] + 1.5) * step), len(wav))
            cut = first + int(np.argmin(power[first:last]))
            if power[cut] < power.mean() / 10 ** (cut_db / 10):
                cuts.append((n, cut))
    return cuts


def draw_part(clip, rng):
    """-> (words, samples) between two random cuts of a clip, its ends among them."""
    places = [(0, 0), *clip["cuts"], (len(clip["words"]), None)]
    i = rng.integers(len(places) - 1)
    j = rng.integers(i + 1, len(places))
    wav = read_audio(clip["path"])[places[i][1]:places[j][1]].copy()
    n = min(FADE, len(wav) // 4)
    wav[:n] *= np.linspace(0, 1, n, dtype=np.float32)
    wav[len(wav) - n:] *= np.linspace(1, 0, n, dtype=np.float32)
    return clip["words"][places[i][0]:places[j][0]], wav


def read_source():
    """-> {speaker: [{"words", "path"}]}; ValueError for a row that can't be used, with its line."""
    speakers = {}
    with open(source, encoding="utf-8") as file:
        for n, line in enumerate(list(file)[:limit or None], 1):
            try:
                row = json.loads(line)
                clip = {"words": row["text"].split(), "path": os.path.join(os.path.dirname(source), row["audio"])}
                speaker, split = str(row["speaker"]), row.get("split", "train")
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise ValueError(f"{source}:{n}: no row of audio, text and speaker ({e!r})") from None
            if split != "train":
                raise ValueError(f"{source}:{n} is of the split {split}: only what is trained on may be joined anew")
            speakers.setdefault(speaker, []).append(clip)
    return speakers


def main():
    import soundfile
    if not 1 <= min_words <= max_words or not 0 <= speed < 1 or n_clips < 1 or not 0 < min_share < 1 or limit < 0:
        raise ValueError("these settings need 1 <= min_words <= max_words, 0 <= speed < 1, 0 < min_share < 1, "
                         "n_clips of 1 or more, limit of 0 or more")
    talker, speakers = Talker(ckpt, device=device), read_source()
    if not talker.ears or talker.ears["prompt"] != "transcript":
        raise ValueError(f"{ckpt} doesn't write transcripts: set ckpt to a run of train_align.py")
    for clip in tqdm([clip for clips in speakers.values() for clip in clips], "cuts", unit="clip"):
        clip["cuts"] = find_cuts(talker, read_audio(clip["path"]), clip["words"])
    found = sum(len(clip["cuts"]) for clips in speakers.values() for clip in clips)
    n_gaps = sum(len(clip["words"]) - 1 for clips in speakers.values() for clip in clips)
    usable = [name for name, clips in sorted(speakers.items()) if sum(bool(clip["cuts"]) for clip in clips) > 2]
    if not usable:
        raise ValueError(f"{source}: no speaker has three clips with cuts, {found} were found: does {ckpt} hear them?")
    shutil.rmtree(os.path.join(out_dir, "clips"), ignore_errors=True)
    os.makedirs(os.path.join(out_dir, "clips"))
    rng, seen, lines, seconds = np.random.default_rng(seed), set(), [], 0.0
    for _ in tqdm(range(50 * n_clips), "clips"):
        name = usable[rng.integers(len(usable))]
        clips = rng.choice(speakers[name], 3, replace=False)[:rng.integers(2, 4)]
        words, wavs = zip(*(draw_part(clip, rng) for clip in clips))
        text = " ".join(word for part in words for word in part)
        if not min_words <= len(text.split()) <= max_words or text in seen:
            continue
        seen.add(text)
        wav = change_speed(np.concatenate(wavs), rng.uniform(1 - speed, 1 + speed))
        row = {"audio": f"clips/{len(lines):05d}.flac", "text": text, "split": "train", "speaker": name}
        soundfile.write(os.path.join(out_dir, row["audio"]), wav, SAMPLE_RATE)
        lines.append(json.dumps(row))
        seconds += len(wav) / SAMPLE_RATE
        if len(lines) == n_clips:
            break
    with open(os.path.join(out_dir, "clips.jsonl.part"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    os.replace(os.path.join(out_dir, "clips.jsonl.part"), os.path.join(out_dir, "clips.jsonl"))
    write_json(os.path.join(out_dir, "meta.json"), {"settings": config, "cuts": found, "clips": len(lines)})
    print(f"{out_dir}: {len(lines):,} clips of {len(usable)} speakers, {seconds / 3600:.2f} h | {found:,} cuts between "
          f"{n_gaps:,} pairs of words")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        fail(e)
