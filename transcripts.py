"""Transcripts: how a written English text is spoken, in the letters that the model writes.

    normalize_transcript("Dr. O’Neil paid $5.50 in 1984 &amp; left")
    -> "dr o'neil paid five dollars and fifty cents in nineteen eighty four and left"

A transcript must say what the audio says. A text that can't be written in LETTERS is refused as a
whole, with a reason to count (NoSpokenForm). It never loses a word silently. The rules:
- HTML entities are resolved. Zero-width characters and soft hyphens vanish. Accents are stripped.
- Marks of noise ([laughter], <sil>, (coughs), *sighs*) and tags of layout (<i>, <br>) are removed.
- <unk>, [inaudible] and the like stand for words that are spoken, and not given: refused. Other
  [...], <...> and {...} may be words or marks: refused. Other (...) is text.
- Numbers are spelled out (NUMBER). Dates in figures are refused: nobody knows how they were read.
- A few symbols have a name (SYMBOLS). Letters of other scripts, and symbols that mean something
  (a bare $, <), are refused. Punctuation, emoji and the like are not spoken: they separate words.
- What has characters but no words left ("...", "[laughter]") is refused. A blank text is a clip in
  which nobody speaks.
"""
import functools
import html
import re
import unicodedata

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")  # the one table; words also hold the apostrophe
# letters without an accent that could be stripped
FOLDED = {"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
SYMBOLS = {"&": " and ", "@": " at ", "+": " plus ", "=": " equals ", "%": " percent ",
           "×": " times ", "÷": " divided by ", "±": " plus or minus ", "°": " degrees ",
           "|": " ", "~": " "}
BOTH_CASES = "".join(sorted(LETTERS)) + "".join(sorted(LETTERS)).upper()
ORDINARY = re.compile(f"[{BOTH_CASES} ',;:!?\"-]*[.]?")  # most texts: only words and punctuation
APOSTROPHES = re.compile("[‘’‛ʼ´`′＇]")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")
ENTITY = re.compile(r"&(#\d+|#x[0-9a-f]+|\w+);", re.IGNORECASE)
MARKUP = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|\([^()]*\)|\*[^*\n]*\*")
LAYOUT = re.compile(r"/?(b|i|u|em|strong|br|p|span|font|c|v|comma|period|questionmark|"
                    r"exclamationpoint)\b[^<>]*")
NOT_GIVEN = frozenset("""unk unknown inaudible unintelligible indistinct unclear garbled crosstalk
    foreign redacted xxx""".split())
NOISES = frozenset("""laughter laughs laughing laugh chuckles giggles noise sil silence pause breath
    breathing breathes inhales sigh sighs sighing cough coughs coughing sneeze sneezes sniff sniffs
    smack music applause cheering clapping clears throat click clicks beep bell ring ringing
    background blank spn nsn vocalized""".split())
# NFKC writes these as plain letters or digits: ² as 2. Digits of footnotes have no spoken form.
RAISED = str.maketrans({"²": " squared ", "³": " cubed ", **dict.fromkeys("™©®℠", " "),
                        **dict.fromkeys("⁰¹⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", "\ufffd")})
NUMBER = re.compile(r"""
    (?P<sign>(?<![^\s(])-)?
    (?:(?P<money>[$£€¥])\s?)?
    (?P<body>\d+(?:[,.:/-]\d+)*|(?<![\w.])\.\d+)
    (?(money)\s?(?P<scale>(?:hundred|thousand|million|billion|trillion|k|m|bn)\b)?)
    (?P<end>(?:st|nd|rd|th|'?s)\b|\s?%|\s?°[cf]?|\s?[¢$£€¥](?!\s?\d))?
    """, re.VERBOSE | re.ASCII)
DATE = re.compile(r"\d{1,4}/\d{1,2}/\d{1,4}|\d{4}-\d{1,2}-\d{1,2}|\d{1,2}-\d{1,2}-\d{4}")
WHOLE = re.compile(r"\d+|\d{1,3}(,\d{3})+")
DECIMAL = re.compile(r"((?:\d+|\d{1,3}(?:,\d{3})+)?)\.(\d+)")
BETWEEN = {"/": ["", "slash", "over", "out of"], "-": ["to", ""], ":": ["to", ""], ",": [""],
           ".": ["point", "dot", ""]}  # what is spoken for a separator
MONEY = {"$": ("dollar", "dollars", "cent", "cents"), "£": ("pound", "pounds", "penny", "pence"),
         "€": ("euro", "euros", "cent", "cents"), "¥": ("yen", "yen", "sen", "sen"),
         "¢": ("cent", "cents", "", "")}
UNITS = {"%": ("percent", "percent"), "°": ("degree", "degrees"),
         "°c": ("degree celsius", "degrees celsius"),
         "°f": ("degree fahrenheit", "degrees fahrenheit"),
         **{sign: names[:2] for sign, names in MONEY.items()}}
SCALES = {"k": "thousand", "m": "million", "bn": "billion"}


class NoSpokenForm(ValueError):
    """A text that can't be a transcript. reason: str, the same for each text of a kind."""

    def __init__(self, reason, what):
        super().__init__(f"{reason}: {what[:60]!r}")
        self.reason = reason


# ---- the transcript of a text

def normalize_transcript(text):
    """Return text (str) as it is spoken: words of LETTERS and apostrophes; "" if it is blank.

    Raises NoSpokenForm where that is not possible.
    """
    spoken = first_reading(read_aloud(text))
    others = [char for char in spoken if char not in LETTERS and char not in "' "]
    if others and unicodedata.category(others[0])[0] in "LMN":
        raise NoSpokenForm("letters of another script", text)
    if others:
        raise NoSpokenForm("a symbol without a spoken form", text)
    if text.strip() and not spoken:
        raise NoSpokenForm("no words left", text)
    return spoken


def plain_text(text, strict=True):
    """Return text as a model of transcripts reads it: each line a transcript after a space.

    strict: raise NoSpokenForm where a line has none. Else leave out what can't be spoken: for what
    a user types.
    """
    lines = []
    for line in text.split("\n"):
        if strict:
            lines.append(normalize_transcript(line))
        else:
            spoken = first_reading(read_aloud(line, strict=False))
            lines.append("".join(char for char in spoken if char in LETTERS or char in "' "))
    return "\n".join(" " + " ".join(line.split()) for line in lines if line.strip())


def require_distinct(question, options, read=plain_text):
    """Raise a ValueError that names the question if two options are read alike or one has no words.

    question, options: str and list of str; read: function of an option, what the model is given.
    """
    known = {}
    for option in options:
        spoken = read(option)
        if not spoken:
            raise ValueError(f"question {question!r}: the option {option!r} has no words")
        if spoken in known:
            raise ValueError(f"question {question!r}: the options {known[spoken]!r} and {option!r} "
                             "are read alike: change one")
        known[spoken] = option


def spoken_turns(turns, dropped):
    """Return the turns [[task, question, answer], ...] whose texts both have a spoken form.

    dropped: Counter; the reasons of the others are added to it.
    """
    kept = []
    for task, question, answer in turns:
        try:
            if not plain_text(question) or not plain_text(answer):
                raise NoSpokenForm("an empty question or answer", question)
            kept.append([task, question, answer])
        except NoSpokenForm as e:
            dropped[e.reason] += 1
    return kept


def first_reading(slots):
    """Return the text (str) that slots of read_aloud() most likely stand for."""
    return " ".join(readings[0] for readings in slots if readings[0])


def read_aloud(text, strict=True):
    """Return text (str) as slots: lists of readings (str of words, or ""), the likeliest first.

    A word has one reading, a number several: 2648 is a quantity or four digits. scoring.py accepts
    each of them. Characters outside LETTERS stay where they carry a meaning. strict: raise
    NoSpokenForm for markup and dates.
    """
    if ORDINARY.fullmatch(text):
        return [[word] for word in split_words(text.lower())]
    text = ENTITY.sub(lambda match: html.unescape(match[0]), text)
    text = without_markup(APOSTROPHES.sub("'", INVISIBLE.sub("", text)), strict)
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)  # NFKC writes 1½ as 11⁄2
    text = unicodedata.normalize("NFKC", text.translate(RAISED)).casefold()
    text = re.sub("[‐‑‒–−]", "-", APOSTROPHES.sub("'", text)).replace("⁄", "/")
    text = re.sub(r"(?<=\d)\s+(?=\d/\d\d?(?!\d))", " and ", text)  # 1 1/2
    text = re.sub(r"#(?=\d)", " number ", text)
    text = re.sub(r"(?<=\w)\.(?=(?:com|org|net|edu|gov)\b)", " dot ", text)
    slots, end = [], 0
    for match in NUMBER.finditer(text):
        slots += [[word] for word in split_words(text[end:match.start()])]
        slots += read_number(match, strict)
        end = match.end()
    return slots + [[word] for word in split_words(text[end:])]


def without_markup(text, strict):
    """Return text without marks of noise and layout; strict: NoSpokenForm where it may be words."""
    def replace(match):
        kind, inner = match[0][0], match[0][1:-1]
        words = re.findall(r"[^\W_]+", inner.casefold())
        may_be_mark = kind in "<[{" or len(words) <= 3
        if not words or kind == "<" and LAYOUT.fullmatch(inner.casefold()):
            return " "
        if may_be_mark and NOT_GIVEN.intersection(words):
            if strict:
                raise NoSpokenForm("words that the transcript does not give", match[0])
            return " "
        if NOISES.issuperset(words):
            return " "
        is_noise = may_be_mark and NOISES.intersection(words)
        if strict and (kind in "<[{" and not is_noise or kind in "(*" and is_noise):
            raise NoSpokenForm("markup of unknown meaning", match[0])
        return " " if is_noise else f" {inner} "

    return MARKUP.sub(replace, text)


class Letters(dict):
    """For str.translate: what becomes of a character of case-folded text, worked out once."""

    def __missing__(self, code):
        char = chr(code)
        category = unicodedata.category(char)
        parts = unicodedata.normalize("NFD", FOLDED.get(char, char))
        bare = "".join(part for part in parts if not unicodedata.combining(part))
        if char in LETTERS or char in "' \ufffd":
            self[code] = char
        elif char in SYMBOLS:
            self[code] = SYMBOLS[char]
        elif not bare:
            self[code] = ""  # an accent
        elif LETTERS.issuperset(bare):
            self[code] = bare
        elif category[0] in "LMN" or category in ("Sm", "Sc"):
            self[code] = char  # no transcript may hold it
        else:
            self[code] = " "
        return self[code]


LETTER_TABLE = Letters()


def split_words(text):
    """Return the words (list of str) of case-folded text without numbers."""
    words = re.sub("''+", " ", text.translate(LETTER_TABLE)).split()
    return [word for word in words if word != "'"]


# ---- numbers

def read_number(match, strict):
    """Return the slots of a match of NUMBER."""
    body, end = match["body"], (match["end"] or "").strip()
    if strict and DATE.fullmatch(body):
        raise NoSpokenForm("a date in figures", match[0])
    slots = read_figures(body)
    if end in ("st", "nd", "rd", "th") and WHOLE.fullmatch(body):
        slots = [variants(name(int(body.replace(",", "")), "ordinal"))]
    elif end == "'s" and not body.endswith("0"):
        slots[-1] = [reading + "'s" for reading in slots[-1]]
    elif end in ("s", "'s"):
        slots[-1] = [plural(reading) for reading in slots[-1]]
    elif match["money"] and re.fullmatch(r"[\d,]+\.\d\d", body) and not match["scale"]:
        slots = [read_money(body, match["money"])]
    elif match["money"] and match["scale"]:
        slots += [[SCALES.get(match["scale"], match["scale"])], [MONEY[match["money"]][1]]]
    elif unit := UNITS.get(match["money"] or end):
        slots += [[unit[body != "1"]]]
    return [["minus", "negative"]] * bool(match["sign"]) + slots


def read_figures(body):
    """Return the slots of digits (str) that the separators , . : / - may join."""
    if WHOLE.fullmatch(body):
        return [read_whole(body)]
    if parts := DECIMAL.fullmatch(body):
        return [read_decimal(*parts.groups())]
    if time := re.fullmatch(r"(\d{1,2}):(\d\d)", body):
        return [read_whole(time[1].removeprefix("0") or "0"), read_minutes(time[2])]
    if fraction := re.fullmatch(r"(\d)/(\d\d?)", body):
        over, under = int(fraction[1]), int(fraction[2])
        if 0 < over < under <= 10:
            return [read_fraction(over, under)]
    separator = next(mark for mark in BETWEEN if mark in body)
    parts, between = body.split(separator), BETWEEN[separator]
    slots = [read_figures(part) for part in parts]
    if separator == "-" and (len(parts) > 2 or [len(part) for part in parts] == [3, 4]):
        between = [""]  # 7-7-8-6, 555-1234
        slots = [[[spell(part), *readings[0]]] for part, readings in zip(parts, slots)]
    elif len(parts) > 2 and separator == ":":  # hours, minutes, seconds
        between = [""]
    elif separator == "-" and all(map(str.isdigit, parts)) and int(parts[0]) >= int(parts[1]):
        between = ["", "to"]  # a score of 5-4, no range
    joined = slots[0]
    for more in slots[1:]:
        joined = joined + [between] + more
    return joined


@functools.cache
def name(n, kind="cardinal"):
    """Return the English words of an int; kind: cardinal or ordinal."""
    from num2words import num2words
    return num2words(n, to=kind).replace("-", " ").replace(",", "")


def spell(digits):
    """Return digits (str) one by one, in words."""
    return " ".join(name(int(digit)) for digit in digits if digit.isdigit())


def variants(words):
    """Return [words, the same without "and"], and both with "a" for a leading "one" (a hundred)."""
    readings = [words, words.replace(" and ", " ")]
    readings += ["a" + reading[3:] for reading in readings if reading.startswith("one ")]
    return list(dict.fromkeys(readings))


def read_whole(written):
    """Return the readings of a whole number (str of digits, or with commas between thousands).

    The likeliest is digit by digit with a leading zero, and from five digits on where neither a
    comma nor three zeros at the end say that it is a quantity (codes, telephone numbers). It is a
    year for 1100..1999 and 2010..2099, and else a quantity.
    """
    digits, is_code = written.replace(",", ""), len(written) > 1 and written[0] == "0"
    readings = [spell(digits)]
    if is_code or len(digits) > 15:
        return readings
    quantity = variants(name(int(digits)))
    if 3 <= len(digits) <= 4:
        pairs = read_pairs(digits)
        is_year = written.isdigit() and re.fullmatch("1[1-9]..|20[1-9].", digits)
        readings = [*pairs, *quantity, *readings] if is_year else [*quantity, *pairs, *readings]
    elif len(digits) > 4 and written.isdigit() and not digits.endswith("000"):
        readings += quantity
    else:
        readings = quantity + readings
    return list(dict.fromkeys(readings))


def read_pairs(digits):
    """Return the readings of 3 or 4 digits (str) in pairs: nineteen oh five, three fifty one."""
    first, last = name(int(digits[:-2])), digits[-2:]
    if last == "00":
        return [f"{first} hundred"]
    if last[0] == "0":
        return [f"{first} oh {name(int(last))}", f"{first} zero {name(int(last))}"]
    return [f"{first} {name(int(last))}"]


def read_decimal(whole, places):
    """Return the readings of whole.places (str of digits; whole may be empty)."""
    heads = read_whole(whole) if whole else ["", "zero"]
    readings = [f"{head} point {spell(places)}".strip() for head in heads]
    if whole and places == "5":
        readings += [f"{head} and a half" for head in heads]
    if whole and len(places) == 2 and places[0] != "0":
        readings += [f"{head} {name(int(places))}" for head in heads]
    return readings


def read_minutes(minutes):
    """Return the readings of two digits (str) after an hour and a colon."""
    if minutes == "00":
        return ["o'clock", "", "hundred"]
    if minutes[0] == "0":
        return [f"oh {name(int(minutes))}", f"zero {name(int(minutes))}", name(int(minutes))]
    return [name(int(minutes)), spell(minutes)]


def read_fraction(over, under):
    """Return the readings of over/under, ints below and up to ten."""
    part = {2: "half", 4: "quarter"}.get(under) or name(under, "ordinal")
    parts = {"half": "halves"}.get(part, part + "s")
    readings = [f"{name(over)} {part if over == 1 else parts}"]
    if over == 1:
        readings.append(f"a {part}")
    apart = [f"{name(over)} {between} {name(under)}" for between in BETWEEN["/"]]
    return readings + [reading.replace("  ", " ") for reading in apart]


def read_money(body, sign):
    """Return the readings of an amount with two places (str) of a currency of MONEY."""
    whole, cents = body.split(".")
    unit, units, cent, cents_name = MONEY[sign]
    small = f"{name(int(cents))} {cent if int(cents) == 1 else cents_name}"
    readings = []
    for head in read_whole(whole.lstrip("0") or "0"):
        big = f"{head} {unit if head in ('one', 'a') else units}"
        number = name(int(cents))
        readings += [f"{big} and {small}", f"{big} {small}", f"{big} {number}", f"{head} {number}"]
        if int(cents) == 0:
            readings = [big, *readings]
    if not int(whole.replace(",", "")):
        readings = [small, *readings]
    return readings + [f"{reading} {units}" for reading in read_decimal(whole, cents)]


def plural(words):
    """Return words with the last one in the plural: sixties, hundreds, sixes."""
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith("x") else "s")
