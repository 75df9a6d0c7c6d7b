"""Text to token ids and back: bytes, byte-pair merges, nanochat's special tokens, chat rendering with a loss mask.

Ids as nanochat's: the 256 bytes in byte order, then the merged tokens by rank, then the special tokens.
"""
import json
import os
import pickle
import pickletools

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>",
                  "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"]  # the order is their ids'
# nanochat's: GPT-4's pattern with at most 2 digits a token instead of 3, for small vocabularies
SPLIT_PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
                 r"|\s*[\r\n]|\s+(?!\S)|\s+")
FORMAT = "nanochat-omni tokenizer 1"
MAX_CHARS = 10_000  # of a text at a time in training, as nanochat's doc-cap: `tokenizers` takes 90 bytes a character
# The `tokenizers` library writes each byte as one printable character: itself, or chr(256 + n) for those that are none
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [b for b in range(256) if b not in PRINTABLE]
BYTE_CHARS = [chr(b if b in PRINTABLE else 256 + OTHERS.index(b)) for b in range(256)]
CHAR_BYTES = {char: byte for byte, char in enumerate(BYTE_CHARS)}
# A pickled tiktoken.Encoding: the opcodes that hold its values, those that shape it, and how it starts: two strings,
# STACK_GLOBAL (the class of that name), EMPTY_TUPLE, NEWOBJ; its dict, BUILD (b"b") and STOP (b".") follow
PICKLE_VALUES = {"SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BININT1", "BININT2", "BININT"}
PICKLE_SHAPE = {"PROTO", "FRAME", "MEMOIZE", "STACK_GLOBAL", "EMPTY_TUPLE", "NEWOBJ", "EMPTY_DICT", "MARK", "SETITEM",
                "SETITEMS", "BUILD", "STOP"}
PICKLE_CLASS = b"\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81"


# -----------------------------------------------------------------------------
# the tokenizers

class ByteTokenizer:
    """The 256 bytes and <|bos|>: 257 ids, nothing to train, no chat."""
    kind = "byte"

    def __init__(self, tokens=(), special=SPECIAL_TOKENS[:1]):
        """tokens: bytes of each id from 256 on, by rank; special: names of the ids after them."""
        self.tokens = [bytes([b]) for b in range(256)] + list(tokens)
        self.special_ids = {name: len(self.tokens) + i for i, name in enumerate(special)}
        self.pieces = self.tokens + [name.encode() for name in special]  # bytes by id
        self.vocab_size = len(self.pieces)
        self.bos_id = self.special("<|bos|>")

    def special(self, name):
        """Return the id of a special token; a ValueError says which this tokenizer has."""
        if name not in self.special_ids:
            raise ValueError(f"a {self.kind} tokenizer has no {name} token, only {', '.join(self.special_ids)}")
        return self.special_ids[name]

    def encode(self, text):
        """Return the ids (list of int) of a str; the name of a special token in it is ordinary text."""
        return list(to_utf8(text))

    def decode(self, ids):
        """Return the str of ids (ints); bytes that are no UTF-8 become U+FFFD, special tokens their names."""
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            bad = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise ValueError(f"token id {bad} is outside this {self.kind} tokenizer's 0..{self.vocab_size - 1}")
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self):
        """Return for each id how many bytes of text it stands for (0: special), for bits per byte."""
        return [len(token) for token in self.tokens] + [0] * len(self.special_ids)

    def save(self, folder):
        """Write folder/tokenizer.json (to a temporary name first, so that it is whole or not there)."""
        os.makedirs(folder, exist_ok=True)
        content = {"format": FORMAT, "kind": self.kind, "vocab_size": self.vocab_size, "pattern": SPLIT_PATTERN,
                   "special": list(self.special_ids), "tokens": [to_chars(token) for token in self.tokens[256:]]}
        path = os.path.join(folder, "tokenizer.json")
        with open(f"{path}.tmp{os.getpid()}", "w", encoding="utf-8") as f:
            json.dump(content, f, ensure_ascii=False, indent=0)
        os.replace(f"{path}.tmp{os.getpid()}", path)


class BPETokenizer(ByteTokenizer):
    """Bytes, merged tokens and the nine special tokens; train_bpe() or load_tokenizer() makes one."""
    kind = "bpe"

    def __init__(self, tokens):
        """tokens: bytes of each merged token, by rank; a ValueError names one that no two earlier tokens make."""
        super().__init__(tokens, SPECIAL_TOKENS)
        vocab, merges = {to_chars(token): i for i, token in enumerate(self.tokens)}, []
        for i, token in enumerate(self.tokens[256:], start=256):
            chars = to_chars(token)
            # every split into two tokens, not only the trained one: a text may arrive at the token either way
            splits = [(chars[:n], chars[n:]) for n in range(1, len(chars)) if chars[:n] in vocab and chars[n:] in vocab]
            if vocab[chars] != i or not any(vocab[left] < i > vocab[right] for left, right in splits):
                raise ValueError(f"token {i} ({token[:40]!r}) is there twice, or not made of two earlier tokens")
            merges += splits
        # as tiktoken: a piece that is a token is that token, all else is merged by rank
        self.bpe = split_by_pattern(Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True)))

    def encode(self, text):
        """Return the ids (list of int) of a str; the name of a special token in it is ordinary text."""
        return self.bpe.encode(to_utf8(text).decode()).ids

    def spell(self, data):
        """Return the ids (list of int) of bytes: a token of a larger vocabulary in this one's pieces."""
        return [token.id for token in self.bpe.model.tokenize(to_chars(data))]


def train_bpe(texts, vocab_size):
    """Train a BPETokenizer on an iterable of str; the same texts give the same tokenizer.

    vocab_size: all ids, 256 bytes and 9 special tokens included. ValueError when the texts can't fill it. A text is
    read MAX_CHARS at a time; 200 MB of books took 50 s and 0.3 GB, for 2**12 as for 2**16 ids (1 core, 2026-11-23).
    """
    n_merged = vocab_size - 256 - len(SPECIAL_TOKENS)
    if n_merged < 0:
        raise ValueError(f"vocab_size={vocab_size} is below {256 + len(SPECIAL_TOKENS)}, the bytes and special tokens")
    bpe = split_by_pattern(Tokenizer(models.BPE()))
    short = (text[i:i + MAX_CHARS] for text in texts for i in range(0, len(text), MAX_CHARS))
    bpe.train_from_iterator(short, trainers.BpeTrainer(
        vocab_size=256 + n_merged, initial_alphabet=BYTE_CHARS, show_progress=False))
    vocab = bpe.get_vocab()
    merged = [chars for chars in sorted(vocab, key=vocab.get) if len(chars) > 1]  # by rank; bytes have 1
    if len(merged) < n_merged:
        raise ValueError(f"the texts give {len(merged)} merges of {n_merged}: lower vocab_size to "
                         f"{vocab_size - n_merged + len(merged)} or add text")
    return BPETokenizer([to_bytes(chars) for chars in merged])


def load_tokenizer(folder, vocab_size=0):
    """Return the tokenizer of folder/tokenizer.json or, where that is missing, of nanochat's folder/tokenizer.pkl.

    vocab_size: of the model beside it (0: not checked). A ValueError says what is wrong with a file, or doesn't fit.
    """
    path, pickled = os.path.join(folder, "tokenizer.json"), os.path.join(folder, "tokenizer.pkl")
    path = pickled if os.path.exists(pickled) and not os.path.exists(path) else path
    tok = read_pickle(path) if path == pickled else read_json(path)
    if vocab_size and tok.vocab_size != vocab_size:
        raise ValueError(f"{path} has {tok.vocab_size} ids, its model {vocab_size}: copy the run's own tokenizer")
    return tok


def read_json(path):
    """Return the tokenizer of a file that save() wrote; a ValueError says what is wrong with it."""
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except OSError as e:
        folder = os.path.dirname(path)
        theirs = os.path.normpath(os.path.join(folder, "../../tokenizer/tokenizer.pkl"))  # in nanochat's base folder
        theirs = theirs if os.path.exists(theirs) else "<its base folder>/tokenizer/tokenizer.pkl"
        raise ValueError(f"{path}: no tokenizer there ({e.strerror}): copy the run's own, that train_base.py wrote, or "
                         f"nanochat's {theirs}, into {folder}") from e
    except ValueError as e:  # no JSON or no UTF-8: cut short, or damaged
        raise ValueError(f"{path}: corrupt tokenizer ({e}); copy it again or train it anew") from e
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("pattern") != SPLIT_PATTERN:
        raise ValueError(f"{path}: not a tokenizer of this code (its \"format\" is not '{FORMAT}')")
    try:
        tokens = [to_bytes(chars) for chars in content["tokens"]]
        tok = BPETokenizer(tokens) if content["kind"] == "bpe" else ByteTokenizer(tokens)
        if [tok.kind, tok.vocab_size, list(tok.special_ids)] != [content[k] for k in ("kind", "vocab_size", "special")]:
            raise ValueError("kind, vocab_size or special does not fit the tokens")
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path}: corrupt tokenizer ({type(e).__name__}: {e}); copy it again or train it anew") from e
    return tok


def read_pickle(path):
    """Return the BPETokenizer of nanochat's tokenizer.pkl, a pickled tiktoken.Encoding (nanochat/tokenizer.py).

    The pickle is never run, its values are taken as they lie there; a ValueError says what is not as nanochat's.
    """
    try:
        with open(path, "rb") as f:
            opcodes = [(opcode.name, value) for opcode, value, _ in pickletools.genops(f.read())]
        foreign = {name for name, _ in opcodes} - PICKLE_VALUES - PICKLE_SHAPE
        if foreign:
            raise ValueError(f"a vocabulary needs no opcode {', '.join(sorted(foreign))}")
        return BPETokenizer(nanochat_tokens([value for name, value in opcodes if name in PICKLE_VALUES]))
    except OSError as e:
        raise ValueError(f"{path}: can't be read ({e.strerror})") from e
    except ValueError as e:
        raise ValueError(f"{path}: not a tokenizer that nanochat saved ({e}); copy it again, or train one") from e


def nanochat_tokens(values):
    """Return the merged tokens (list of bytes, by rank) of a pickled Encoding's values (str, bytes, int), in order."""
    if [*values[:3], *values[4:7:2]] != ["tiktoken.core", "Encoding", "name", "pat_str", "mergeable_ranks"]:
        raise ValueError("it is no tiktoken.Encoding with its own vocabulary")
    end = values.index("special_tokens")
    tokens, ranks = values[7:end:2], values[8:end:2]
    if values[5] != SPLIT_PATTERN:
        raise ValueError("its split pattern is another")
    if ranks != list(range(len(tokens))) or not all(isinstance(token, bytes) for token in tokens):
        raise ValueError("its ranks are not 0, 1, 2, ... of bytes, in order")
    if tokens[:256] != [bytes([b]) for b in range(256)]:
        raise ValueError("its first 256 tokens are not the bytes in order")
    if values[end + 1:] != [value for i, name in enumerate(SPECIAL_TOKENS, len(tokens)) for value in (name, i)]:
        raise ValueError(f"its special tokens are not {SPECIAL_TOKENS[0]} to {SPECIAL_TOKENS[-1]}, after all others")
    return tokens[256:]


def export_nanochat(tok, folder):
    """Write folder/tokenizer.pkl and folder/token_bytes.pt, as nanochat's scripts/tok_train.py does.

    tok: a BPETokenizer (ValueError for another). The files: a pickled tiktoken.Encoding, written without that package,
    and a torch int32 tensor (V,), how many bytes each id stands for (0: special).
    """
    import torch  # nothing else here needs it
    tok.special("<|user_start|>")  # bytes have none: the ValueError, before anything is written
    ranks = {token: i for i, token in enumerate(tok.tokens)}
    state = pickle.dumps({"name": "rustbpe", "pat_str": SPLIT_PATTERN, "mergeable_ranks": ranks,
                          "special_tokens": tok.special_ids}, protocol=4)
    os.makedirs(folder, exist_ok=True)
    data, sizes = state[:2] + PICKLE_CLASS + state[2:-1] + b"b.", torch.tensor(tok.token_bytes(), dtype=torch.int32)
    for name, write in (("tokenizer.pkl", lambda f: f.write(data)), ("token_bytes.pt", lambda f: torch.save(sizes, f))):
        path = os.path.join(folder, name)
        with open(f"{path}.tmp{os.getpid()}", "wb") as f:
            write(f)
        os.replace(f"{path}.tmp{os.getpid()}", path)


def compression(tok, texts):
    """Return {name: bytes per token} of texts {name: str}, as nanochat's tok_eval.py reports them; 0 if empty."""
    return {name: len(to_utf8(text)) / max(len(tok.encode(text)), 1) for name, text in texts.items()}


def split_by_pattern(bpe):
    """Let a `tokenizers` model cut text by SPLIT_PATTERN, then into bytes; no token crosses a cut."""
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return bpe


def to_chars(data):
    """Return bytes as the printable characters that stand for them."""
    return "".join(BYTE_CHARS[b] for b in data)


def to_bytes(chars):
    """Return the bytes of printable characters (KeyError: one that stands for no byte)."""
    return bytes(CHAR_BYTES[char] for char in chars)


def to_utf8(text):
    """Return a str as UTF-8 bytes; half a surrogate pair (JSON can carry one) becomes U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")


# -----------------------------------------------------------------------------
# chats

def render_conversation(tok, conversation):
    """Return (ids, mask) of a chat, both lists of int, whole; mask is 1 where the assistant is trained.

    conversation: {"messages": [{"role", "content"}, ...]}, user and assistant in turn, a system message (joined to the
    user's) before them. The assistant's content is a str or a list of {"type": text | python | python_output, "text"}.
    """
    ids, mask = [tok.bos_id], [0]

    def add(new_ids, is_trained):
        ids.extend(new_ids)
        mask.extend([is_trained] * len(new_ids))

    for role, parts in read_messages(conversation):
        add([tok.special(f"<|{role}_start|>")], 0)
        for kind, text in parts:
            if kind == "text":
                add(tok.encode(text), int(role == "assistant"))
            else:  # what Python answers is not the model's to predict
                name = "python" if kind == "python" else "output"
                piece = [tok.special(f"<|{name}_start|>"), *tok.encode(text), tok.special(f"<|{name}_end|>")]
                add(piece, int(kind == "python"))
        add([tok.special(f"<|{role}_end|>")], int(role == "assistant"))
    return ids, mask


def read_messages(conversation):
    """Return [(role, [(kind, text), ...]), ...] of a conversation, system message joined; ValueError on a wrong one."""
    try:
        messages = [(m["role"], m["content"]) for m in conversation["messages"]]
    except (KeyError, TypeError) as e:
        raise ValueError(f'conversation: {e}; it is {{"messages": [{{"role": ..., "content": ...}}, ...]}}') from e
    if messages and messages[0][0] == "system":
        if len(messages) < 2 or not (isinstance(messages[0][1], str) and isinstance(messages[1][1], str)):
            raise ValueError("conversation: a system message is text, with a user's text after it")
        messages[:2] = [(messages[1][0], messages[0][1] + "\n\n" + messages[1][1])]
    if not messages:
        raise ValueError("conversation: no messages")
    rows = []
    for i, (role, content) in enumerate(messages):
        if role != ("user", "assistant")[i % 2]:
            raise ValueError(f"conversation: message {i} is from {role!r}, not from {('user', 'assistant')[i % 2]!r}")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kinds = ("text", "python", "python_output") if role == "assistant" else ("text",)
        if not isinstance(parts, list) or not all(
                isinstance(p, dict) and p.get("type") in kinds and isinstance(p.get("text"), str) for p in parts):
            raise ValueError(f"conversation: message {i} ({role}) is neither text nor parts of type {', '.join(kinds)}")
        rows.append((role, [(part["type"], part["text"]) for part in parts]))
    return rows


def multiple_choice(question, options, letters=""):
    """Return a question with its options, one a line: there and as the answer an option has the same token ids, or with
    letters (str) its letter, right before it: where a toy model bound them sooner than behind (2026-11)."""
    options = [f"{letter} {option}" for option, letter in zip(options, letters)] or options
    return "\n".join([question, *options, "answer with " + ("the letter" if letters else "one of the options")])


def chat_prompt(tok, turns, question):
    """Return the ids that ask `question` (str) after turns [(question, answer), ...]; its answer follows them."""
    messages = [m for q, a in turns for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
    ids, _ = render_conversation(tok, {"messages": [*messages, {"role": "user", "content": question}]})
    return [*ids, tok.special("<|assistant_start|>")]
