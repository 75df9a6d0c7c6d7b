"""Conversations: read from jsonl, parquet and folders of dialogues; rendered and packed whole into rows of tokens.

A line of prepare_chat.py's train.jsonl and val.jsonl is {"messages": [{"role", "content"}, ...]}, with "letters" where
the first answer is a letter of them.
"""
import json
import os
from bisect import bisect_right, insort
from pathlib import Path

import numpy as np

from documents import import_parquet
from files import find_files, read_jsonl, read_lines
from tokenizer import read_messages, render_conversation


def read_conversations(path):
    """Yield (where, {"messages": [...]}) of a .jsonl, a .parquet, or a folder of dialogues_*.json (DSTC8's).

    A line of .jsonl is such an object or, as nanochat's, the list alone. ValueError names the file and the line.
    """
    if os.path.isdir(path):
        files = find_dialogues(path) or [Path(path, "dialogues_*.json")]
        rows = ((f"{file}: dialogue {n}", row) for file in files for n, row in enumerate(load(file), 1))
    elif path.lower().endswith(".parquet"):
        rows = ((f"{path}: row {n}", row) for n, row in enumerate(read_rows(path), 1))
    elif path.lower().endswith(".jsonl"):
        rows = ((f"{path}:{n}", line) for n, line in enumerate(read_lines(path), 1) if line.strip())
    else:
        raise ValueError(f"{path}: conversations are a .jsonl, a .parquet or a folder of dialogues_*.json")
    for where, row in rows:
        try:
            row = json.loads(row) if isinstance(row, str) else row
            if isinstance(row, dict) and "turns" in row:
                row = [{"role": {"USER": "user", "SYSTEM": "assistant"}[turn["speaker"]], "content": turn["utterance"]}
                       for turn in row["turns"]]
            messages = row["messages"] if isinstance(row, dict) else row
            turns = read_messages({"messages": messages})
            messages = messages[:len(messages) - len(turns) % 2]  # a question at the end has no answer
            if len(turns) < 2:
                raise ValueError("no answer in it")
        except (ValueError, KeyError, TypeError) as e:
            reason = f"no {e}" if isinstance(e, KeyError) else e
            raise ValueError(f'{where}: {reason}; write {{"messages": [{{"role": "user", "content": "..."}}, '
                             f'{{"role": "assistant", "content": "..."}}]}}') from None
        yield where, {"messages": messages}


def find_dialogues(folder):
    """The files (Path) of DSTC8's dialogues below a folder."""
    return [path for path in map(Path, find_files(folder, (".json",))) if path.name.startswith("dialogues_")]


def load(file):
    """The dialogues of a file of DSTC8."""
    try:
        return json.loads(file.read_bytes())
    except OSError as e:
        raise ValueError(f"{file}: {e.strerror}") from None
    except ValueError as e:
        raise ValueError(f"{file}: no JSON ({e}): copy it again") from None


def read_rows(path):
    """Yield the rows of a parquet file's column "messages", as dicts."""
    parquet = import_parquet()
    try:
        with parquet.ParquetFile(path) as f:
            for batch in f.iter_batches(256, columns=["messages"]):
                yield from batch.to_pylist()
    except OSError as e:  # Arrow's are of this kind
        raise ValueError(f"{path}: {e}; if it was cut short, delete it and run again") from None


def pack_whole(lengths, width, n_buffer=1000):
    """Pack what is at most `width` long into rows, lists of numbers: of the next n_buffer the longest that fits."""
    keys = [(n, i) for i, n in enumerate(lengths)]
    following, buffer, rows, left = iter(keys[n_buffer:]), sorted(keys[:n_buffer]), [], 0
    while buffer:
        at = bisect_right(buffer, (left, len(keys))) - 1
        if at < 0:  # none does
            rows.append([])
            left, at = width, len(buffer) - 1
        n, i = buffer.pop(at)
        rows[-1].append(i)
        left -= n
        if (key := next(following, None)) is not None:
            insort(buffer, key)
    return rows


def made(folder):
    """-> {file: sha256} of a folder of prepare_chat.py, as its meta.json, written last, has it; ValueError: none."""
    try:
        return json.loads(Path(folder, "meta.json").read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder} holds no conversations: run prepare_chat.py --out_dir={folder}") from None


class Conversations:
    """A split ('train', 'val') of a folder in rows of `width` tokens, each of whole conversations and then empty.

    A longer conversation loses its end (n_cropped: tokens), and is left out (n_dropped) if nothing of an answer stays.
    questions: [(ids up to the answer, ids of the letters, which is right)], its multiple choice. n_tokens,
    n_answers: all tokens, and the answers'. ValueError: no such folder, a line that is none, no answer at all.
    """

    def __init__(self, folder, split, tok, width):
        path = os.path.join(folder, f"{split}.jsonl")
        self.width, self.bos, self.each, self.questions = width, tok.bos_id, [], []
        self.n_tokens = self.n_answers = self.n_cropped = self.n_dropped = 0
        for where, row in read_jsonl(path, messages=list):
            try:
                self.add(tok, row)
            except (ValueError, TypeError) as e:
                raise ValueError(f"{where}: {e}: make it with prepare_chat.py") from None
        self.rows = pack_whole([len(ids) for ids in self.each], width)
        if not self.rows:
            raise ValueError(f"{path}: no answer within the first {width} tokens of a conversation: use longer rows")

    def add(self, tok, row):
        """Render a conversation: ids int32 (n,), ~id where they are the assistant's to say."""
        ids, mask = map(np.array, render_conversation(tok, row))
        letters = [i for letter in row.get("letters", ()) for i in tok.encode(letter)]
        if letters:
            self.questions.append((ids[:mask.argmax()].tolist(), letters, letters.index(ids[mask.argmax()])))
        self.n_tokens += len(ids)
        self.n_answers += int(mask.sum())
        self.n_cropped += max(len(ids) - self.width, 0)
        if mask[:self.width].any():
            self.each.append(np.where(mask, ~ids, ids)[:self.width].astype(np.int32))
        else:
            self.n_dropped += 1

    def batch(self, at):
        """Rows `at` (B,) -> (idx, targets), int64 (B, width - 1) each; targets are -1 but at the answers."""
        out = np.full((len(at), self.width), self.bos)
        for row, i in zip(out, at):
            ids = np.concatenate([self.each[k] for k in self.rows[i]])
            row[:len(ids)] = ids
        return np.where(out < 0, ~out, out)[:, :-1], np.where(out < 0, ~out, -1)[:, 1:]
