"""Rows of token ids to train on: padded, shifted, cut from sentences."""
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence


def pad(rows, device="cpu", value=0):
    """Lists of ids or tensors (n, ...) -> (B, longest, ...) and their lengths (B,)."""
    lens = torch.tensor([len(row) for row in rows], device=device)
    padded = pad_sequence([torch.as_tensor(row) for row in rows], True, value)
    return padded.to(device), lens


def pad_rows(rows, targets, pad_id):
    """Pad B rows of ids to the longest and shift: (idx, targets), int64 (B, longest - 1) each.

    rows, targets: B arrays (n,) each; a target is an id, or -1 where nothing is learnt.
    """
    idx, wanted = pad(rows, value=pad_id)[0], pad(targets, value=-1)[0]
    return idx[:, :-1].numpy(), wanted[:, 1:].numpy()


class Sentences:
    """Sentences (list of str) as token ids.

    ids: int32 (N,), of all; sentence i is ids[starts[i]:starts[i + 1]]; lens: int (n,), its tokens.
    rows: int32 (n_rows, text_len + 1), cut from the stream <|bos|> sentence <|bos|> sentence ...
    """

    def __init__(self, lines, tokenizer, text_len):
        each = [tokenizer.encode(line) for line in lines]
        self.bos_id = tokenizer.bos_id
        self.lens = np.array([len(ids) for ids in each])
        self.starts = np.cumsum([0, *self.lens])
        self.ids = np.concatenate(each).astype(np.int32)
        stream = np.insert(self.ids, self.starts[:-1], self.bos_id)
        width = min(text_len, len(stream) - 1)
        n_rows = (len(stream) - 1) // width
        windows = np.lib.stride_tricks.sliding_window_view(stream, width + 1)
        self.rows = windows[:n_rows * width:width]

    def each(self, at):
        """Return the ids of sentences `at`: a list of arrays."""
        return [self.ids[self.starts[i]:self.starts[i + 1]] for i in at]

    def padded(self, at):
        """Return sentences `at` (B,) as pad_rows does: <|bos|> sentence -> sentence <|bos|>."""
        rows = [[self.bos_id, *ids, self.bos_id] for ids in self.each(at)]
        return pad_rows(rows, rows, self.bos_id)
