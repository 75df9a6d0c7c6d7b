"""The KV cache: what the rows of a batch have read."""
import torch
import torch.nn.functional as F

from device import compute_dtype


class KVCache:
    """Keys and values of B rows, each filled to its own length; a call appends there.

    Padding is written past the row's length, where no query sees it; the next call overwrites it.
    """

    def __init__(self, config, batch_size, device="cpu"):
        head_dim = config.n_embd // config.n_head
        shape = (2, config.n_layer, batch_size, config.n_kv_head, 1, head_dim)
        self.kv = torch.zeros(shape, dtype=compute_dtype(device), device=device)
        self.lens = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.previous = self.kv.new_zeros(batch_size, 1, config.n_embd)  # last text embedding
        self.longest = 0  # of lens, on the host

    def swap_previous(self, x, text_lens):
        """Return the text embedding before this call's x (B, T, C); keep the last one of x."""
        previous, self.previous = self.previous, x[:, -1:]
        if text_lens is not None:
            row = torch.arange(len(x), device=x.device)
            last = x[row, (text_lens - 1).clamp(min=0)][:, None]  # (B, 1, C)
            self.previous = torch.where((text_lens > 0)[:, None, None], last, previous)
        return previous

    def extend(self, T, lens, limit):
        """Add T places to every row, or lens (B,) of them; return their positions (B, T)."""
        places = self.lens[:, None] + torch.arange(T, device=self.lens.device)
        new_lens = self.lens + (T if lens is None else lens)
        longest = self.longest + T if lens is None else int(new_lens.max())
        assert longest <= limit, f"{longest} tokens > the model's {limit}"
        self.lens, self.longest = new_lens, longest
        self.make_room()
        spare = self.kv.size(4) - 1  # one slot for padding past the end
        self.places = places.clamp(max=spare)
        return self.places.clamp(max=limit - 1)

    def make_room(self, more=16):
        """Grow to hold the longest row, and more places at once."""
        if self.kv.size(4) <= self.longest:
            self.kv = F.pad(self.kv, (0, 0, 0, self.longest + more - self.kv.size(4)))

    def write(self, layer, k, v):
        """Store k, v (B, T, H_kv, D) at extend()'s places -> all, (2, B, H_kv, longest, D)."""
        row = torch.arange(k.size(0), device=k.device)[:, None]
        self.kv[0, layer][row, :, self.places] = k
        self.kv[1, layer][row, :, self.places] = v
        return self.kv[:, layer, :, :, :self.longest]

    def select(self, rows):
        """Keep the rows of these indices (list of int), which may repeat."""
        if rows == list(range(len(self.lens))):
            return
        rows = torch.tensor(rows, device=self.lens.device)
        self.kv = self.kv.index_select(2, rows)
        self.lens, self.previous = self.lens[rows], self.previous[rows]
        self.longest = int(self.lens.max())

    @classmethod
    def gather(cls, config, rows, room):
        """A cache of rows b of others, with room for more tokens; rows: [(KVCache, b)]."""
        new = cls(config, len(rows), rows[0][0].kv.device)
        new.longest = max(int(old.lens[b]) for old, b in rows)
        new.make_room(room)
        for i, (old, b) in enumerate(rows):
            n = int(old.lens[b])
            new.kv[:, :, i, :, :n] = old.kv[:, :, b, :, :n]
            new.previous[i] = old.previous[b]
            new.lens[i] = n
        return new
