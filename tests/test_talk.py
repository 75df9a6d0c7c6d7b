"""talk.py: rows that join, leave and go on where they were read say what each would say alone; text as it comes."""
import asyncio
import random

import numpy as np
import pytest
import torch

from decode import generate
from engine import Engine, Job
from talk import Batch, Recording, Row, Talker, Text, joined, segments, size
from test_audiobench import make_run
from test_model import row_forward, tiny  # noqa: F401 (a fixture)
from tokenizer import ByteTokenizer


def hear(wavs):
    """Stand-in for ears: audio tokens drawn from what a wav holds."""
    return [torch.randn(len(wav), 48, generator=torch.Generator().manual_seed(int(wav[0]))) for wav in wavs]


def sound(seed, n):
    return Recording(f"sound {seed}", n, np.full(n, seed, np.float32))


def prompts():
    """Text alone, recordings in front, in the middle and twice, of unequal lengths."""
    return [[1, 2, 3], [sound(1, 6), 4, 5], [6, sound(2, 3), 7, 8, 9, sound(3, 9), 10], [11, 12, sound(1, 6), 13]]


def say(model, prompt, **settings):
    """What a row alone says: ids."""
    batch, row = Batch(model, hear), Row(prompt, **settings)
    batch.add([row])
    while batch.rows:
        batch.step()
    return row.ids


def test_alone_equals_one_uncached_forward(tiny):  # noqa: F811
    """Segments are read out of order, or a recording in the middle counts wrongly."""
    for prompt in prompts():
        ids = say(tiny, prompt, max_tokens=6)
        parts = [[item] if isinstance(item, int) else hear([item.wav])[0] for item in [*prompt, *ids[:-1]]]
        assert row_forward(tiny, parts)[-6:].argmax(1).tolist() == ids
    assert say(tiny, [1, 2, 3], max_tokens=6) == [s[0] for s in generate(tiny, [[1, 2, 3]], max_tokens=6)]


@pytest.mark.parametrize("keep_bytes", [0, 10**9])
def test_rows_join_and_leave(tiny, keep_bytes):  # noqa: F811
    """A row's answer depends on who else is decoded, on who leaves, or on what was kept of the rows before."""
    rng, batch, done = random.Random(0), Batch(tiny, hear, keep_bytes), []
    for turn in range(40):
        if turn % 3 == 0 and turn < 30:
            rows = [Row(rng.choice(prompts()) + [rng.randrange(50)], rng.randrange(1, 12), seed=turn,
                        temperature=rng.choice([0.0, 1.0]), stop_ids=(7,), frequency_penalty=rng.choice([0.0, 1.0]))
                    for _ in range(rng.randrange(1, 4))]
            batch.add(rows)
            done += rows
        if turn == 8:
            batch.drop([gone := batch.rows[0]])
        if batch.rows:
            batch.step()
    assert not batch.rows and not batch.generators and all(row.ended for row in done if row is not gone)
    for row in (row for row in done if row is not gone):
        same = dict(temperature=row.temperature, seed=row.seed, stop_ids=(7,), frequency_penalty=row.frequency_penalty)
        assert row.ids == say(tiny, row.prompt, max_tokens=row.max_tokens, **same)


def test_a_next_turn_reads_only_what_is_new(tiny):  # noqa: F811
    """The cache of a conversation is not found, gives another answer, or is kept beyond its limit."""
    heard = []

    def ears(wavs):
        heard.append(len(wavs))
        return hear(wavs)

    batch, first = Batch(tiny, ears, 10**9), Row([sound(1, 6), 4, 5], 5)
    batch.add([first])
    while batch.rows:
        batch.step()
    prompt = [*first.prompt, *first.ids, 3, sound(2, 4), 9]
    assert batch.recall(prompt)[1] == len(first.prompt) + 4  # the last id was said, not read
    again, other = Row(prompt, 5), Row([sound(1, 6), 4, 8], 5)  # the next turn; another question about the sound
    batch.add([again, other])
    while batch.rows:
        batch.step()
    assert heard == [1, 1] and all(row.ids == say(tiny, row.prompt, max_tokens=5) for row in (again, other))
    assert len(batch.kept) == 2 and all(item.wav is None for items in batch.kept for item in items
                                        if isinstance(item, Recording))
    one = 2 * next(iter(batch.kept.values())).k.nbytes
    batch.keep_bytes = one + 1
    batch.keep(tuple(range(5)), batch.kept[next(iter(batch.kept))])
    assert list(batch.kept) == [tuple(range(5))] and batch.recall([0, 1, 2])[1] == 2


def test_penalties_and_seeds(tiny):  # noqa: F811
    """A penalty has no effect or lasts into another answer; a seed does not repeat its draw."""
    plain = say(tiny, [1, 2, 3], max_tokens=30)
    often = say(tiny, [1, 2, 3], max_tokens=30, frequency_penalty=2.0)
    never = say(tiny, [1, 2, 3], max_tokens=30, presence_penalty=100.0)
    assert len(set(often)) > len(set(plain)) and never[:1] == plain[:1] and len(set(never)) == 30
    draw = lambda seed: say(tiny, [1, 2, 3], max_tokens=20, temperature=1.0, seed=seed)
    assert draw(1) == draw(1) != draw(2)


def test_text_as_it_comes():
    """Half a character, or the beginning of a stop string, is shown; what follows the stop is shown too."""
    def show(data, stop=(), strip=False):
        text = Text(ByteTokenizer(), strip, stop)
        return [text.add(token) for token in data] + [text.add()], text.stopped

    assert show("né à".encode()) == (["n", "", "é", " ", "", "à", ""], False)
    assert "".join(show(b"a\xffb\xff")[0]) == "a\ufffdb\ufffd"
    assert show(b" no", strip=True)[0] == ["", "n", "o", ""]
    assert show(b"one. two", [". t"]) == (["o", "n", "e", "", "", "", "", "", ""], True)
    assert show(b"one. no", [". t"]) == (["o", "n", "e", "", "", ". n", "o", ""], False)
    assert show(b"aab", ["ab", "b"]) == (["", "a", "", ""], True) and show(b"end.", [".."])[0][-1] == "."


def test_prompts_of_conversations(tmp_path):
    """Recordings stand in the wrong place of a turn, texts are not made plain, or a recording has another length."""
    talker = Talker(make_run(tmp_path / "run"), device="cpu")
    wav = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    one, two = talker.record(wav), talker.record(wav[:5_001])
    assert talker.record(wav.copy()) == one != two
    assert [len(x) for x in talker.hear([wav, wav[:5_001]])] == [one.n_tokens, two.n_tokens]
    assert all(talker.record(wav[:n]).n_tokens == len(talker.hear([wav[:n]])[0]) for n in (1, 319, 320, 321, 639, 800))
    special = talker.tok.special
    items = talker.prompt([("user", "How high is it?", one), ("assistant", "low", None), ("user", "red", two)])
    places = [i for i, item in enumerate(items) if isinstance(item, Recording)]
    assert places[0] == 0 and items[1] == talker.tok.bos_id and items[places[1]] == two
    assert items[places[1] - 1] == special("<|assistant_end|>") and items[places[1] + 1] == special("<|user_start|>")
    assert items[-1] == special("<|assistant_start|>") and len(segments(items)) == 2
    assert talker.tok.decode([i for i in items[:places[1]] if isinstance(i, int)]).count(" how high is it") == 1
    assert size(items) == len(items) - 2 + one.n_tokens + two.n_tokens
    talker.ears = talker.ears | {"audio_at": 2}  # after bos and user_start; in later turns after user_start
    items = talker.prompt([("user", "red", one), ("assistant", "low", None), ("user", "red", two)])
    assert items[2] == one and items[items.index(two) - 1] == special("<|user_start|>")
    assert joined([]) is None and len(joined([wav, wav])) == 2 * len(wav) + 3_200
    with pytest.raises(ValueError):
        talker.prompt([("assistant", "low", None)])


def test_engine_survives_a_mistake_and_forgets_who_left(tiny, capsys):  # noqa: F811
    """A mistake in decoding stops the thread or hangs the askers; a transcript that nobody waits for goes on."""
    class Ears:
        model, ears, pieces = tiny, None, 0

        def transcripts(self, wav, beams):
            for _ in range(1000):
                self.pieces += 1
                yield "so"

    def fail():
        raise MemoryError("no more")

    async def gather(job):
        return [event async for event in job.follow()]

    async def run():
        talker = Ears()
        engine = Engine(talker, 4, 4, 0.0, 0, 1)
        engine.batch.step = fail
        engine.start()
        jobs = [Job(Row([1, 2, 3], 5)) for _ in range(2)]
        for job in jobs:
            engine.submit(job)
        for result in await asyncio.gather(*map(gather, jobs), return_exceptions=True):
            assert isinstance(result, MemoryError)
        engine.submit(unread := Job(Row([1, 2, 3], 50)))  # nobody reads its events
        engine.submit(left := Job(wav=np.zeros(9, np.float32)))
        async for _ in left.follow():
            break
        engine.submit(job := Job(Row([1, 2, 3], 5)))
        assert await gather(job) == say(tiny, [1, 2, 3], max_tokens=5)
        while engine.running():
            await asyncio.sleep(0.01)
        assert unread.events.qsize() > 3 and talker.pieces < 1000

    asyncio.run(asyncio.wait_for(run(), 60))
    assert "MemoryError" in capsys.readouterr().err
