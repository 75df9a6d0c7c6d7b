"""Text to token ids and back: bytes, byte-pair merges, nanochat's special tokens, chats.

The ids are nanochat's: the 256 bytes in order, the merged tokens by rank, the special tokens.
"""
import io
import json
import os
import pickle
from itertools import chain

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from files import write_json

SPECIAL_TOKENS = ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>",
                  "<|assistant_end|>", "<|python_start|>", "<|python_end|>", "<|output_start|>",
                  "<|output_end|>"]  # in the order of their ids
# nanochat's: GPT-4's pattern with at most 2 digits a token instead of 3, for small vocabularies
SPLIT_PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
                 r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
FORMAT = "nanochat-omni tokenizer 1"
MAX_CHARS = 10_000  # of a part of a text in training, which takes 90 bytes of memory a character
# The `tokenizers` library writes a byte as one printable character: itself or chr(256 + n)
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [b for b in range(256) if b not in PRINTABLE]
BYTE_CHARS = [chr(b if b in PRINTABLE else 256 + OTHERS.index(b)) for b in range(256)]
CHAR_BYTES = {char: byte for byte, char in enumerate(BYTE_CHARS)}
# a pickled tiktoken.Encoding: this class, its dict, BUILD (b"b") and STOP (b".")
PICKLE_CLASS = b"\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81"


# ---- the tokenizers

class ByteTokenizer:
    """The 256 bytes and <|bos|>: 257 ids, nothing to train, no chats."""
    kind = "byte"

    def __init__(self, tokens=(), special=SPECIAL_TOKENS[:1]):
        """tokens: bytes of the ids from 256 on, by rank; special: names of the ids after them."""
        self.tokens = [bytes([b]) for b in range(256)] + list(tokens)
        self.special_ids = {name: len(self.tokens) + i for i, name in enumerate(special)}
        self.pieces = self.tokens + [name.encode() for name in special]  # bytes by id
        self.vocab_size = len(self.pieces)
        self.bos_id = self.special("<|bos|>")

    def special(self, name):
        """Return the id of a special token; ValueError: there is none of that name."""
        if name not in self.special_ids:
            raise ValueError(f"a {self.kind} tokenizer has no {name} token, "
                             f"only {', '.join(self.special_ids)}")
        return self.special_ids[name]

    def encode(self, text):
        """Return the ids (list of int) of a str; the name of a special token is ordinary text."""
        return list(to_utf8(text))

    def decode(self, ids):
        """Return the str of ids; bytes that are no UTF-8 become U+FFFD."""
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside this {self.kind} tokenizer's "
                                 f"0..{self.vocab_size - 1}")
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self):
        """Return how many bytes of text each id stands for; 0: special."""
        return [len(token) for token in self.tokens] + [0] * len(self.special_ids)

    def content(self):
        """Return what tokenizer.json holds (dict)."""
        return {"format": FORMAT, "kind": self.kind, "vocab_size": self.vocab_size,
                "pattern": SPLIT_PATTERN, "special": list(self.special_ids),
                "tokens": [to_chars(token) for token in self.tokens[256:]]}

    def save(self, folder):
        """Write folder/tokenizer.json."""
        os.makedirs(folder, exist_ok=True)
        write_json(os.path.join(folder, "tokenizer.json"), self.content(), indent=0)


class BPETokenizer(ByteTokenizer):
    """Bytes, merged tokens and the nine special tokens."""
    kind = "bpe"

    def __init__(self, tokens):
        """tokens: bytes of the merged ones, by rank; ValueError: they can't be merged so."""
        super().__init__(tokens, SPECIAL_TOKENS)
        vocab = {to_chars(token): i for i, token in enumerate(self.tokens)}
        merges = []
        for i, token in enumerate(self.tokens[256:], start=256):
            chars = to_chars(token)
            splits = [(chars[:n], chars[n:]) for n in range(1, len(chars))
                      if chars[:n] in vocab and chars[n:] in vocab]
            is_made = any(vocab[left] < i > vocab[right] for left, right in splits)
            if vocab[chars] != i or not is_made:
                raise ValueError(f"token {i} ({token[:40]!r}) is there twice, or not made of two "
                                 "earlier tokens")
            merges += splits
        # as tiktoken: a piece of text that is a token stays whole, all else is merged by rank
        bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
        self.bpe = split_by_pattern(bpe)

    def encode(self, text):
        return self.bpe.encode(to_utf8(text).decode()).ids

    def spell(self, data):
        """Return the ids (list of int) of bytes that are one token of a larger vocabulary."""
        return [token.id for token in self.bpe.model.tokenize(to_chars(data))]


def train_bpe(texts, vocab_size):
    """Train a BPETokenizer on an iterable of str; the same texts give the same tokenizer.

    vocab_size: number of ids, with 256 bytes and 9 special tokens. ValueError: too little text.
    """
    n_merged = vocab_size - 256 - len(SPECIAL_TOKENS)
    if n_merged < 0:
        raise ValueError(f"vocab_size={vocab_size} is below {256 + len(SPECIAL_TOKENS)}, "
                         "the bytes and special tokens")
    bpe = split_by_pattern(Tokenizer(models.BPE()))
    parts = chain.from_iterable(map(in_parts, texts))
    bpe.train_from_iterator(parts, trainers.BpeTrainer(
        vocab_size=256 + n_merged, initial_alphabet=BYTE_CHARS, show_progress=False))
    vocab = bpe.get_vocab()
    merged = [chars for chars in sorted(vocab, key=vocab.get) if len(chars) > 1]  # by rank
    if len(merged) < n_merged:
        raise ValueError(f"the texts give {len(merged)} merges of {n_merged}: lower vocab_size to "
                         f"{vocab_size - n_merged + len(merged)} or add text")
    return BPETokenizer([to_bytes(chars) for chars in merged])


def in_parts(text):
    return [text[i:i + MAX_CHARS] for i in range(0, len(text), MAX_CHARS)]


def split_by_pattern(bpe):
    """Let a `tokenizers` model cut text by SPLIT_PATTERN; no token crosses a cut."""
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return bpe


def to_chars(data):
    return "".join(BYTE_CHARS[b] for b in data)


def to_bytes(chars):
    return bytes(CHAR_BYTES[char] for char in chars)


def to_utf8(text):
    """Return UTF-8; half a surrogate pair (JSON can hold one) becomes U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")


# ---- their files

def load_tokenizer(folder, vocab_size=0):
    """Return the tokenizer of folder/tokenizer.json, else of nanochat's tokenizer.pkl there.

    vocab_size: of the model beside it; 0: not checked. ValueError: a missing or wrong file.
    """
    path, pickled = (os.path.join(folder, "tokenizer." + end) for end in ("json", "pkl"))
    if os.path.exists(pickled) and not os.path.exists(path):
        path = pickled
    try:
        with open(path, "rb") as f:
            data = f.read()
    except OSError as e:
        raise ValueError(f"{path}: no tokenizer there ({e.strerror}): copy the run's own, or "
                         f"nanochat's <base folder>/tokenizer/tokenizer.pkl, into {folder}") from e
    try:
        tok = from_pickle(data) if path == pickled else from_json(data)
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path}: corrupt or foreign tokenizer ({type(e).__name__}: {e}): copy it "
                         "again") from e
    if vocab_size and tok.vocab_size != vocab_size:
        raise ValueError(f"{path} has {tok.vocab_size} ids, its model {vocab_size}: "
                         "copy the run's own tokenizer")
    return tok


def from_json(data):
    """Return the tokenizer of what save() wrote (bytes)."""
    content = json.loads(data)
    tokens = [to_bytes(chars) for chars in content["tokens"]]
    tok = BPETokenizer(tokens) if content["kind"] == "bpe" else ByteTokenizer(tokens)
    for name, value in tok.content().items():
        if content[name] != value:
            raise ValueError(f"its {name} is another than this code's, or doesn't fit its tokens")
    return tok


class Encoding:
    """Stands for tiktoken.core.Encoding, whose pickle nanochat saves."""


class Unpickler(pickle._Unpickler):  # in Python: nine bytes can make the one in C take 64 GB
    """Unpickles values and Encoding, nothing that runs."""

    def find_class(self, module, name):
        if (module, name) == ("tiktoken.core", "Encoding"):
            return Encoding
        raise ValueError(f"a vocabulary needs no {module}.{name}")


def from_pickle(data):
    """Return the BPETokenizer of nanochat's tokenizer.pkl, a pickled tiktoken.Encoding."""
    try:
        state = vars(Unpickler(io.BytesIO(data)).load())
        tokens, ranks = zip(*state["mergeable_ranks"].items())
    except Exception as e:  # damage stops an unpickler with any exception
        raise ValueError(f"no pickled tiktoken.Encoding: {e!r:.100}") from None
    if state["pat_str"] != SPLIT_PATTERN:
        raise ValueError("its split pattern is another")
    if ranks != tuple(range(len(tokens))) or set(map(type, tokens)) != {bytes}:
        raise ValueError("its ranks are not 0, 1, 2, ... of bytes, in order")
    tok = BPETokenizer(tokens[256:])
    if tok.tokens != list(tokens):
        raise ValueError("its first 256 tokens are not the bytes in order")
    if tok.special_ids != state["special_tokens"]:
        raise ValueError(f"its special tokens are not {', '.join(SPECIAL_TOKENS)}, as the last")
    return tok


def export_nanochat(tok, folder):
    """Write tokenizer.pkl (a pickled tiktoken.Encoding) and token_bytes.pt (int32 (V,)).

    tok: a BPETokenizer. nanochat's tok_train.py writes the same files.
    """
    import torch  # nothing else here needs it
    tok.special("<|user_start|>")  # a ByteTokenizer has none: the ValueError
    state = pickle.dumps({
        "name": "rustbpe", "pat_str": SPLIT_PATTERN,
        "mergeable_ranks": {token: i for i, token in enumerate(tok.tokens)},
        "special_tokens": tok.special_ids}, protocol=4)
    sizes = io.BytesIO()
    torch.save(torch.tensor(tok.token_bytes(), dtype=torch.int32), sizes)
    os.makedirs(folder, exist_ok=True)
    for name, data in (("tokenizer.pkl", state[:2] + PICKLE_CLASS + state[2:-1] + b"b."),
                       ("token_bytes.pt", sizes.getvalue())):
        path = os.path.join(folder, name)
        with open(path + ".tmp", "wb") as f:
            f.write(data)
        os.replace(path + ".tmp", path)


# ---- chats

def render_conversation(tok, conversation):
    """Return (ids, mask) of a chat, both lists of int; mask is 1 where the assistant is trained.

    conversation: {"messages": [{"role", "content"}, ...]}, user and assistant in turn; a system
    message before them is joined to the user's. The assistant's content may also be a list of
    {"type": text | python | python_output, "text"}. ValueError: it is not so.
    """
    ids, mask = [tok.bos_id], [0]

    def add(new_ids, is_trained):
        ids.extend(new_ids)
        mask.extend([int(is_trained)] * len(new_ids))

    for role, parts in read_messages(conversation):
        is_assistant = role == "assistant"
        add([tok.special(f"<|{role}_start|>")], False)
        for kind, text in parts:
            new_ids = tok.encode(text)
            if kind != "text":
                name = kind.removeprefix("python_")  # python, output
                start, end = tok.special(f"<|{name}_start|>"), tok.special(f"<|{name}_end|>")
                new_ids = [start, *new_ids, end]
            add(new_ids, is_assistant and kind != "python_output")
        add([tok.special(f"<|{role}_end|>")], is_assistant)
    return ids, mask


def read_messages(conversation):
    """Return [(role, [(kind, text), ...]), ...] of a conversation; ValueError on a wrong one."""
    try:
        messages = [(m["role"], m["content"]) for m in conversation["messages"]]
        if messages and messages[0][0] == "system":
            messages[:2] = [(messages[1][0], "\n\n".join([messages[0][1], messages[1][1]]))]
    except (KeyError, TypeError, IndexError) as e:
        raise ValueError(f"conversation: {type(e).__name__}: {e}; it is "
                         '{"messages": [{"role": ..., "content": ...}, ...]}') from e
    if not messages:
        raise ValueError("conversation: no messages")
    rows = []
    for i, (role, content) in enumerate(messages):
        wanted = ("user", "assistant")[i % 2]
        if role != wanted:
            raise ValueError(f"conversation: message {i} is from {role!r}, not from {wanted!r}")
        kinds = ("text", "python", "python_output") if role == "assistant" else ("text",)
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        try:
            parts = [(part["type"], part["text"]) for part in parts]
            is_right = all(kind in kinds and isinstance(text, str) for kind, text in parts)
        except (KeyError, TypeError):
            is_right = False
        if not is_right:
            raise ValueError(f"conversation: message {i} ({role}) is no text or parts of type "
                             f"{', '.join(kinds)}")
        rows.append((role, parts))
    return rows


def multiple_choice(question, options):
    """Return a question with its options, one a line."""
    return "\n".join([question, *options, "answer with one of the options"])


def chat_prompt(tok, turns, question):
    """Return the ids that ask `question` (str) after turns [(question, answer), ...]."""
    texts, roles = [*chain.from_iterable(turns), question], ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    ids, _ = render_conversation(tok, {"messages": messages})
    return [*ids, tok.special("<|assistant_start|>")]
