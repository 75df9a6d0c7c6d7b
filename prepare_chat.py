"""Make data/chat/{train,val}.jsonl: conversations that train_chat.py learns from.

    python prepare_chat.py  # what the model is
    python prepare_chat.py --sources=mine.jsonl,b.jsonl  # and your own chats

A line is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}, ...]}.
assets/identity.txt holds what the model says of itself. One in twenty is held out, by the text.
"""
import hashlib
import json
from itertools import chain, product

from configurator import configure
from files import own_file, read_jsonl, read_lines, write_jsonl
from folders import make_folder, sums
from tokenizer import BPETokenizer, render_conversation

# config: every value here can be set from a config file or as --name=value
out_dir = "data/chat"
sources = ""            # comma-separated .jsonl files
config = configure(globals())  # prints each change; stored in meta.json
# -----------------------------------------------------------------------------
VAL_SHARE = 0.05
FORMS = tuple(product(("", "Hello. ", "Hi, ", "Tell me, "), ("", "?", ".")))  # of a question
IDENTITY = own_file("assets/identity.txt")
PATHS = [path.strip() for path in sources.split(",") if path.strip()]
BYTES = BPETokenizer([])  # knows whether a conversation is one


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


def read_conversations(path):
    """Yield (text, messages), without a question at the end; ValueError names the line."""
    for where, row in read_jsonl(path, messages=list):
        try:
            _, mask = render_conversation(BYTES, row)
        except ValueError as e:
            raise ValueError(f"{where}: {e}") from None
        if not any(mask):
            raise ValueError(f"{where}: there is no answer")
        messages = row["messages"]
        kept = messages if messages[-1]["role"] == "assistant" else messages[:-1]
        yield json.dumps(kept), kept


def chat_hash(text):
    """Return a number below 2**64 that depends on a text alone."""
    digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def make():
    """Write both splits -> (file names, counts); val asks nothing that train asks otherwise."""
    splits, n_twice = {"train": {}, "val": {}}, 0
    for text, messages in chain(read_identity(), *map(read_conversations, PATHS)):
        split = splits["val" if chat_hash(text) < VAL_SHARE * 2**64 else "train"]
        digest = chat_hash(json.dumps(messages))
        n_twice += digest in split
        split[digest] = messages
    for split, found in splits.items():  # by hash: in random order
        write_jsonl(f"{out_dir}/{split}.jsonl",
                    [{"messages": found[digest]} for digest in sorted(found)])
    counts = {split: len(found) for split, found in splits.items()}
    return ["train.jsonl", "val.jsonl"], counts | {"twice": n_twice}


if __name__ == "__main__":
    make_folder(out_dir, config, lambda: sums(IDENTITY, *PATHS), make)
