"""transcripts.py: numbers, entities, marks and letters; what has no spoken form is refused."""
from collections import Counter

import pytest

from language import ENGLISH, spoken_turns
from transcripts import NoSpokenForm, normalize_transcript

NUMBERS = {
    "the primary coil has 50 turns": "the primary coil has fifty turns",
    "1, 8, 8, 4.": "one eight eight four", "0351": "zero three five one", "B12": "b twelve",
    "90210": "nine zero two one zero", "covid-19": "covid nineteen",
    "the 3rd, 21st": "the third twenty first",
    "1905, 2005, 2015": "nineteen oh five two thousand and five twenty fifteen",
    "the 1960s": "the nineteen sixties", "1984's": "nineteen eighty four's",
    "3.14": "three point one four", ".5": "point five", "$5.50": "five dollars and fifty cents",
    "$5 for lunch": "five dollars for lunch", "£5 million now": "five million pounds now",
    "£0.99": "ninety nine pence", "-5": "minus five", "5 %": "five percent", "$1": "one dollar",
    "$1,234": "one thousand two hundred and thirty four dollars",
    "$1.5 million": "one point five million dollars",
    "10:30, 10:05, 10:00": "ten thirty ten oh five ten o'clock"}
TEXTS = {
    "MISTER QUILTER'S APOSTLE\n": "mister quilter's apostle", "and/or...what": "and or what",
    "It’s the café—naïve!": "it's the cafe naive", "  end-to-end\t'' ' ": "end to end",
    "‘tis Straße Łódź præ": "'tis strasse lodz prae", "ＡＢ ﬁn": "ab fin", "dogs' a'b": "dogs' a'b",
    "Tom &amp; Jerry&#39;s AT&T": "tom and jerry's at and t", "(he said) hello": "he said hello",
    "re\u200bcord\u00ad the\u00a0sound\ufeff": "record the sound", "*move* it": "move it",
    "Lego™ 😀 ❤️ is ♪ fun": "lego is fun",
    "see example.com": "see example dot com", "#5": "number five", "": "", " \n": ""}
REFUSED = {
    "letters of another script": ["привет мир", "你好 42", "٣"],
    "a symbol without a spoken form": ["it costs $ a lot", "a < b", "caf\ufffd", "word¹", "1½",
                                       "5 °C", "[laughter] yes", "a <unk> b", "[sic] it", "{x}"],
    "a mark of noise": ["(coughs) well", "*sighs* yes", "so (inaudible)", "wait (in silence)"],
    "figures that can be read in several ways": ["on 3/4/2020", "2020-12-25", "24/7", "1914–1918",
                                                 "555-1234", "192.168.0.1", "$5k"],
    "no words left": ["...", "\u200b\u200b", "😀"]}


@pytest.mark.case("B21")
@pytest.mark.parametrize("text, spoken", [*NUMBERS.items(), *TEXTS.items()])
def test_a_transcript_says_what_the_audio_says(text, spoken):
    """Broken: a label lost its number or a letter, words are cut or joined, or marks are learnt."""
    assert normalize_transcript(text) == spoken
    assert normalize_transcript(spoken) == spoken


@pytest.mark.case("B21")
@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_said_is_refused(reason):
    """Broken: half of a text becomes its label, or the reason can't be counted."""
    for text in REFUSED[reason]:
        with pytest.raises(NoSpokenForm, match=reason) as refused:
            normalize_transcript(text)
        assert refused.value.reason == reason and isinstance(refused.value, ValueError)


def test_answers_keep_their_numbers():
    """Broken: "42" teaches silence, an answer vanishes uncounted, or a question is refused."""
    lines = "How many?", " 42 ", "3rd"
    assert ENGLISH.plain("\n\n".join(lines)) == "\n".join(map(ENGLISH.plain, lines))
    assert ENGLISH.plain(lines[1]) == " forty two"
    dropped, turns = Counter(), [["a", "how many", "42"], ["b", "who", "你好"], ["c", "?", "x"],
                                 ["d", "who", ""]]
    assert spoken_turns(turns, dropped) == turns[:1]
    assert dropped == {"letters of another script": 1, "no words left": 1,
                       "an empty question or answer": 1}
    assert ENGLISH.plain("what is 你好 $ 5?", strict=False) == " what is five dollars"
    assert ENGLISH.plain("7-7-8-6 [music] (laughs)", strict=False) == " seven seven eight six"
    assert ENGLISH.plain("说 <b>", strict=False) == ""
