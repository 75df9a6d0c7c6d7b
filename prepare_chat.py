"""Make data/chat/{train,val}.jsonl: conversations that train_chat.py learns from.

    git clone --depth 1 https://github.com/google-research-datasets/dstc8-schema-guided-dialogue \
        data/dstc8
    python prepare_chat.py                           # its dialogues, and what the model is
    python prepare_chat.py --sources=my/chats.jsonl  # your own in place of the dialogues

A line is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}, ...]}. A hash
decides the split. For questions about the model it is that of the plain question: val asks what
train does not.
"""
import hashlib
import json
import os
from itertools import chain, islice
from random import Random

from configurator import configure, fail, user_input
from files import find_files, own_file, read_jsonl, read_lines, sha256_file, write_jsonl
from record import is_made, note_made
from tokenizer import read_messages

# config: every value here can be set from a config file or as --name=value
out_dir = "data/chat"
sources = "data/dstc8"  # comma-separated .jsonl files and folders of DSTC8's dialogues
limit = 4000            # conversations of each source; 0: all
n_identity = 2000       # questions about the model, drawn from assets/identity.txt
config = configure(globals())  # prints each change; stored in meta.json
# -----------------------------------------------------------------------------
SEED = 1337
VAL_SHARE = 0.05
GREETINGS = ("", "", "", "Hello. ", "Hi, ", "Tell me, ", "Please: ", "And ", "So, ")
IDENTITY = own_file("assets/identity.txt")
ROLES = {"USER": "user", "SYSTEM": "assistant"}  # DSTC8's


def read_identity():
    """Return [([question, ...], [answer, ...]), ...] of identity.txt."""
    found = []
    for line in filter(str.strip, read_lines(IDENTITY)):
        if line[0].isspace():
            found[-1][1].append(line.strip())
        elif line[0] != "#":
            found.append(([question.strip() for question in line.split("|")], []))
    return found


def draw_identity():
    """Yield (question in its plain form, messages) until n_identity are drawn, or all there are."""
    rng, known, seen = Random(SEED), read_identity(), set()
    for _ in range(100 * n_identity):
        questions, answers = rng.choice(known)
        question = rng.choice(questions)
        text = rng.choice(GREETINGS) + question
        text = rng.choice((text, text[0].upper() + text[1:])) + rng.choice(("", "?", ".", "!"))
        answer = rng.choice(answers)
        if len(seen) < n_identity and text not in seen:
            seen.add(text)
            yield question, [{"role": "user", "content": text},
                             {"role": "assistant", "content": answer}]


def find_source(source):
    """Return the files of a source; ValueError: it has none."""
    if source.endswith(".jsonl") and os.path.isfile(source):
        return [source]
    paths = [path for path in find_files(source, (".json",)) if "dialogues_" in path]
    if not paths:
        raise ValueError(f"{source} is no .jsonl and no folder of dialogues_*.json (see --help)")
    return paths


def read_dialogues(path):
    """Yield ('<path>: dialogue <n>', messages) of a file of DSTC8."""
    try:
        for n, row in enumerate(json.loads("\n".join(read_lines(path))), 1):
            messages = [{"role": ROLES[turn["speaker"]], "content": turn["utterance"]}
                        for turn in row["turns"]]
            yield f"{path}: dialogue {n}", messages
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} holds no dialogues of DSTC8 ({type(e).__name__}: {e})") from None


def read_conversations(path):
    """Yield (text to hash, messages), without a question at the end; ValueError names the line."""
    if path.endswith(".jsonl"):
        rows = ((where, row["messages"]) for where, row in read_jsonl(path, messages=list))
    else:
        rows = read_dialogues(path)
    for where, messages in rows:
        try:
            turns = read_messages({"messages": messages})
        except ValueError as e:
            raise ValueError(f"{where}: {e}") from None
        if len(turns) < 2:
            raise ValueError(f"{where}: there is no answer")
        yield json.dumps(turns), messages[:len(messages) - len(turns) % 2]


def hash_of(text):
    """Return a number below 2**64 that depends on a text alone."""
    data = text.encode(errors="replace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def deal(rows):
    """Return ({"train": {hash: messages}, "val": ...}, how many were there before)."""
    splits, n_twice = {"train": {}, "val": {}}, 0
    for key, messages in rows:
        split = splits["val" if hash_of(key) < VAL_SHARE * 2**64 else "train"]
        digest = hash_of(json.dumps(messages))
        n_twice += digest in split
        split[digest] = messages
    return splits, n_twice


def main():
    if min(limit, n_identity) < 0:
        fail(f"{limit=} and {n_identity=} are 0 or more")
    with user_input():
        paths = [find_source(source) for source in sources.split(",") if source]
        inputs = {path: sha256_file(path) for path in chain([IDENTITY], *paths)}
    if is_made(out_dir, config, inputs):
        print(f"{out_dir} is up to date")
        return
    rows = [draw_identity()]
    for files in paths:
        rows.append(islice(chain.from_iterable(map(read_conversations, files)), limit or None))
    with user_input():
        splits, n_twice = deal(chain(*rows))
    if not all(splits.values()):
        fail(f"{out_dir}: no conversation for train or for val: give more sources")
    os.makedirs(out_dir, exist_ok=True)
    if os.path.exists(os.path.join(out_dir, "meta.json")):
        os.remove(os.path.join(out_dir, "meta.json"))  # the folder is not whole from here on
    for split, found in splits.items():  # by hash: in random order
        write_jsonl(os.path.join(out_dir, f"{split}.jsonl"),
                    [{"messages": found[digest]} for digest in sorted(found)])
    note_made(out_dir, config, inputs, ["train.jsonl", "val.jsonl"])
    n_train, n_val = map(len, splits.values())
    print(f"{out_dir}: {n_train:,} conversations to learn, {n_val:,} held out; {n_twice:,} were "
          "there twice")


if __name__ == "__main__":
    main()
