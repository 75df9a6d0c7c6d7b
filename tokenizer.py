"""Text to token ids and back, as nanochat: bytes, merged tokens by rank, special tokens; chats."""
import json
import os
import pickle
import pickletools
from collections import Counter
from itertools import chain, count
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from files import write_json
from language import syllables

SPECIAL_TOKENS = ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>",
                  "<|assistant_end|>", "<|python_start|>", "<|python_end|>", "<|output_start|>",
                  "<|output_end|>"]  # in the order of their ids; no chat here uses the last four
# nanochat's: GPT-4's pattern with at most 2 digits a token instead of 3
SPLIT_PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
                 r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
MAX_CHARS = 10_000  # of a part of a text in training: memory is 90 bytes a character
# The `tokenizers` library writes a byte as one printable character: itself, or from chr(256) on
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
SPARE = count(256)
BYTE_CHARS = [chr(b if b in PRINTABLE else next(SPARE)) for b in range(256)]
CHAR_BYTES = {char: byte for byte, char in enumerate(BYTE_CHARS)}
# a pickled tiktoken.Encoding: this class, its dict, BUILD (b"b") and STOP (b".")
PICKLE_CLASS = b"\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81"


# ---- the tokenizer

class BPETokenizer:
    """Bytes, merged tokens and the nine special tokens.

    n_syllables: of the merged ones the first so many are syllables, no parts of text; readings:
    {token: "syllable syllable ..."}, how tokens of text (bytes) are said.
    """

    def __init__(self, tokens=(), n_syllables=0, readings=None):
        """tokens: bytes of the merged ones, by rank; each of text is made of two before it."""
        self.tokens = [bytes([b]) for b in range(256)] + list(tokens)
        self.special_ids = {name: len(self.tokens) + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.pieces = self.tokens + [name.encode() for name in SPECIAL_TOKENS]  # bytes by id
        self.vocab_size = len(self.pieces)
        self.bos_id = self.special("<|bos|>")
        self.n_syllables, self.readings = n_syllables, readings or {}
        vocab = {to_chars(token): i for i, token in enumerate(self.tokens)}
        merges = []
        for chars in list(vocab)[256:]:
            merges += [(chars[:n], chars[n:]) for n in range(1, len(chars))
                       if chars[:n] in vocab and chars[n:] in vocab]
        # as tiktoken: a piece of text that is a token stays whole, all else is merged by rank
        bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
        self.bpe = split_by_pattern(bpe)

    def special(self, name):
        return self.special_ids[name]

    def encode(self, text):
        """Return the ids (list of int) of a str; names of special tokens are ordinary text."""
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair becomes ?
        return self.bpe.encode(text).ids

    def decode(self, ids):
        """Return the str of ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")

    def token_bytes(self):
        """Return how many bytes of text each id stands for; 0: special."""
        return [len(token) for token in self.tokens] + [0] * len(self.special_ids)

    def token_chars(self):
        """Return of how many characters, or parts of one, each id is; 0: special."""
        texts = (token.decode(errors="replace") for token in self.tokens)
        return [*map(len, texts), *[0] * len(self.special_ids)]

    def content(self):
        content = {"format": "nanochat-omni tokenizer 1", "vocab_size": self.vocab_size,
                   "pattern": SPLIT_PATTERN, "special": SPECIAL_TOKENS,
                   "tokens": [to_chars(token) for token in self.tokens[256:]]}
        if self.n_syllables:
            content["syllables"] = self.n_syllables
            content["readings"] = {to_chars(token): said for token, said in self.readings.items()}
        return content

    def save(self, folder):
        os.makedirs(folder, exist_ok=True)
        write_json(f"{folder}/tokenizer.json", self.content(), indent=0)

    def spell(self, data):
        """Return the ids (list of int) of bytes that are one token of a larger vocabulary."""
        return [token.id for token in self.bpe.model.tokenize(to_chars(data))]


def train_bpe(texts, vocab_size):
    """Train a BPETokenizer on an iterable of str; the same texts give the same one.

    vocab_size: with 256 bytes and 9 special tokens; ValueError: out of reach.
    """
    bpe = split_by_pattern(Tokenizer(models.BPE()))
    parts = (text[i:i + MAX_CHARS] for text in texts for i in range(0, len(text), MAX_CHARS))
    n_ids = max(vocab_size - len(SPECIAL_TOKENS), 256)
    bpe.train_from_iterator(parts, trainers.BpeTrainer(
        vocab_size=n_ids, initial_alphabet=BYTE_CHARS, show_progress=False))
    vocab = bpe.get_vocab()
    merged = [chars for chars in sorted(vocab, key=vocab.get) if len(chars) > 1]  # by rank
    tok = BPETokenizer([to_bytes(chars) for chars in merged])
    if tok.vocab_size != vocab_size:
        raise ValueError(f"vocab_size={vocab_size}: these texts give 265 to {tok.vocab_size}")
    return tok


def train_syllables(texts, vocab_size, most):
    """Train a BPETokenizer of Chinese texts (list of str) whose tokens are read as pinyin.

    most: of the syllables so many are tokens; they end in a digit, as no token of text does.
    """
    counts = Counter()
    for char, n in Counter(chain.from_iterable(texts)).items():
        counts.update(dict.fromkeys(syllables(char), n))
    said = [syllable.encode() for syllable, _ in counts.most_common(most)]
    tokens = train_bpe(texts, vocab_size - len(said)).tokens[256:]
    readings = {token: " ".join(syllables(token.decode(errors="replace").strip()))
                for token in tokens}
    return BPETokenizer(said + tokens, len(said), readings)


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


def load_tokenizer(folder, vocab_size=0):
    """Return the tokenizer of folder/tokenizer.json, else of nanochat's tokenizer.pkl there.

    vocab_size: of its model; 0: not checked. ValueError: a missing or wrong file.
    """
    path, pickled = Path(folder, "tokenizer.json"), Path(folder, "tokenizer.pkl")
    if pickled.exists() and not path.exists():
        path = pickled
    try:
        data = path.read_bytes()
        tok = from_pickle(data) if path == pickled else from_json(data)
        if vocab_size and tok.vocab_size != vocab_size:
            raise ValueError(f"it has {tok.vocab_size} ids, its model {vocab_size}")
    except (OSError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path}: no whole tokenizer of this model ({type(e).__name__}: {e}): "
                         "copy the run's own there, or nanochat's "
                         "<base folder>/tokenizer/tokenizer.pkl") from None
    return tok


def from_json(data):
    content = json.loads(data)
    tokens = [to_bytes(chars) for chars in content["tokens"]]
    readings = {to_bytes(chars): said for chars, said in content.get("readings", {}).items()}
    tok = BPETokenizer(tokens, content.get("syllables", 0), readings)
    for name, value in tok.content().items():
        if content[name] != value:
            raise ValueError(f"its {name} is not this code's")
    return tok


def from_pickle(data):
    """data: bytes of nanochat's tokenizer.pkl, a pickled tiktoken.Encoding; they are not run."""
    steps = pickle_steps(data)
    tok = BPETokenizer([value for _, value in steps if isinstance(value, bytes)][256:])
    if steps != pickle_steps(to_pickle(tok)):
        raise ValueError("its class, its split pattern, its bytes, their ranks or its special "
                         "tokens are not nanochat's")
    return tok


def pickle_steps(data):
    """Return [(name, argument)] of a pickle's opcodes, without the layout of its bytes."""
    return [(op.name, value) for op, value, _ in pickletools.genops(data)
            if op.name not in ("PROTO", "FRAME", "MEMOIZE")]


def to_pickle(tok):
    state = pickle.dumps({
        "name": "rustbpe", "pat_str": SPLIT_PATTERN,
        "mergeable_ranks": {token: i for i, token in enumerate(tok.tokens)},
        "special_tokens": tok.special_ids}, protocol=4)
    return state[:2] + PICKLE_CLASS + state[2:-1] + b"b."


def export_nanochat(tok, folder):
    """Write tokenizer.pkl (a pickled tiktoken.Encoding) and token_bytes.pt (int32 (V,)).

    nanochat's tok_train.py writes the same.
    """
    import torch  # nothing else here needs it
    Path(folder, "tokenizer.pkl").write_bytes(to_pickle(tok))
    torch.save(torch.tensor(tok.token_bytes(), dtype=torch.int32), f"{folder}/token_bytes.pt")


# ---- chats

ROLES = "user", "assistant"  # in turn


def render_conversation(tok, conversation):
    """Return (ids, mask) of a chat, both lists of int; mask is 1 where the assistant is trained.

    conversation: {"messages": [{"role": "user" or "assistant", "content": str}, ...]}. ValueError:
    they are not in turn.
    """
    ids, mask = [tok.bos_id], [0]
    for i, message in enumerate(conversation["messages"]):
        role = message["role"]
        if role != ROLES[i % 2]:
            raise ValueError(f"message {i} is from {role!r}: user and assistant come in turn")
        content = [*tok.encode(message["content"]), tok.special(f"<|{role}_end|>")]
        ids += [tok.special(f"<|{role}_start|>"), *content]
        mask += [0, *[i % 2] * len(content)]
    return ids, mask


def multiple_choice(question, options):
    return "\n".join([question, *options, "answer with one of the options"])
