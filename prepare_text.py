"""
Make data/text/{train,val,test}.txt: sentences of the phrase grammar in grammar.txt, or of your own text files; or
with --documents shards of tokens of whole documents, of your files or of the public ones that nanochat trains on.

    python prepare_text.py                                     # 604,000 sentences on one core
    python prepare_text.py config/cpu_text.py --seed=1         # settings from a file, one more from here
    python prepare_text.py --limit=8                           # a toy: 8 sentences a split
    python prepare_text.py --text_file=book.txt,folder         # prose in place of the grammar
    python prepare_text.py --documents=folder,more.jsonl       # documents, no sentences
    python prepare_text.py --documents=climbmix --n_files=170 --vocab_size=32768 --tokenizer_mb=500 --out_dir=data/web

Reads grammar.txt (its format stands at its top) or the text files. Writes into out_dir, in UTF-8, one sentence a line
as transcripts.py spells it, none twice: train.txt (30 MB), val.txt and test.txt (100 kB each), and meta.json (counts,
words, entropy, settings, checksums). A sentence's split is decided by its hash alone, so none of val or test is in any
train.txt. Takes 10 s; run again it does nothing unless a setting or the source is another; then all four are new.

With --documents a run makes documents and no sentences (run it twice for both, in one folder if you like). Reads .txt
and .md cut at empty lines, .jsonl (a document a line), .parquet (pyarrow). Writes into out_dir tokenizer.json (trained,
or of --tokenizer), train-000000.bin, val-000000.bin ... (2 bytes a token up to 65,536 ids, else 4; documents.py says
how) and documents.json (counts, settings, checksums). A document's hash decides whether it is val's; of a file that is
cut each piece is one, so a book is in both. About 2 MB/s a core, on all cores. Run again after an interruption it
goes on with the first shards not done; it never mixes settings: those of another run stop it.
"""
import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import time
from collections import Counter
from pathlib import Path
from random import Random

from tqdm import tqdm

from configurator import configure, fail
from documents import (SOURCES, SUFFIXES, deal_chunks, encode_documents, fetch_source, read_documents, read_shard,
                       write_shard)
from files import find_files, own_file, read_jsonl, read_lines, sha256_file, write_json, write_text
from record import changed_code, code_sums
from tokenizer import compression, load_tokenizer, train_bpe
from transcripts import NoSpokenForm, normalize_transcript

# config: every value here can be set from a config file or as --name=value
out_dir = "data/text"
grammar = "assets/grammar.txt"  # the phrase grammar
text_file = ""           # comma-separated files or folders (.txt .md .json .jsonl), in place of the grammar, in order
one_per_line = False     # text_file: every line is a sentence (True), or prose cut at . ! ? and empty lines (False)
json_key = "text"        # text_file: comma-separated names; of .json and .jsonl the strings under them are read
file_kb = 0              # of each file in a folder so many kB of its middle, a file named itself is read whole; 0: all
exclude = ""             # comma-separated lists of clips (.jsonl): what they say is left out of every split
# 600,000 sentences are 9M tokens of a 2048-entry BPE (15 a sentence), twice what a d4 on two cores reads in 10 minutes
n_train = 600_000        # sentences; of text files at most so many
n_val = 2_000
n_test = 2_000
min_words = 3            # shorter and longer sentences are left out
max_words = 14
seed = 1337              # of the draws from the grammar
limit = 0                # at most so many sentences a split, or documents in all, for a toy; 0: off
# documents, in place of sentences; of the settings above out_dir, json_key and limit hold for them
documents = ""           # comma-separated files, folders (.txt .md .jsonl .parquet) and climbmix or fineweb-edu
n_files = 1              # of climbmix (6,543) or fineweb-edu (1,823), 250 MB of text each; kept in data/<name>
mirrors = "https://hf-mirror.com"  # others' servers, comma-separated, tried where HF_ENDPOINT (or Hugging Face) fails
doc_chars = 4000         # .txt and .md are cut into documents of about so many characters; 0: each file is one
val_share = 0.01         # of the documents are val's, at least one
val_mb = 10.0            # of text in val at most; what the hash held out beyond is left out
tokenizer = ""           # folder of a tokenizer.json or nanochat's .pkl; '': one trained on tokenizer_mb of the text
tokenizer_mb = 50.0
vocab_size = 2048        # of a trained one
shard_mb = 100.0         # of text in a shard of train and one of val: what an interruption loses, held in memory
config = configure(globals())  # prints each change; stored in meta.json, documents.json
# -----------------------------------------------------------------------------
OF_DOCUMENTS = "doc_chars val_share val_mb tokenizer tokenizer_mb vocab_size shard_mb".split()  # and json_key, limit
OF_SENTENCES = {k: v for k, v in config.items() if k not in {"documents", "n_files", "mirrors", *OF_DOCUMENTS}}
VERSION = 2              # of the files; raised when the same settings give other bytes
SPLITS = ("train", "val", "test")
TEXT_FILES = (".txt", ".md", ".json", ".jsonl")
HELD_OUT = 2             # percent of all sentences that are val's, and test's
MAX_MISSES = 20_000      # draws in a row that added nothing: the grammar has no more to give
TOKEN = re.compile(r"(?P<word>[a-z']+)|\$(?P<slot>[a-z]\w*)(\.(?P<form>pl|s|ed|en|ing)\b)?(?P<tail>'s)?"
                   r"|\*(?P<weight>[1-9]\d*)|(?P<mark>[\[\]()|\n])|\S+")
IRREGULAR = re.compile(r"~(\s*[a-z']+(\s+\.(pl|s|ed|en|ing)\s+[a-z']+)+\s*(\||$))+")
AN = re.compile(r"\ba (?=[ai]|e(?!u)|o(?!n(?:e|ce)\b)|u(?!ni|s[eu]|k)|hour|honest)")  # by sound: a uniform, an hour
SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])[.!?]+[\"')\]\u201d\u2019]*\s+")


# ---- the grammar: read ----
def read_grammar(path):
    """Return rules {name: [(weight or None, parts, 'file:line')]} and irregular forms {(word, form): word} of a file.

    The frames are the rule 'sentence'; a part is a word or a slot (rule, form, tail); a bracket becomes a rule named
    '#<n>'. Raises ValueError 'file:line: what is wrong', OSError for a missing file.
    """
    rules, irregular, name = {"sentence": []}, {}, ""
    for number, line in enumerate(read_lines(path), 1):
        text, where = line.partition("#")[0].rstrip(), f"{path}:{number}"
        rule = re.match(r"([a-z]\w*):", text)
        if rule and rule[1] in rules:
            raise ValueError(f"{where}: rule '{rule[1]}' stands twice")
        if rule:
            name, text = rule[1], text[rule.end():]
            rules[name] = []
        elif text[:2] == "- ":
            name, text = "sentence", text[2:]
        elif IRREGULAR.fullmatch(text):
            for word, *pairs in map(str.split, text[1:].split("|")):
                irregular.update({(word, form[1:]): new for form, new in zip(pairs[::2], pairs[1::2])})
            continue
        elif text and (text[0] != " " or name in ("", "sentence")):
            raise ValueError(f"{where}: write '- a frame', 'rule: a | b', an indented line of more alternatives, "
                             f"or '~ word .form inflected' (forms: .pl .s .ed .en .ing)")
        if text.strip():
            rules[name] += read_alternatives(TOKEN.finditer(text + "\n"), rules, where)
    for where, part in [(a[2], part) for rule in rules.values() for a in rule for part in a[1]]:
        if not isinstance(part, str) and not rules.get(part[0]):
            raise ValueError(f"{where}: ${part[0]}: the file has no rule '{part[0]}' with alternatives")
    if not rules["sentence"]:
        raise ValueError(f"{path}: no frames: each is a line '- some words and $slots'")
    return rules, irregular


def read_alternatives(tokens, rules, where, close="\n"):
    """Take [(weight or None, parts, where)] from an iterator over TOKEN's matches up to the mark `close`."""
    found, parts, weight = [], [], None
    for m in tokens:
        if m["word"]:
            parts.append(m[0])
        elif m["slot"]:
            parts.append((m["slot"], m["form"] or "", m["tail"] or ""))
        elif m["weight"] and parts:
            weight = int(m["weight"])
        elif m[0] in ("[", "("):
            inner = [(w or 1, p, where) for w, p, _ in read_alternatives(tokens, rules, where, "])"[m[0] == "("])]
            parts.append((f"#{len(rules)}", "", ""))
            rules[parts[-1][0]] = inner + [(sum(w for w, _, _ in inner), (), where)] * (m[0] == "[")  # or nothing
        elif not m["mark"]:
            raise ValueError(f"{where}: '{m[0]}' is no word in a-z, $slot, $slot.form (.pl .s .ed .en .ing), *weight "
                             f"after an alternative, or one of [ ] ( ) |")
        elif m[0] not in ("|", close):
            raise ValueError(f"{where}: unbalanced brackets at '{m[0].strip() or 'the end of the line'}'")
        elif not parts:
            raise ValueError(f"{where}: an empty alternative")
        else:
            found.append((weight, tuple(parts), where))
            parts, weight = [], None
            if m[0] == close:
                return found


# ---- the grammar: inflect, measure, draw ----
def inflect(word, form, irregular):
    """Inflect a word by rule unless irregular: pl (boxes), s (he fixes), ed (fixed), en (has fixed), ing (fixing)."""
    form = "ed" if form == "en" and (word, form) not in irregular else form
    if (word, form) in irregular:
        return irregular[word, form]
    if form in ("pl", "s"):
        if re.search(r"[^aeiou]y$", word):
            return word[:-1] + "ies"
        return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) or form + word[-1] == "so" else "s")
    if re.fullmatch(r"[^aeiou]*[aeiou][bdgmnprt]", word):
        word += word[-1]  # stop, stopped, stopping
    if form == "ing":
        return re.sub(r"(?<=[^eoy])e$", "", word) + "ing"
    return re.sub(r"(?<=[^aeiou])y$", "i", word).removesuffix("e") + "ed"


class Grammar:
    """A grammar file compiled for drawing: .frames (count), .words (mean a sentence), .entropy (nats a word)."""

    def __init__(self, path, seed):
        self.random, self.tables, self.compiled = Random(seed).random, {}, {}
        self.rules, self.irregular = read_grammar(path)
        self.frames = len(self.rules["sentence"])
        self.draw, entropy, self.words = self.compile("sentence", "")
        self.entropy = entropy / self.words

    def table(self, name, form):
        """Return {parts: weight} of a rule in a form; an alternative that is one bare $slot becomes all of that's."""
        table = Counter()
        for weight, parts, where in self.rules[name]:
            parts = self.inflect_parts(parts, form, where) if form else parts
            bare = weight is None and len(parts) == 1 and not isinstance(parts[0], str) and not parts[0][2]
            table.update(self.once(self.tables, self.table, *parts[0][:2]) if bare else {parts: weight or 1})
        return table

    def once(self, done, work, name, form):
        """Return work(name, form), done once for each; stop at a rule that needs itself."""
        if (name, form) not in done:
            done[name, form] = None  # begun
            done[name, form] = work(name, form)
        if done[name, form] is None:
            raise ValueError(f"{self.rules[name][0][2]}: the rule '{name}' contains itself")
        return done[name, form]

    def inflect_parts(self, parts, form, where):
        """Inflect the last word of parts (pl) or the first (the forms of verbs); a slot passes the form on."""
        at = len(parts) - 1 if form == "pl" else 0
        if not parts or not isinstance(parts[at], str) and parts[at][1] not in ("", form):
            raise ValueError(f"{where}: .{form} needs a word here, or a $slot without another form, and no [...]")
        part = parts[at]
        part = inflect(part, form, self.irregular) if isinstance(part, str) else (part[0], form, part[2])
        return (*parts[:at], part, *parts[at + 1:])

    def compile(self, name, form):
        """Return (function that appends one draw's words to a list, its entropy in nats, its mean number of words)."""
        table, options, entropy, words = self.once(self.tables, self.table, name, form), [], 0.0, 0.0
        for parts, weight in table.items():
            steps, p = [], weight / table.total()
            entropy -= p * math.log(p)
            for part in parts:
                if isinstance(part, str):
                    step, h, n = part, 0.0, 1.0
                else:
                    step, h, n = self.once(self.compiled, self.compile, *part[:2])
                    if part[2]:
                        step = lambda out, draw=step, tail=part[2]: (draw(out), out.append(out.pop() + tail))
                steps.append(step)
                entropy, words = entropy + p * h, words + p * n
            options += [steps] * weight
        return chooser(options, self.random), entropy, words

    def sentences(self):
        """Yield sentences without end."""
        while True:
            self.draw(out := [])
            text = " ".join(out)
            yield AN.sub("an ", text) if " a " in text or text[:2] == "a " else text


def chooser(options, random):
    """Return a function that draws one of options (lists of words and functions) and appends its words to a list."""
    n = len(options)
    if all(steps and isinstance(step, str) for steps in options for step in steps or [""]):
        words = [" ".join(steps) for steps in options]
        return lambda out: out.append(words[int(random() * n)])
    options = [[step if callable(step) else lambda out, word=step: out.append(word) for step in o] for o in options]

    def draw(out):
        for step in options[int(random() * n)]:
            step(out)
    return draw


# ---- text files ----
def list_files(setting, paths, suffixes):
    """The text files of files and folders, in order. OSError when one is missing or a folder holds none."""
    found = {path: find_files(path, suffixes) if os.path.isdir(path) else [path] for path in map(str.strip, paths)}
    for path, files in found.items():
        if not files or not os.path.isfile(files[0]):
            raise FileNotFoundError(f"{setting}={path}: no such file, or a folder without {' '.join(suffixes)}"
                                    + " (a comma stands between two paths)" * (len(found) > 1))
    return [file for files in found.values() for file in files]


def read_blocks(path):
    """Return what a file says in pieces that no sentence crosses: paragraphs, lines, or strings of JSON."""
    text = "\n".join(read_lines(path)).replace("\r", "\n")
    if path.lower().endswith((".json", ".jsonl")):
        names = "|".join(map(re.escape, json_key.replace(" ", "").split(",")))
        strings = re.finditer(rf'"(?:{names})"\s*:\s*("(?:[^"\\]|\\.)*")', text)
        try:
            text = "\n\n".join(json.loads(string[1], strict=False) for string in strings)
        except ValueError as e:
            raise ValueError(f"{path}: a string of it is no JSON ({e})") from None
    is_cut = 0 < 1000 * file_kb < len(text) and path not in map(str.strip, text_file.split(","))
    if is_cut:
        text = text[len(text) // 2 - 500 * file_kb:len(text) // 2 + 500 * file_kb]
    splits = (re.split(end, text) for end in (["\n"] if one_per_line else [r"\n\s*\n", "\n", SENTENCE_END]))
    return next((s[1:-1] for s in splits if len(s) > 2), []) if is_cut else next(splits)  # outer ones: cut somewhere


def to_sentence(piece):
    """Return a piece of text as a transcript, without quotation marks; NoSpokenForm where it has none."""
    piece = re.sub(r"^\s*\d+-\d+-\d+ ", "", piece)  # the key of a line in LibriSpeech's .trans.txt
    words = (word.strip("'") for word in normalize_transcript(piece).split())
    return " ".join(word for word in words if word)


def text_sentences(paths, dropped):
    """Yield the sentences of text files in order, as transcripts; count the others in dropped."""
    for path in paths:
        blocks = ([block] if one_per_line else SENTENCE_END.split(block) for block in read_blocks(path))
        for piece in itertools.chain.from_iterable(blocks):
            try:
                if sentence := to_sentence(piece):
                    yield sentence
            except NoSpokenForm as e:
                if any(map(str.isalnum, piece)):  # a line of stars is no sentence
                    dropped[e.reason] += 1


# ---- splits and files ----
def read_excluded():
    """Return the sentences of the lists to exclude, as a set; ValueError names a line that is no clip."""
    said = set()
    for path in (path.strip() for path in exclude.split(",") if exclude):
        for _, row in read_jsonl(path, text=str):
            for piece in SENTENCE_END.split(row["text"]):
                with contextlib.suppress(NoSpokenForm):  # no text of ours can say it
                    said.add(to_sentence(piece))
    return said


def fill_splits(sentences, sizes, dropped, endless, excluded):
    """Deal sentences by their hash into {split: [str]} until each has its size (sizes: {split: int}) or none is left.

    Left out: a sentence excluded, seen before or of another length (counted in dropped), or whose split is full.
    endless: stop after MAX_MISSES in a row were left out.
    """
    splits, seen, missing, misses = {split: [] for split in sizes}, set(), sum(sizes.values()), 0
    for sentence in tqdm(sentences if missing else (), unit=" sentences", disable=None):
        key = int.from_bytes(hashlib.blake2b(sentence.encode(), digest_size=8).digest(), "little")
        split = "val" if key % 100 < HELD_OUT else "test" if key % 100 < 2 * HELD_OUT else "train"
        misses += 1
        if not min_words <= sentence.count(" ") + bool(sentence) <= max_words:
            dropped["of another length"] += 1
        elif key in seen:
            dropped["seen before"] += 1
        elif sentence in excluded:
            dropped["excluded"] += 1
        elif len(splits[split]) < sizes[split]:
            seen.add(key)
            splits[split].append(sentence)
            missing, misses = missing - 1, 0
        if not missing or endless and misses > MAX_MISSES:
            break
    return splits


def finished(source):
    """Return the meta.json of an earlier run with these settings and this source, its files in place, or None."""
    try:
        meta = json.loads(Path(out_dir, "meta.json").read_text(encoding="utf-8"))
        same = (meta["settings"], meta["source"]) == (OF_SENTENCES, source) and not changed_code(meta["code"])
        return meta if same and all(os.path.getsize(f"{out_dir}/{s}.txt") == meta["bytes"][s] for s in SPLITS) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(texts, meta):
    """Write the four files, each under a temporary name first: a killed run leaves no half file, and no meta.json."""
    os.makedirs(out_dir, exist_ok=True)
    Path(out_dir, "meta.json").unlink(missing_ok=True)
    for split in SPLITS:
        write_text(os.path.join(out_dir, f"{split}.txt"), texts[split])
    write_json(os.path.join(out_dir, "meta.json"), meta, indent=1)


def report(meta):
    """Print what a meta.json says."""
    if meta["frames"]:
        print(f"{grammar} | {meta['frames']} frames | {meta['grammar_words']:.2f} words a sentence | entropy "
              f"{meta['entropy']:.3f} nats/word | perplexity {meta['perplexity']:.1f} a word")
    print("left out | " + (" | ".join(f"{n:,} {why}" for why, n in meta["dropped"].items()) or "none"))
    print(f"{out_dir} | " + " | ".join(f"{split} {meta['counts'][split]:,}" for split in SPLITS) + " sentences | "
          f"{meta['words']:,} distinct words | {meta['mean_words']:.2f} words a sentence | "
          f"{meta['oov']} words of val and test not in train")


# ---- documents
def find_documents():
    """Return the paths of the documents' files, public ones downloaded first; ValueError, OSError: a wrong setting."""
    if not 0 <= val_share < 1 or min(val_mb, tokenizer_mb, shard_mb) <= 0 or min(doc_chars, limit) < 0:
        raise ValueError("settings: 0 <= val_share < 1; val_mb, tokenizer_mb, shard_mb > 0; doc_chars, limit >= 0")
    if text_file or exclude:
        raise ValueError("documents with text_file or exclude: sentences are another run of this script (--help)")
    names, hubs = ([name.strip() for name in text.split(",") if name.strip()] for text in (documents, mirrors))
    files = [fetch_source(name, n_files, hubs, f"data/{name}") if name in SOURCES else
             list_files("documents", [name], SUFFIXES) for name in names]
    return list(dict.fromkeys(itertools.chain.from_iterable(files)))  # a file named twice is read once


def deal(paths, dropped):
    """Yield the documents of files, {"val": [bytes], "train": [bytes]} for each pair of shards."""
    keys = json_key.replace(" ", "").split(",")
    texts = itertools.chain.from_iterable(read_documents(path, keys, doc_chars) for path in paths)
    return deal_chunks(itertools.islice(texts, limit or None), val_share, 1e6 * val_mb, 1e6 * shard_mb, dropped)


def make_tokenizer(paths):
    """Return the tokenizer of the folder `tokenizer`, or one trained on the first tokenizer_mb of train's documents."""
    def texts(n_bytes=0):
        for data in itertools.chain.from_iterable(chunk["train"] for chunk in deal(paths, Counter())):
            n_bytes += len(data)
            yield data.decode()
            if n_bytes >= 1e6 * tokenizer_mb:
                return
    if not any(chunk["train"] for chunk in deal(paths, Counter())):
        raise ValueError(f"documents={documents}: fewer than two documents; a lower --doc_chars makes more of a text")
    texts = tqdm(texts(), desc="tokenizer", unit=" documents", disable=None)
    tok = load_tokenizer(tokenizer) if tokenizer else train_bpe(texts, vocab_size)
    first = b"\n".join(next(chunk["train"] for chunk in deal(paths, Counter()) if chunk["train"])[:100])
    kinds = {"the documents": first.decode(), "code": Path(__file__).read_text(encoding="utf-8"),
             "numbers": " ".join(map(str, range(0, 10**6, 997)))}
    print("bytes per token | " + " | ".join(f"{name} {n:.2f}" for name, n in compression(tok, kinds).items()))
    return tok


def fill_shards(paths, tok, sha256):
    """Write the shards that are not there -> (what documents.json says of all, bytes of text that were tokenized)."""
    meta, n_new = {"left_out": Counter(), "train": Counter(), "val": Counter(), "shards": {}}, 0
    about = sum(os.path.getsize(path) * (2.5 if path.endswith(".parquet") else 1) for path in paths)  # zstd's factor
    with tqdm(total=None if limit else about, unit="B", unit_scale=True, disable=None) as bar:
        for k, chunk in enumerate(deal(paths, meta["left_out"])):
            for split in (split for split in chunk if chunk[split]):
                path, n_bytes, docs = os.path.join(out_dir, f"{split}-{k:06d}.bin"), sum(map(len, chunk[split])), []
                if not os.path.exists(path):
                    for data, ids in zip(chunk[split], encode_documents(tok, chunk[split])):
                        docs.append(ids)
                        bar.update(len(data))
                    write_shard(path, docs, n_bytes, sha256)
                    n_new += n_bytes
                lengths, tokens, _ = read_shard(path, sha256)
                bar.update(0 if docs else n_bytes)
                meta[split].update(documents=len(lengths), tokens=len(tokens), bytes=n_bytes)
                meta["shards"][os.path.basename(path)] = {"bytes": os.path.getsize(path), "sha256": sha256_file(path)}
    return meta, n_new


def prepare_documents():
    """Write tokenizer.json, documents.json with the plan, the shards, and documents.json again with their names."""
    started, paths, n_new = time.time(), find_documents(), 0
    file, tokenizer_file = os.path.join(out_dir, "documents.json"), os.path.join(out_dir, "tokenizer.json")
    theirs = (os.path.join(tokenizer, f"tokenizer.{kind}") for kind in ("json", "pkl"))  # pkl: nanochat's
    files = [*paths, *[path for path in theirs if tokenizer and os.path.exists(path)][:1]]
    plan = {"version": VERSION, **{name: config[name] for name in ("json_key", "limit", *OF_DOCUMENTS)},
            "source": {path: sha256_file(path) for path in tqdm(files, desc="checksums", unit=" files", disable=None)}}
    try:
        meta = json.loads(Path(file).read_bytes())
    except (OSError, ValueError):
        meta = {}
    changed = [name for name in plan if meta.get(name) != plan[name]]
    if changed or not os.path.exists(tokenizer_file):
        if any(Path(out_dir).glob("*-[0-9]*.bin")):
            raise ValueError(f"{out_dir} has shards of other {', '.join(changed) or 'tokenizer.json'}: delete them, or "
                             "give another --out_dir")
        Path(file).unlink(missing_ok=True)
        make_tokenizer(paths).save(out_dir)
        write_json(file, meta := plan)
    is_done = all(os.path.exists(os.path.join(out_dir, name)) for name in meta.get("shards", ["none yet"]))
    if not is_done:
        sha256 = sha256_file(tokenizer_file)
        found, n_new = fill_shards(paths, load_tokenizer(out_dir), sha256)
        write_json(file, meta := plan | {"tokenizer_sha256": sha256} | found)
    print(f"{out_dir} | " + " | ".join(f"{split} {n['documents']:,} documents, {n['tokens']:,} tokens, "
                                       f"{n['bytes'] / 1e6:,.1f} MB" for split, n in meta.items() if split in SPLITS)
          + "".join(f" | left out {n:,} {why}" for why, n in meta["left_out"].items()))
    seconds = time.time() - started
    print(f"{out_dir} is up to date" if is_done else
          f"{n_new / 1e6:,.1f} MB of text in {seconds:.1f} s, {n_new / 1e6 / seconds:.2f} MB/s -> {out_dir}")


def main():
    if documents:
        return prepare_documents()
    started, dropped = time.time(), Counter()
    if not 1 <= min_words <= max_words or min(n_train, n_val, n_test, limit, file_kb) < 0:
        raise ValueError("settings: 1 <= min_words <= max_words; no n_train, n_val, n_test, limit or file_kb below 0")
    sizes = {split: min(n, limit or n) for split, n in zip(SPLITS, (n_train, n_val, n_test))}
    paths = list_files("text_file", text_file.split(","), TEXT_FILES) if text_file else [own_file(grammar)]
    excluded = read_excluded()
    source = {path: sha256_file(path) for path in paths}
    source |= {"excluded": hashlib.sha256("\n".join(sorted(excluded)).encode()).hexdigest()} if excluded else {}
    if meta := finished(source):
        report(meta)
        return print(f"{out_dir} is up to date")
    rules = None if text_file else Grammar(*paths, seed)
    splits = fill_splits(rules.sentences() if rules else text_sentences(paths, dropped), sizes, dropped,
                         bool(rules), excluded)
    if not splits["train"] and sizes["train"]:
        raise ValueError(f"{', '.join(paths[:3])}: no sentence of {min_words} to {max_words} words (left out: "
                         f"{dict(dropped)}); for text with a sentence a line set --one_per_line=True")
    texts = {split: "".join(f"{sentence}\n" for sentence in splits[split]) for split in SPLITS}
    train, held_out = set(texts["train"].split()), set((texts["val"] + texts["test"]).split())
    n_sentences, n_words = sum(map(len, splits.values())), sum(len(text.split()) for text in texts.values())
    meta = {"code": code_sums(), "settings": OF_SENTENCES, "source": source, "seed": seed, "dropped": dropped,
            "counts": {split: len(splits[split]) for split in SPLITS},
            "bytes": {split: len(texts[split]) for split in SPLITS},
            "words": len(train | held_out), "oov": len(held_out - train), "mean_words": n_words / max(1, n_sentences),
            "frames": rules.frames if rules else 0, "grammar_words": rules and rules.words,
            "entropy": rules and rules.entropy, "perplexity": rules and math.exp(rules.entropy)}
    write(texts, meta)
    report(meta)
    seconds = time.time() - started
    print(f"{n_sentences:,} sentences in {seconds:.1f} s, {n_sentences / seconds:,.0f} a second -> {out_dir}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        fail(e)
