"""
Make data/chat/{train,val}.jsonl: conversations from which a base learns to answer (train_base.py --conversations).

    python prepare_chat.py                                      # built-in ones alone, no download, 2 s
    python prepare_chat.py config/cpu_conversations.py          # and 4,000 of DSTC8's dialogues
    python prepare_chat.py --mix=identity=400,repeat=4000,letters=20000,smoltalk=460000 --out_dir=data/smoltalk_chat

Writes into out_dir, in UTF-8, a line {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]}
for each conversation, and meta.json (settings, counts, checksums). None stands twice. A hash decides the split: of the
conversation; of what is to be repeated; of a question about the model in its plain form; of a list of options and the
right one. Run again it does nothing unless a setting or a source is another.
"""
import hashlib
import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from random import Random

from tqdm import tqdm

from configurator import configure, fail
from conversations import find_dialogues, read_conversations
from documents import fetch_source
from files import own_file, read_lines, sha256_file, write_json, write_text
from tokenizer import multiple_choice, read_messages

# config: every value here can be set from a config file or as --name=value
out_dir = "data/chat"
# what of how much: identity (of identity.txt), repeat ("say after me"), letters (multiple choice), smoltalk (the first
# of 460,000, 0.9 GB); a .jsonl, .parquet or folder of dialogues_*.json, all of it unless =so many are wanted
mix = "identity=1000,repeat=4000,letters=12000"
name = "nanochat-omni"   # the model's, in identity.txt's answers
maker = "My owner"
mirrors = "https://hf-mirror.com"  # comma-separated, tried after HF_ENDPOINT (or Hugging Face) for smoltalk
val_share = 0.02
seed = 1337              # of what is drawn
config = configure(globals())  # prints each change; stored in meta.json
# -----------------------------------------------------------------------------
VERSION = 2              # raised when the same settings give other bytes
MAX_MISSES = 20_000      # draws in a row that were there before: there are no more
SMOLTALK_ROWS = 115_000  # of each of its 4 files, or a few more
SAY = ("Repeat after me: {}", "Say: {}", "Please repeat this: {}", "Can you say {}?", "Say {} again.", "repeat {}",
       "Write exactly this: {}", "What I write, you write: {}", "Echo: {}", "Copy this: {}", "repeat after me {}")
# rules of grammar.txt whose words are asked for; a word of two kinds is none of both
KINDS = {"an animal": "pet farm_animal wild bird sea bug", "a color": "color", "something to drink": "drink",
         "a vehicle": "vehicle", "a city": "city", "a first name": "name", "something to wear": "clothing wear_pl",
         "a fruit or a vegetable": "fruit vegetable", "a month": "month", "a day of the week": "day",
         "a piece of furniture": "furniture", "a tree or a flower": "tree flower", "a sport": "sport"}
ASK_COPY = ("Which of these is {}?", "Which line says {}?", "Find the word {}.", "I look for {}. Where is it?")
ASK_WITHIN = ("Which of these is in: {}?", "Somebody says: {}. Which of these was it?", "I name {}. Which did I name?")
ASK_KIND = ("Which of these is {}?", "Which one is {}?", "Find {}.", "What here is {}?")
ASK_FIRST = ("Which of these begins with {}?", "Which one starts with the letter {}?")
ASK_ON = (("And {}?", "Where is {}?", "Which letter is {}?"), ("What is ({})?", "Read out ({})."))  # of a list again
LETTERS = "ABCD"


def read_kinds():
    """-> {what: [words of grammar.txt]}"""
    text = re.sub(r"\n +", " | ", "\n".join(read_lines(own_file("assets/grammar.txt"))))
    rules = {rule: set(re.findall(r"(?<=\| )[a-z' ]+[a-z](?= *(?:\||$))", f"| {words}"))
             for rule, words in re.findall(r"^(\w+): (.*)$", text, re.M)}
    kinds = {what: set().union(*(rules[rule] for rule in names.split())) for what, names in KINDS.items()}
    of = Counter(word for words in kinds.values() for word in words)
    return {what: sorted(word for word in words if of[word] == 1) for what, words in kinds.items()}


def read_identity():
    """-> [([question], [answer])] of identity.txt; ValueError names a line."""
    found = []
    for n, line in enumerate(read_lines(own_file("assets/identity.txt")), 1):
        if line[:1].isspace() and line.strip():
            if not found:
                raise ValueError(f"identity.txt:{n}: an answer before any question: write its questions above it")
            found[-1][1].append(line.strip().replace("{name}", name).replace("{maker}", maker))
        elif line.strip() and line[0] != "#":
            found.append(([question.strip() for question in line.split("|")], []))
    if missing := [questions[0] for questions, answers in found if not answers]:
        raise ValueError(f"identity.txt: '{missing[0]}' has no answer: write one below it, indented")
    return found


def draw_identity(rng, words, kinds, known):
    """A question about the model, in one of its forms -> key of its split, what makes it this one, texts, letters."""
    questions, answers = rng.choice(known)
    question = rng.choice(questions)
    text = rng.choice(("", "", "", "Hello. ", "Hi, ", "Tell me, ", "Please: ", "And ", "So, ")) + question
    text = rng.choice((text, text[0].upper() + text[1:])) + rng.choice(("", "?", ".", "!"))
    return question, text, [text, rng.choice(answers)], ""


def draw_repeat(rng, words, kinds, known):
    """Words, names, numbers, letters or made-up words to say again."""
    syllable = lambda: rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice(("", "n", "r", "st", "x", "l"))
    kind, n = rng.randrange(6), rng.randint(1, 5)
    what = " ".join(rng.choice(words) if kind < 2 else rng.choice(words).title() if kind == 2 else
                    str(rng.randrange(10 ** rng.randint(1, 4))) if kind == 3 else rng.choice(LETTERS) if kind == 4 else
                    syllable() + syllable() for _ in range(n))
    return what.lower(), what.lower(), [rng.choice(SAY).format(what), what], ""


def draw_letters(rng, words, kinds, known):
    """A question whose right option its own words tell, or what a word means; then more of the same list, which binds
    letter and option both ways. The first answer is a letter."""
    kind, right = rng.randrange(4), rng.choice(words)
    others = [word for word in rng.sample(words, 24) if word != right]
    if kind == 0:
        question = rng.choice(ASK_COPY).format(right)
    elif kind == 1:
        said, others = [right, *others[:rng.randint(1, 4)]], others[4:]
        question = rng.choice(ASK_WITHIN).format(", ".join(rng.sample(said, len(said))))
    elif kind == 2:
        what = rng.choice(sorted(kinds))
        right, others = rng.choice(kinds[what]), [word for word in others if word not in kinds[what]]
        question = rng.choice(ASK_KIND).format(what)
    else:
        others = [word for word in others if word[0] != right[0]]
        question = rng.choice(ASK_FIRST).format(right[0])
    options, at = others[:3], rng.randrange(4)
    listed = str(sorted([*options, right]))
    options.insert(at, right)
    texts = [multiple_choice(question, options, LETTERS), LETTERS[at]]
    for at in rng.sample(range(4), rng.randint(0, 3)):
        asks_letter, pair = rng.randrange(2), (LETTERS[at], options[at])
        texts += [rng.choice(ASK_ON[1 - asks_letter]).format(pair[asks_letter]), pair[1 - asks_letter]]
    return f"{right} of {listed}", f"{question} {listed}", texts, LETTERS


BUILT_IN = {"identity": draw_identity, "repeat": draw_repeat, "letters": draw_letters}


def draw(source):
    """Yield (key of the split, what makes it this one, messages, letters) of a built-in source without end."""
    rng, kinds, known, roles = Random(f"{seed} {source}"), read_kinds(), read_identity(), ("user", "assistant")
    words = sorted(set().union(*kinds.values()))
    while True:
        key, same, texts, letters = BUILT_IN[source](rng, words, kinds, known)
        yield key, same, [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], letters


def find_sources():
    """The setting mix -> [(source, how many or 0, its files)], smoltalk's downloaded; ValueError: a wrong entry."""
    found = []
    for entry in (entry.strip() for entry in mix.split(",") if entry.strip()):
        source, _, n = entry.partition("=")
        is_path = os.path.isdir(source) or os.path.isfile(source)
        if not re.fullmatch(r"([1-9]\d*)?", n) or not (is_path or n and source in (*BUILT_IN, "smoltalk")):
            raise ValueError(f"mix: '{entry}': write {', '.join(BUILT_IN)} or smoltalk with =so many, or a .jsonl, "
                             ".parquet or folder of dialogues_*.json that is there")
        if source == "smoltalk":
            hubs = [hub.strip() for hub in mirrors.split(",") if hub.strip()]
            files = fetch_source(source, min(max(-(-int(n) // SMOLTALK_ROWS), 1), 4), hubs, "data/smoltalk")
        else:
            files = [own_file("assets/grammar.txt"), own_file("assets/identity.txt")] if source in BUILT_IN else [source]
        found.append((source, int(n or 0), files))
    return found or fail("mix is empty: name a source")


def deal(sources, counts):
    """-> {split: [(hash, line)]}; identity's and repeat's are joined, up to four in a conversation."""
    splits, parts, seen = {"train": [], "val": []}, {"train": [], "val": []}, set()
    number = lambda text: int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "big")
    for source, n, files in sources:
        rows = draw(source) if source in BUILT_IN else (
            (*[json.dumps(read_messages(row))] * 2, row["messages"], "")
            for path in files for _, row in read_conversations(path))
        taken = misses = 0
        for key, same, messages, letters in tqdm(rows, desc=source, unit=" read", disable=None):
            digest, misses = number(same), misses + 1
            if digest in seen:
                counts["seen before"] += source not in BUILT_IN
            else:
                seen.add(digest)
                split, misses, taken = "val" if number(key) < val_share * 2**64 else "train", 0, taken + 1
                counts[f"{split} {source}"] += 1
                if source in ("identity", "repeat"):
                    parts[split].append((digest, messages))
                else:
                    row = {"messages": messages, **({"letters": letters} if letters else {})}
                    splits[split].append((digest, json.dumps(row, ensure_ascii=False)))
            if taken == n > 0 or source in BUILT_IN and misses == MAX_MISSES:
                break
    for split, rng in zip(splits, (Random(seed), Random(seed + 1))):
        left = sorted(parts[split], key=lambda part: part[0])
        while left:
            n = rng.randint(1, 4)
            messages = [message for _, part in left[:n] for message in part]
            splits[split].append((left[0][0], json.dumps({"messages": messages}, ensure_ascii=False)))
            left = left[n:]
    return splits


def main():
    if not 0 < val_share < 1:
        raise ValueError(f"val_share={val_share}: a share between 0 and 1")
    started, counts, path = time.time(), Counter(), Path(out_dir, "meta.json")
    sources = find_sources()
    files = {str(file) for _, _, paths in sources for path in paths
             for file in (find_dialogues(path) if os.path.isdir(path) else [path])}
    plan = {"version": VERSION, "settings": config, "source": {file: sha256_file(file) for file in sorted(files)}}
    try:
        meta = json.loads(path.read_bytes())
        is_done = all(meta[k] == plan[k] for k in plan) and all(
            os.path.getsize(os.path.join(out_dir, file)) == n for file, n in meta["bytes"].items())
    except (OSError, ValueError, KeyError, TypeError):
        is_done = False
    if not is_done:
        splits = deal(sources, counts)
        if not all(splits.values()):
            raise ValueError(f"mix={mix}: no conversation for train or val: ask for more, or a greater --val_share")
        os.makedirs(out_dir, exist_ok=True)
        path.unlink(missing_ok=True)
        meta = plan | {"counts": counts, "bytes": {}, "sha256": {}}
        for split, rows in splits.items():
            file = os.path.join(out_dir, f"{split}.jsonl")
            write_text(file, "".join(line + "\n" for _, line in sorted(rows)))  # by hash: at random
            meta["bytes"][f"{split}.jsonl"], meta["sha256"][f"{split}.jsonl"] = os.path.getsize(file), sha256_file(file)
        write_json(str(path), meta)
    print(f"{out_dir} | " + " | ".join(f"{n:,} {what}" for what, n in meta["counts"].items()))
    print(f"{out_dir} is up to date" if is_done else f"{time.time() - started:.1f} s -> {out_dir}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        fail(e)
