"""Make data/text/{train,val,test}.txt: sentences of the phrase grammar, or of your own text files.

    python prepare_text.py                                    # the CPU demo's text: 2 s
    python prepare_text.py --text_file=book.txt,folder        # prose in place of the grammar

Reads  assets/grammar.txt, or text files: .txt and .md, where a sentence ends at . ! ? or an empty
       line, .jsonl and .parquet with a field "text".
Writes a sentence a line, each once, as language.py spells it; meta.json.

A sentence's hash decides its split: no run trains on what another one holds out.
"""
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import chain
from random import Random

from tqdm import tqdm

from configurator import configure, user_input
from documents import hash_of, list_documents, read_documents
from files import own_file, read_lines, write_text
from language import Language
from record import make_folder, sums
from transcripts import NoSpokenForm

# config: set by a config file or --name=value
out_dir = "data/text"
grammar = "assets/grammar.txt"
text_file = ""           # comma-separated text files and folders, in place of the grammar
language = "en"          # of the text files: its code, as zh or de (language.py)
file_kb = 0              # of each .txt and .md in a folder read this many kB in the middle; 0: all
max_words = 14           # of a sentence; text files: a longer one is cut at commas
exclude = ""             # comma-separated text files: no split gets six words in a row of theirs
n_train = 150_000        # sentences, at most
n_val = 2_000
n_test = 2_000
config = configure(globals())
# ----
with user_input():
    SPOKEN = Language(language)
STOPS, PAUSES = ("", "") if language == "en" else ("|[。！？।؟۔]+", "|(?<=[，；：、،؛])")
RUN = 6                  # words in a row not to be shared with `exclude`
MIN_WORDS = 1 if text_file else 3  # others are left out and counted
SEED = 1337              # of the draws from the grammar
MAX_MISSES = 20_000      # draws in a row that add nothing: the grammar has no more
RULE = re.compile(r"([a-z]\w*):(.*)")
CLAUSE = re.compile(r"(?<=[,;:\u2014])\s+|(?<=--|.\u2014)" + PAUSES)  # in a long sentence
BRACKET = re.compile(r"\[[^][()]*\]|\([^][()]*\)")  # an innermost one
SLOT = re.compile(r"\$(#?\w+)(\.(?:pl|s|ed|en|ing)|)('s|)")  # rule, form, rest
AN = re.compile(r"\ba (?=[ai]|e(?!u)|o(?!n(?:e|ce)\b)|u(?!ni|s[eu]|k)|hour|honest)")  # by sound
SENTENCE_END = re.compile(r"\n\s*\n|(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])"
                          r"[.!?]+[\"')\]\u201d\u2019]*\s+" + STOPS)


# ---- the grammar

def grammar_sentences(path):
    """Yield sentences of a phrase grammar, without end; ValueError: what is wrong with it."""
    rules, irregular = read_grammar(path)
    random = Random(SEED).random

    @cache
    def expand(name, form):
        """Return the phrases of a rule in a form, each as often as its weight."""
        if not rules[name]:
            raise ValueError(f"the grammar has no rule '{name}' with alternatives")
        phrases = Counter()
        for weight, phrase in rules[name]:
            phrase = inflect_phrase(phrase, form, irregular)
            expanded = [expand(rule, its_form) for rule, its_form, _ in SLOT.findall(phrase)]
            slot = SLOT.fullmatch(phrase)
            is_bare = slot and not slot[3] and not weight  # it stands for all of its rule's
            phrases.update(expanded[0] if is_bare else {phrase: weight or 1})
        return list(phrases.elements())

    def draw(name, form):
        phrases = expand(name, form)
        phrase = phrases[int(random() * len(phrases))]
        drawn = SLOT.sub(lambda slot: draw(slot[1], slot[2]) + slot[3], phrase)
        return " ".join(drawn.split())

    expand("sentence", "")  # all, so that a mistake ends it before a sentence is drawn
    while True:
        yield AN.sub("an ", draw("sentence", ""))


def read_grammar(path):
    """Read a file in the format of assets/grammar.txt -> rules, irregular.

    rules: {name: [(weight or None, phrase), ...]}; the frames are the rule "sentence", a bracket is
    the rule #<number>. irregular: {(word, form): inflected word}.
    """
    rules, irregular, name = defaultdict(list), {}, "sentence"
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}:{number}"
        text = re.sub("^- ", "sentence: ", line.partition("#")[0].rstrip())
        if text.startswith("~"):
            for word, *pairs in map(str.split, text[1:].split("|")):
                for form, inflected in zip(pairs[::2], pairs[1::2]):
                    irregular[word, form] = inflected
            continue
        if rule := RULE.match(text):
            name, text = rule.groups()
        elif text and text[0] != " ":
            raise ValueError(f"{where}: write '- a frame' or 'rule: a | b', or indent it")
        if text.strip():
            rules[name] += read_alternatives(text, rules, where)
    return rules, irregular


def read_alternatives(text, rules, where):
    """Return the entries of a rule; its brackets become rules."""
    while bracket := BRACKET.search(text):
        inner = read_alternatives(bracket[0][1:-1], rules, where)
        inner = [(weight or 1, phrase) for weight, phrase in inner]
        if bracket[0][0] == "[":  # left out half of the time
            inner.append((sum(weight for weight, _ in inner), ""))
        name = f"#{len(rules)}"
        rules[name] = inner
        text = text.replace(bracket[0], f" ${name} ", 1)
    found = []
    for words in map(str.split, text.split("|")):
        has_weight = len(words) > 1 and re.fullmatch(r"\*[1-9]\d*", words[-1])
        weight = int(words.pop()[1:]) if has_weight else None
        for word in words or [""]:
            if not re.fullmatch(rf"[a-z']+|{SLOT.pattern}", word):
                raise ValueError(f"{where}: '{word}' is no word in a-z, $slot, $slot.form, "
                                 "(a | b), [a], or *weight at the end")
        found.append((weight, " ".join(words)))
    return found


def inflect_phrase(phrase, form, irregular):
    """Inflect the last word (.pl) or the first (other forms); a $slot takes the form on."""
    if not form:
        return phrase
    words, at = phrase.split(" "), -1 if form == ".pl" else 0
    slot = SLOT.fullmatch(words[at])
    if not phrase or slot and slot[2] not in ("", form):
        raise ValueError(f"'{phrase}': {form} needs a word, or a $slot without a form")
    words[at] = f"${slot[1]}{form}{slot[3]}" if slot else inflect(words[at], form, irregular)
    return " ".join(words)


def inflect(word, form, irregular):
    """Inflect a word: .pl (boxes), .s (he fixes), .ed (fixed), .en (has fixed), .ing (fixing)."""
    if (word, form) in irregular:
        return irregular[word, form]
    if form == ".en":
        return inflect(word, ".ed", irregular)
    if form in (".pl", ".s"):
        if re.search(r"[^aeiou]y$", word):
            return word[:-1] + "ies"
        needs_e = re.search(r"(s|x|z|ch|sh)$", word) or form == ".s" and word[-1] == "o"
        return word + ("es" if needs_e else "s")
    if re.fullmatch(r"[^aeiou]*[aeiou][bdgmnprt]", word):
        word += word[-1]  # stop, stopped, stopping
    if form == ".ing":
        return re.sub(r"(?<=[^eoy])e$", "", word) + "ing"
    return re.sub(r"(?<=[^aeiou])y$", "i", word).removesuffix("e") + "ed"


# ---- text files

def text_sentences(paths, dropped):
    """Yield the sentences of text files; `dropped` (Counter) counts what can't be said."""
    named = [path.strip() for path in f"{text_file},{exclude}".split(",")]
    for path in paths:
        is_cut = file_kb and path not in named and path.lower().endswith((".txt", ".md"))
        texts = list(read_documents(path, 1000 * file_kb if is_cut else 10**12))
        text = texts[len(texts) // 2] if is_cut else "\n\n".join(texts)
        for piece in chain.from_iterable(map(clauses, SENTENCE_END.split(text))):
            try:
                words = [word.strip("'") for word in SPOKEN.normalize(piece).split()]
                if any(words):
                    yield " ".join(filter(None, words))
            except NoSpokenForm as e:
                if any(map(str.isalnum, piece)):  # a line of stars is no sentence
                    dropped[e.reason] += 1


def clauses(sentence):
    """Cut a sentence of over max_words words at commas -> [str], as few as can be."""
    parts = [""]
    for clause in CLAUSE.split(sentence):
        if parts[-1] and len(SPOKEN.words(f"{parts[-1]} {clause}")) > max_words:
            parts.append("")
        parts[-1] = f"{parts[-1]} {clause}"
    return parts


# ---- splits

def deal(sentences, excluded, dropped):
    """Deal sentences by their hash until each split is full, or none is left -> {split: [str]}.

    excluded: set of runs; dropped: Counter of the others.
    """
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    splits = {split: [] for split in sizes}
    seen, n_missing, n_misses = set(), sum(sizes.values()), 0
    for sentence in tqdm(sentences, unit=" sentences", disable=None):
        if not n_missing or n_misses > MAX_MISSES and not text_file:
            break
        key = hash_of(sentence)
        split = {0: "val", 1: "test"}.get(key % 100 // 2, "train")  # 2% are val's, 2% test's
        n_misses += 1
        if not MIN_WORDS <= len(SPOKEN.words(sentence)) <= max_words:
            dropped["of another length"] += 1
        elif key in seen:
            dropped["seen before"] += 1
        elif not excluded.isdisjoint(runs(sentence)):
            dropped["excluded"] += 1
        elif len(splits[split]) < sizes[split]:
            seen.add(key)
            splits[split].append(sentence)
            n_missing -= 1
            n_misses = 0
    return splits


def runs(sentence):
    """Return the runs of RUN words of a sentence (set of str), or all of a shorter one."""
    words = SPOKEN.words(sentence)
    return {" ".join(words[i:i + RUN]) for i in range(max(1, len(words) - RUN + 1))}


def find_inputs():
    return sums(*find_sources(), *list_documents("exclude", exclude))


def find_sources():
    if not text_file and language != "en":
        raise ValueError(f"{language=} needs a text_file: the grammar is English")
    return list_documents("text_file", text_file) or [own_file(grammar)]


def make():
    paths, dropped = find_sources(), Counter()
    held_out = text_sentences(list_documents("exclude", exclude), Counter())
    excluded = set(chain.from_iterable(map(runs, held_out)))
    sentences = text_sentences(paths, dropped) if text_file else grammar_sentences(*paths)
    splits = deal(sentences, excluded, dropped)
    if n_train and not splits["train"]:
        raise ValueError(f"{', '.join(paths[:3])}: no sentence of {MIN_WORDS} to {max_words} words "
                         f"(left out: {dict(dropped)}); sentences end at . ! ? or an empty line")
    counts = {}
    for split, found in splits.items():
        write_text(f"{out_dir}/{split}.txt", "".join(f"{sentence}\n" for sentence in found))
        counts[split] = len(found)
    return [f"{split}.txt" for split in splits], {"counts": counts, "dropped": dict(dropped)}


if __name__ == "__main__":
    make_folder(out_dir, config, find_inputs, make)
