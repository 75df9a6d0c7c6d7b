"""Conversations in rows of tokens, packed whole: what train_chat.py learns from."""
import os

import numpy as np

from files import read_jsonl, sha256_file
from rows import pad_rows
from tokenizer import render_conversation


def chat_sums(folder):
    """Return {file name: sha256} of a whole folder of prepare_chat.py; ValueError: it is none."""
    if not os.path.isfile(os.path.join(folder, "meta.json")):  # written last
        raise ValueError(f"{folder} holds no conversations: run prepare_chat.py --out_dir={folder}")
    return {name: sha256_file(os.path.join(folder, name)) for name in ("train.jsonl", "val.jsonl")}


def pack_whole(lengths, width):
    """Pack items of these lengths, `width` at most, in their order into rows: lists of numbers."""
    rows, left = [], 0
    for i, n in enumerate(lengths):
        if n > left:
            rows.append([])
            left = width
        rows[-1].append(i)
        left -= n
    return rows


class Conversations:
    """A split ("train", "val") of a folder of prepare_chat.py in rows of `width` tokens.

    A longer conversation loses its end (n_cropped: tokens); it is left out (n_dropped) if no answer
    stays. each: [(ids, targets)], targets -1 but in answers; n_answers: tokens of answers.
    ValueError: a wrong line, or no answer at all.
    """

    def __init__(self, folder, split, tok, width):
        self.width, self.bos_id, self.each = width, tok.bos_id, []
        self.n_tokens = self.n_answers = self.n_cropped = self.n_dropped = 0
        path = os.path.join(folder, f"{split}.jsonl")
        for where, row in read_jsonl(path, messages=list):
            try:
                ids, mask = map(np.array, render_conversation(tok, row))
            except (ValueError, TypeError) as e:
                raise ValueError(f"{where}: {e}: make it with prepare_chat.py") from None
            self.n_tokens += len(ids)
            self.n_answers += int(mask.sum())
            self.n_cropped += max(len(ids) - width, 0)
            if mask[:width].any():
                self.each.append((ids[:width], np.where(mask, ids, -1)[:width]))
            else:
                self.n_dropped += 1
        self.rows = pack_whole([len(ids) for ids, _ in self.each], width)
        if not self.rows:
            raise ValueError(f"{path}: no answer within the first {width} tokens of a conversation")

    def batch(self, at):
        """Return rows `at` (B,) as pad_rows does: (idx, targets), int64 (B, width - 1) each."""
        ids = [np.concatenate([self.each[i][0] for i in self.rows[row]]) for row in at]
        targets = [np.concatenate([self.each[i][1] for i in self.rows[row]]) for row in at]
        return pad_rows(ids, targets, self.bos_id, self.width)
