"""Make data/chat/{train,val}.jsonl: conversations that train_chat.py learns from.

    git clone --depth 1 https://github.com/google-research-datasets/dstc8-schema-guided-dialogue \
        data/dstc8
    python prepare_chat.py                           # its dialogues, and what the model is
    python prepare_chat.py --sources=my/chats.jsonl  # your own in place of the dialogues

A line is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}, ...]}.
assets/identity.txt holds what the model says of itself.
"""
import hashlib
import json
import os
from itertools import chain, islice, product
from pathlib import Path

from configurator import configure, user_input
from files import find_files, own_file, read_jsonl, read_lines, sha256_file, write_jsonl
from record import is_made, note_made
from tokenizer import read_messages

# config: every value here can be set from a config file or as --name=value
out_dir = "data/chat"
sources = "data/dstc8"  # comma-separated .jsonl files and folders of DSTC8's dialogues
config = configure(globals())  # prints each change; stored in meta.json
# -----------------------------------------------------------------------------
LIMIT = 4000            # dialogues of DSTC8; a .jsonl is taken whole
VAL_SHARE = 0.05
FORMS = tuple(product(("", "Hello. ", "Hi, ", "Tell me, "), ("", "?", ".")))  # of a question
IDENTITY = own_file("assets/identity.txt")
ROLES = {"USER": "user", "SYSTEM": "assistant"}  # DSTC8's


def read_identity():
    """Yield (question, messages) for each question of identity.txt, form of it, and answer."""
    questions = []
    for line in filter(str.strip, read_lines(IDENTITY)):
        if line[0].isspace():
            for question, (start, end) in product(questions, FORMS):
                yield question, [{"role": "user", "content": start + question + end},
                                 {"role": "assistant", "content": line.strip()}]
        elif line[0] != "#":
            questions = [question.strip() for question in line.split("|")]


def find_source(source):
    """Return the files of a source; ValueError: it has none."""
    if source.endswith(".jsonl") and os.path.isfile(source):
        return [source]
    paths = [path for path in find_files(source, (".json",)) if "dialogues_" in path]
    if not paths:
        raise ValueError(f"{source} is no .jsonl and no folder of dialogues_*.json (see --help)")
    return paths


def read_rows(path):
    """Yield ('<path>: <place>', messages) of a .jsonl, or of DSTC8's dialogues."""
    if path.endswith(".jsonl"):
        yield from ((where, row["messages"]) for where, row in read_jsonl(path, messages=list))
        return
    try:
        for n, row in enumerate(json.loads("\n".join(read_lines(path))), 1):
            yield f"{path}: dialogue {n}", [
                {"role": ROLES[turn["speaker"]], "content": turn["utterance"]}
                for turn in row["turns"]]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} holds no dialogues of DSTC8 ({type(e).__name__}: {e})") from None


def read_conversations(path):
    """Yield (text, messages), without a question at the end; ValueError names the place."""
    for where, messages in read_rows(path):
        try:
            turns = read_messages({"messages": messages})
        except ValueError as e:
            raise ValueError(f"{where}: {e}") from None
        if len(turns) < 2:
            raise ValueError(f"{where}: there is no answer")
        yield json.dumps(turns), messages[:len(messages) - len(turns) % 2]


def chat_hash(text):
    """Return a number below 2**64 that depends on a text alone."""
    digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def deal(rows):
    """Deal (text, messages) by the text's hash -> ({split: {hash: messages}}, number twice there).

    The text is the plain question: val asks nothing that train asks in another form.
    """
    splits, n_twice = {"train": {}, "val": {}}, 0
    for text, messages in rows:
        split = splits["val" if chat_hash(text) < VAL_SHARE * 2**64 else "train"]
        digest = chat_hash(json.dumps(messages))
        n_twice += digest in split
        split[digest] = messages
    return splits, n_twice


def main():
    with user_input():
        paths = [find_source(source) for source in sources.split(",") if source]
        inputs = {path: sha256_file(path) for path in chain([IDENTITY], *paths)}
    if is_made(out_dir, config, inputs):
        print(f"{out_dir} is up to date")
        return
    rows = [chain.from_iterable(map(read_conversations, files)) for files in paths]
    rows = [each if files[0].endswith(".jsonl") else islice(each, LIMIT)
            for each, files in zip(rows, paths)]
    with user_input():
        splits, n_twice = deal(chain(read_identity(), *rows))
    os.makedirs(out_dir, exist_ok=True)
    Path(out_dir, "meta.json").unlink(missing_ok=True)  # the folder is not whole from here on
    for split, found in splits.items():  # by hash: in random order
        write_jsonl(os.path.join(out_dir, f"{split}.jsonl"),
                    [{"messages": found[digest]} for digest in sorted(found)])
    note_made(out_dir, config, inputs, ["train.jsonl", "val.jsonl"])
    n_train, n_val = map(len, splits.values())
    print(f"{out_dir}: {n_train:,} conversations to learn, {n_val:,} held out, {n_twice:,} twice")


if __name__ == "__main__":
    main()
