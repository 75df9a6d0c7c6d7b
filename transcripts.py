"""Transcripts: how a written English text is spoken, in the letters that the model writes.

    normalize_transcript("Dr. O’Neil paid $5.50 in 1984 &amp; left")
    -> "dr o'neil paid five dollars and fifty cents in nineteen eighty four and left"

A text that can't be written in LETTERS is refused as a whole (NoSpokenForm).
- HTML entities are resolved, zero-width characters and accents vanish.
- Numbers, years, times and money are spelled out.
- Refused: dates, ranges, fractions; <...>, [...], {...}; marks of noise like (coughs) or *sighs*;
  letters of other scripts; symbols that are not in SYMBOLS; a text without words, like "...".
- Punctuation and emoji separate words. A blank text is a silent clip.
"""
import functools
import html
import re
import unicodedata

from files import read_toml

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")  # words also hold the apostrophe
NO_FORM = "\ufffd"  # a character that no transcript may hold
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")
PLAIN = str.maketrans({  # before NFKC, which would write ™ and ² as plain letters and digits
    **dict.fromkeys("‘’‛ʼ´`′", "'"), **dict.fromkeys("‐‑‒–−", "-"),
    **dict.fromkeys("™℠", " "),
    **dict.fromkeys("²³¹⁰⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉¼½¾", NO_FORM)})
FOLDED, SYMBOLS, MONEY = read_toml("assets/english.toml").values()
SYMBOLS |= dict.fromkeys("<>[]{}°", NO_FORM)
MARKUP = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}")
NOISE = re.compile(r"[(*](?:\w+ ){0,2}(?:laugh|chuckl|noise|silence|pause|breath|sigh|cough|sneez|"
                   r"sniff|music|applau|cheer|inaudible|unintelligible)\w*(?: \w+)?[)*]")
NUMBER = re.compile(r"""
    (?P<sign>(?<![^\s(])-)?
    (?:(?P<money>[$£€])\s?)?
    (?P<body>\d+(?:[,.:/-]\d+)*|(?<![\w.])\.\d+)
    (?(money)(?:\s?(?P<scale>(?:hundred|thousand|[mbt]r?illion)\b))?)
    (?P<end>(?:st|nd|rd|th|'?s)\b)?
    """, re.VERBOSE | re.ASCII)
ONE = re.compile(r"(?:\d+|\d{1,3}(?:,\d{3})+)?(?:\.\d+)?")  # number, not a list or a range


class NoSpokenForm(ValueError):
    """A text that can't be a transcript. reason: str, the same for a kind of text."""

    def __init__(self, reason, what):
        super().__init__(f"{reason}: {what[:60]!r}")
        self.reason = reason


# ---- the transcript of a text

def normalize_transcript(text, strict=True):
    """Return text (str) as it is spoken, "" if it is blank.

    strict: raise NoSpokenForm where it has none; else leave out what can't be spoken.
    """
    spoken = " ".join(readings[0] for readings in read_aloud(text, strict) if readings[0])
    if not strict:
        return " ".join(re.sub("[^a-z' ]", "", spoken).split())
    others = re.sub("[a-z' ]", "", spoken)
    if others and unicodedata.category(others[0])[0] in "LMN":
        raise NoSpokenForm("letters of another script", text)
    if others:
        raise NoSpokenForm("a symbol without a spoken form", text)
    if text.strip() and not spoken:
        raise NoSpokenForm("no words left", text)
    return spoken


def read_aloud(text, strict=True):
    """Return text (str) as slots: lists of readings (str of words, or ""), the likeliest first.

    Symbols and letters without a spoken form stay. strict: raise NoSpokenForm for noise and for
    dates, ranges and such.
    """
    text = plain_characters(text).casefold()
    if strict and NOISE.search(text):
        raise NoSpokenForm("a mark of noise", text)
    if not strict:
        text = NOISE.sub(" ", MARKUP.sub(" ", text))
    text = re.sub(r"#(?=\d)", " number ", text)
    text = re.sub(r"(?<=\w)\.(?=(?:com|org|net|edu|gov)\b)", " dot ", text)
    slots, end = [], 0
    for match in NUMBER.finditer(text):
        slots += split_words(text[end:match.start()])
        slots += read_number(match, strict)
        end = match.end()
    return slots + split_words(text[end:])


def plain_characters(text):
    """Return text without entities, zero-width characters and letters in other shapes (NFKC)."""
    text = INVISIBLE.sub("", html.unescape(text))
    return unicodedata.normalize("NFKC", text.translate(PLAIN))


@functools.cache
def spell_letter(char):
    """Return what becomes of a character of case-folded text."""
    if char in SYMBOLS:
        return SYMBOLS[char]
    parts = unicodedata.normalize("NFD", FOLDED.get(char, char))
    bare = "".join(part for part in parts if not unicodedata.combining(part))
    if LETTERS.issuperset(bare):
        return bare  # nothing of an accent alone
    category = unicodedata.category(char)
    stays = char in "'" + NO_FORM or category[0] in "LMN" or category in ("Sm", "Sc")
    return char if stays else " "  # no transcript may hold it, but for the apostrophe


def split_words(text):
    """Return the slots of case-folded text without numbers: [[word], ...]."""
    words = re.sub("''+", " ", "".join(map(spell_letter, text))).split()
    return [[word] for word in words if word != "'"]


# ---- numbers: readings are a list of str in words, the likeliest first

def read_number(match, strict):
    body, end, money = match["body"], match["end"], match["money"]
    is_one, is_time = ONE.fullmatch(body), re.fullmatch(r"\d{1,2}:\d\d", body)
    after = match.string[match.end():match.end() + 1]
    is_long = end and len(body) > 15
    if strict and (not is_one and not is_time or money and after.isalpha() or is_long):  # 3/4, $5k
        raise NoSpokenForm("figures that can be read in several ways", match[0])
    digits = body.replace(",", "")
    if end in ("st", "nd", "rd", "th") and digits.isdigit() and len(digits) < 16:
        slots = [variants(name(digits, "ordinal"))]
    elif is_time:
        hour, minutes = body.split(":")
        slots = [read_one(str(int(hour))), read_minutes(minutes)]
    elif money and is_one and not match["scale"]:
        slots = read_money(body, *MONEY[money])
    else:
        slots = [read_one(part) for part in ([body] if is_one else re.findall(r"\d+", body))]
    if end in ("s", "'s"):
        slots[-1] = [plural(reading) if end == "s" else reading + "'s" for reading in slots[-1]]
    if match["scale"]:
        slots += [[match["scale"]], [MONEY[money][1]]]
    return [["minus", "negative"]] * bool(match["sign"]) + slots


@functools.cache
def name(n, kind="cardinal"):
    """Return the English words of an int or its digits (str); kind: cardinal or ordinal."""
    from num2words import num2words
    return num2words(int(n), to=kind).replace("-", " ").replace(",", "")


def spell(digits):
    return " ".join(map(name, digits))


def variants(words):
    """Return words with and without "and", and with "a" for a leading "one" (a hundred)."""
    readings = [words, words.replace(" and ", " ")]
    readings += ["a" + reading[3:] for reading in readings if reading.startswith("one ")]
    return list(dict.fromkeys(readings))


def read_one(written):
    """Return the readings of a number (str of digits, with , between thousands, and . if decimal).

    The likeliest: digit by digit with a leading zero, and from five digits on without a comma or
    three zeros at the end (codes). A year for 1100..1999 and 2010..2099. Else a quantity.
    """
    written, point, places = written.partition(".")
    if point:
        heads = read_one(written) if written else ["", "zero"]
        return [f"{head} point {spell(places)}".strip() for head in heads]
    digits, is_code = written.replace(",", ""), len(written) > 1 and written[0] == "0"
    spelled = [spell(digits)]
    if is_code or len(digits) > 15:
        return spelled
    quantity = variants(name(digits))
    pairs = read_in_pairs(digits) if len(digits) in (3, 4) else []
    if re.fullmatch("1[1-9]..|20[1-9].", written):
        readings = [*pairs, *quantity, *spelled]
    elif len(digits) > 4 and "," not in written and not digits.endswith("000"):
        readings = [*spelled, *quantity]
    else:
        readings = [*quantity, *pairs, *spelled]
    return list(dict.fromkeys(readings))


def read_in_pairs(digits):
    """Return the readings of 3 or 4 digits (str) in pairs: nineteen oh five, three fifty one."""
    first, last = name(digits[:-2]), digits[-2:]
    if last == "00":
        return [f"{first} hundred"]
    return [f"{first} {reading}" for reading in read_minutes(last)[:2 if last[0] == "0" else 1]]


def read_minutes(minutes):
    """Return the readings of two digits (str) after an hour."""
    if minutes == "00":
        return ["o'clock", "", "hundred"]
    if minutes[0] == "0":
        return [f"oh {name(minutes)}", f"zero {name(minutes)}", name(minutes)]
    return [name(minutes), spell(minutes)]


def read_money(body, unit, units, cent, cents):
    """Return the slots of an amount: five dollars and fifty cents, or five dollars fifty."""
    whole, _, small = body.partition(".")
    if len(small) not in (0, 2):
        return [read_one(body), [units]]
    unit = unit if whole == "1" else units
    cent = cent if small == "01" else cents
    few = small.lstrip("0")
    if not few:
        return [read_one(whole), [unit]]
    if not whole.strip("0"):
        return [read_one(few), [cent]]
    return [read_one(whole), [unit, ""], ["and", ""], read_one(few), [cent, ""]]


def plural(words):
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith("x") else "s")
