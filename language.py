"""Languages: how a transcript is written in each, and how its errors are counted.

    Language("de").normalize("Größe XL, bitte!")  -> "größe xl bitte"
    Language("zh").normalize("我 爱 你，OK？")      -> "我爱你ok"

English is spelled by transcripts.py. Others keep letters, marks, digits and apostrophes in a word,
as NFKC in lower case; Chinese numbers are spelled out. Refused (NoSpokenForm): symbols that are
spoken; letters of another script, but for Latin ones beside the language's own.
"""
import importlib
import re
import unicodedata

from files import read_toml
from transcripts import MARKUP, NoSpokenForm, normalize_transcript, plain_characters

SCRIPTS = read_toml("assets/scripts.toml")
KNOWN = {code: scripts.split() for scripts, codes in SCRIPTS.items() for code in codes.split()}
UNCLEAR = re.compile(r"[0-9][-/:~, ][0-9]|[0-9]{9}|(?<![0-9.])0[0-9]|[.][0-9]+[.][0-9]")
SYMBOL = re.compile("[][<>{}#$£€¥%&@+=×÷±°\ufffd]")


class Language:
    """A language by its code; space: between words. ValueError: it is unknown."""

    def __init__(self, code):
        code = re.split("[-_]", code.lower())[0].replace("english", "en")
        if code not in KNOWN:
            raise ValueError(f"language={code}: known are {' '.join(KNOWN)}: any other, "
                             "NFKC in lower case without punctuation, of any script")
        self.code, self.scripts = code, set(KNOWN[code])
        self.space = "" if code in ("ja", "th", "yue", "zh") else " "

    def normalize(self, text, strict=True):
        """Return a text's transcript (str), as normalize_transcript() does."""
        if self.code == "en":
            return normalize_transcript(text, strict)
        spoken = plain_characters(text).lower()
        if self.code == "zh":
            spoken = read_chinese_numbers(re.sub("[○〇]", "零", spoken), strict)
        if strict and SYMBOL.search(spoken):
            raise NoSpokenForm("a symbol without a spoken form", text)
        spoken = "".join(char if char == "'" or unicodedata.category(char)[0] in "LMN" else " "
                         for char in MARKUP.sub(" ", spoken))
        spoken = " ".join(re.sub(r"\B'|'\B" if self.space else "'", " ", spoken).split())
        if not self.space:
            spoken = re.sub("(?<![a-z0-9]) | (?![a-z0-9])", "", spoken)
        if not strict:
            return spoken
        found = {unicodedata.name(char, "?").split()[0] for char in spoken
                 if unicodedata.category(char) in ("Ll", "Lo")}
        is_other = found - self.scripts - {"LATIN"} or found.isdisjoint(self.scripts)
        if self.scripts and found and is_other:
            raise NoSpokenForm("letters of another script", text)
        if text.strip() and not spoken:
            raise NoSpokenForm("no words left", text)
        return spoken

    def words(self, text):
        """Return a transcript's words (list of str); characters, without spaces."""
        return re.findall(r"\S+" if self.space else r"[a-z0-9]+|\S", text)

    def plain(self, text, strict=True):
        """Return text as a model reads it: each line a transcript after a space."""
        lines = (self.normalize(line, strict) for line in text.split("\n"))
        return "\n".join(" " + line for line in lines if line)


def read_chinese_numbers(text, strict):
    """Return text (str) with its figures in characters: 2016年 as 二零一六年, 30 as 三十."""
    if strict and UNCLEAR.search(text):
        raise NoSpokenForm("figures that can be read in several ways", text)
    text = re.sub("(?<=[0-9]),(?=[0-9]{3})", "", text)
    return need_chinese("cn2an").transform(text, "an2cn") if re.search("[0-9]", text) else text


def syllables(text):
    """Return the pinyin (list of str, as "wo3") of Chinese text; [] if it holds other letters."""
    pypinyin = need_chinese("pypinyin")
    read = pypinyin.lazy_pinyin(text, pypinyin.Style.TONE3, neutral_tone_with_five=True,
                                errors=lambda _: [""])
    return read if all(read) else []


def simplify(text):
    return need_chinese("opencc").OpenCC("t2s").convert(text)


def need_chinese(name):
    """Return a module of requirements-zh.txt; ValueError: it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"Chinese needs {name}: pip install -r requirements-zh.txt") from None


ENGLISH = Language("en")


def spoken_turns(turns, dropped, language=ENGLISH):
    """Return the turns [[task, question, answer], ...] whose texts both have a spoken form.

    dropped: a Counter of the others' reasons.
    """
    kept = []
    for turn in turns:
        try:
            if not all(map(language.plain, turn[1:])):
                raise NoSpokenForm("an empty question or answer", turn[1])
            kept.append(turn)
        except NoSpokenForm as e:
            dropped[e.reason] += 1
    return kept
