"""corpora.py: lists, folders and archives as people have them, read without features."""
import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
import types
import unicodedata

import numpy as np
import pytest
import soundfile

import corpora


@pytest.fixture(scope="session")
def flac():
    """The bytes of a recording of half a second."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, 8000), 16000, format="FLAC")
    return file.getvalue()


def read(source, **settings):
    """{key: info and path} and {key: reason} of the clips that can be used, and can't."""
    clips, failures, _ = corpora.read_corpus(str(source), **settings)
    good = {clip["info"]["key"]: clip["info"] | {"path": clip["path"]} for clip in clips}
    return good, {failure["key"]: failure["reason"] for failure in failures}


def write_list(folder, rows, flac, encoding="utf-8", end="\n"):
    """Write list.jsonl of rows (dicts, or lines as they are) and each row's audio."""
    for row in rows:
        if isinstance(row, dict):
            (folder / row["audio"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / row["audio"]).write_bytes(flac)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "list.jsonl").write_bytes(end.join([*lines, ""]).encode(encoding))
    return folder / "list.jsonl"


@pytest.mark.case("B15", "B16")
def test_lists_in_other_encodings(flac, tmp_path):
    """Broken: a byte order mark loses a clip; U+2028 makes two of one; a blank line is a failure;
    UTF-16 or Latin-1 is a message without the file."""
    rows = [{"audio": f"clips/{i}.flac", "text": f"clip {'abcdef'[i]}"} for i in range(6)]
    for encoding, end in (("utf-8", "\n"), ("utf-8-sig", "\n"), ("utf-8-sig", "\r\n")):
        good, bad = read(write_list(tmp_path, [*rows, "", "  "], flac, encoding, end))
        assert not bad and {i["text"] for i in good.values()} == {row["text"] for row in rows}
    for char in "\u2028\u2029\x85":
        rows[3]["text"] = f"the train left{char}kansas at noon"
        good, bad = read(write_list(tmp_path, rows, flac))
        assert good["clips-3"]["text"] == "the train left kansas at noon" and len(good) == 6
    with pytest.raises(ValueError, match="list.jsonl:1: this is UTF-16: save it as UTF-8"):
        read(write_list(tmp_path, rows, flac, "utf-16"))
    rows[2]["text"], rows[3]["text"] = "caf\xe9", "noon"
    with pytest.raises(ValueError, match="list.jsonl:3: byte 0xe9 is no UTF-8"):
        read(write_list(tmp_path, rows, flac, "latin-1"))


@pytest.mark.case("B17")
def test_keys_of_paths_do_not_collide(flac, tmp_path):
    """Broken: two clips whose paths differ in / - or . alone become one, or a failure that names
    no way out."""
    names = ("spk1/utt1.flac", "spk1-utt1.flac", "take.2.flac", "take-2.flac", "take.2.wav")
    rows = [{"audio": name, "text": f"number {'abcde'[i]}"} for i, name in enumerate(names)]
    good, bad = read(write_list(tmp_path, rows, flac))
    assert not bad and len(good) == 5 and {"spk1-utt1", "take-2"} < set(good)
    assert {info["text"]: os.path.basename(info["path"]) for info in good.values()} == {
        row["text"]: os.path.basename(row["audio"]) for row in rows}
    assert not any(set(key) & set("./\\") for key in good)
    assert list(read(tmp_path / "list.jsonl")[0]) == list(good)
    rows = [{"audio": "b.flac", "text": "one", "key": "same"},
            {"audio": "c.flac", "text": "two", "key": "same"}]
    good, bad = read(write_list(tmp_path, rows, flac))
    assert set(good) == {"same"} and "list.jsonl:2: key there twice, at " in bad["same"]
    assert "list.jsonl:1 too: rename one, or give each row its own \"key\"" in bad["same"]


@pytest.mark.case("B17", "B22")
def test_names_of_other_systems(flac, tmp_path):
    """Broken: dots, accents or quotes in a name, a Mac's decomposed accents or Windows' backslashes
    lose a clip; what is missing is not named as it was looked for."""
    names = ("2 Track 2.0 (Clean).flac", "UPPER.FLAC", "comma, quote' .flac", "ümlaut größe.flac",
             "日本語 🎤.flac", "-a-dash.flac", "%41 percent.flac", "two  spaces.flac")
    rows = [{"audio": f"n/{name}", "text": "a name"} for name in names]
    good, bad = read(write_list(tmp_path, rows, flac))
    assert len(good) == 8 and not bad
    (tmp_path / "n" / unicodedata.normalize("NFD", "café.flac")).write_bytes(flac)
    lines = [json.dumps({"audio": name, "text": "a name"}) for name in (
        unicodedata.normalize("NFC", "n/café.flac"), "n\\UPPER.FLAC", "C:\\my\\none.wav")]
    good, bad = read(write_list(tmp_path, lines, flac))
    assert set(good) == {"n-café", "n-UPPER"}
    assert bad["C:-my-none"].endswith(f"transcript without audio (no {tmp_path}/C:\\my\\none.wav)")


@pytest.mark.case("B21")
def test_rows_with_surprises(flac, tmp_path):
    """Broken: a number, null or NaN in a row, or a field of our own name, spoils the index, moves a
    clip to a split that nobody reads, or is refused without what is wrong; a number leaves a label;
    what can't be said is not counted."""
    odd = [{"key": "a", "speaker": 10**30}, {"key": 7, "speaker": None}, {"key": "c", "split": "TRAIN"},
           {"key": "d", "split": "validation"}, {"key": "e", "seconds": "unknown", "subset": "x"}]
    rows = [{"audio": f"{i}.flac", "text": "has 50 turns"} | more for i, more in enumerate(odd)]
    rows += ['{"audio": "0.flac", "audio": "1.flac", "text": "first", "text": "second"}',
             '{"audio": "2.flac", "text": "not a number", "snr": NaN, "gain": -Infinity}',
             '{"audio": "3.flac", "question": "who", "answer": 3}']
    good, bad = read(write_list(tmp_path, rows, flac))
    assert not bad and [good[key]["split"] for key in "cd"] == ["train", "val"]
    assert good["7"]["speaker"] == "" and good["1"]["text"] == "second" and good["2"]["snr"] is None
    assert good["a"]["text"] == "has fifty turns" and good["a"]["written"] == "has 50 turns"
    assert good["e"]["seconds"] == 0.5 and good["3"]["turns"] == [["own", "who", "3"]]
    texts = ("你好", "[laughter] <unk>", "", "  ")
    lines = [json.dumps({"audio": "1.flac", "key": f"k{i}", "text": t}) for i, t in enumerate(texts)]
    clips, failures, counts = corpora.read_corpus(str(write_list(tmp_path, lines, flac)))
    assert [clip["info"]["text"] for clip in clips] == ["", ""] and not failures
    assert sum(counts.values()) == 2 and counts["dropped: letters of another script"] == 1
    for line, words in (('{"audio": "1.flac", "text": null}', '"text" is null, not a string'),
                        ('{"audio": "1.flac", "text": 42}', '"text" is 42'), ("[1]", "no JSON object"),
                        ('{"file": "1.flac", "text": "a"}', '"audio" is missing among file, text'),
                        ('{"audio": {"path": "1.flac"}}', '"audio" is {"path"'),
                        ('{"audio": "1.flac", "question": "a"}', '"answer" is missing')):
        reason = read(write_list(tmp_path, [line], flac))[1][""]
        assert reason.startswith(f"{tmp_path}/list.jsonl:1: {words}")


@pytest.fixture
def layout(flac, tmp_path):
    """layout(name, ...) makes a corpus of three speakers with 3 clips each -> its folder."""
    def make(name, ext="flac", sep=" ", end="\n", encoding="utf-8"):
        for subset, speaker in (("train-a", 100), ("train-a", 101), ("dev-a", 200)):
            chapter = tmp_path / name / subset / str(speaker) / "7"
            chapter.mkdir(parents=True)
            keys = [f"{speaker}-7-000{i}" for i in range(3)]
            for key in keys:
                (chapter / f"{key}.{ext}").write_bytes(flac)
            lines = [f"{key}{sep}MY OLDER SISTER" for key in keys]
            text = end.join([*lines, ""]).encode(encoding)
            (chapter / f"{speaker}-7.trans.txt").write_bytes(text)
        return tmp_path / name
    return make


def assert_all_nine(found):
    good, bad = found
    assert len(good) == 9 and not bad, bad
    assert {info["text"] for info in good.values()} == {"my older sister"}


@pytest.mark.case("B18", "B19", "B20")
@pytest.mark.parametrize("how", [{"ext": "FLAC"}, {"sep": "\t"}, {"sep": "  "},
                                 {"end": "\r\n", "encoding": "utf-8-sig"}], ids=str)
def test_layouts(layout, how):
    """Broken: upper-case endings, tabs, a byte order mark, Windows' line ends, or the files that a
    Mac and a notebook leave beside the others, lose clips or stop the run."""
    root = layout("some speech", **how)
    for chapter in list(root.glob("*/*/*")):
        for path in list(chapter.iterdir()):
            (chapter / f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X\xff\xfe\x80")
        shutil.copytree(chapter, chapter / ".ipynb_checkpoints")
    assert_all_nine(read(root))
    assert {info["split"] for info in read(root / "dev-a")[0].values()} == {"val"}
    assert len(read(root, subsets="dev-a")[0]) == 3


@pytest.mark.case("B16", "B17", "B20", "B22")
def test_texts_of_a_layout(layout):
    """Broken: Latin-1 is not named with file and line; U+2028 cuts a line; a dot or the form of
    accents in a key loses its clip; clips that don't fit are not told; a folder too deep."""
    root = layout("latin")
    chapter = root / "dev-a" / "200" / "7"
    labels = '\ufeff{"key": "100-7-0000", "mood": "a\u2028b"}\n'
    (root / "labels.jsonl").write_text(labels, encoding="utf-8")
    decomposed = unicodedata.normalize("NFD", "200-7-é.v2")
    (chapter / "200-7-0001.flac").rename(chapter / f"{decomposed}.flac")
    (chapter / "200-7-0002.flac").rename(chapter / "200-7-ü.flac")
    lines = ["200-7-0000 MY OLDER\u2028SISTER", "200-7-é.v2 MY OLDER SISTER",
             unicodedata.normalize("NFD", "200-7-ü") + " MY OLDER SISTER"]
    (chapter / "200-7.trans.txt").write_text("\n".join(lines), encoding="utf-8")
    assert_all_nine(found := read(root))
    assert found[0]["100-7-0000"]["mood"] == "a\u2028b"
    assert found[0]["200-7-é-v2"]["path"] == str(chapter / f"{decomposed}.flac")
    (chapter / "200-7-0000.flac").rename(chapter / "extra.flac")
    bad = read(root)[1]
    assert "transcript without audio" in bad["200-7-0000"] and "without trans" in bad["extra"]
    (chapter / "200-7.trans.txt").write_bytes(f"200-7-0000 A\n{lines[1]}\n".encode("latin-1"))
    with pytest.raises(ValueError, match="dev-a/200/7/200-7.trans.txt:2: byte 0xe9 is no UTF-8"):
        read(root)
    (root.parent / "outer").mkdir()
    root.rename(root.parent / "outer" / "latin")
    for name in ("outer", "outer/latin/dev-a/200"):
        with pytest.raises(ValueError, match="trans.txt here, but .*trans.txt: point --source at "):
            read(root.parent / name)


def test_speechocean(flac, tmp_path):
    """Broken: its speakers mix between the splits, or children count as adults."""
    (tmp_path / "WAVE").mkdir()
    tables = {"wav.scp": "9{s}\tWAVE/9{s}.WAV", "text": "9{s}\tCLIP {w}", "utt2spk": "9{s} {s}",
              "spk2age": "{s} {age}", "spk2gender": "{s} {sex}"}
    for part, first in (("train", 0), ("test", 100)):
        (tmp_path / part).mkdir()
        for name, line in tables.items():
            rows = [line.format(s=s, w="ABCDEFGHIJKL"[s % 12], age=17 + s % 2, sex="mf"[s % 2])
                    for s in range(first, first + 12)]
            (tmp_path / part / name).write_text("\n".join([*rows, ""]))
        for s in range(first, first + 12):
            (tmp_path / "WAVE" / f"9{s}.WAV").write_bytes(flac)
    good, bad = read(tmp_path)
    splits = [info["split"] for info in good.values()]
    assert not bad and {split: splits.count(split) for split in splits} == {
        "train": 10, "val": 2, "test_adults": 6, "test_children": 6}
    adults = {(i["sex"], i["age"]) for i in good.values() if i["split"] == "test_adults"}
    assert adults == {("female", 18)}


# ---- LibriSpeech from the net

def write_archive(path, members):
    """Write a tar.gz of {name: bytes, or '-> target' for a link}; returns its size and MD5."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content[3:]
            else:
                member.size = len(content)
            tar.addfile(member, None if isinstance(content, str) else io.BytesIO(content))
    return 0, hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def mirror(layout, tmp_path, monkeypatch):
    """A folder served over HTTP that holds dev-clean.tar.gz, shaped as OpenSLR's."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    chapter, asked = layout("net") / "dev-a" / "200" / "7", []
    (tmp_path / "mirror").mkdir()
    files = {f"LibriSpeech/dev-clean/200/7/{path.name}": path.read_bytes()
             for path in sorted(chapter.iterdir())}
    handler = functools.partial(Handler, directory=str(tmp_path / "mirror"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(corpora, "MIRRORS", ["http://127.0.0.1:9/no", url])
    archive = tmp_path / "mirror" / "dev-clean.tar.gz"
    monkeypatch.setitem(corpora.SUBSETS, "dev-clean", write_archive(archive, files))
    yield types.SimpleNamespace(url=url, archive=archive, files=files, asked=asked)
    server.shutdown()
    server.server_close()


def test_downloads_a_subset(mirror, tmp_path, capsys):
    """Broken: a subset is not read when only the second mirror or the hub has it, or comes twice."""
    root = tmp_path / "LibriSpeech"
    for _ in range(2):
        good, bad = read(root, subsets="dev-clean")
        assert len(good) == 3 and not bad and len(mirror.asked) == 1
    assert f"from {mirror.url}/dev-clean.tar.gz" in capsys.readouterr().out
    assert os.listdir(root) == ["dev-clean"]
    shutil.rmtree(root)
    (tmp_path / "mirror" / corpora.HUB).mkdir(parents=True)
    shutil.move(mirror.archive, tmp_path / "mirror" / corpora.HUB)
    assert len(read(root, subsets="dev-clean")[0]) == 3


def test_archives_are_not_trusted(mirror, tmp_path, monkeypatch):
    """Broken: a wrong archive, or one that writes outside, is unpacked; or a full disk is met after
    the download."""
    root, outside, good = tmp_path / "root", tmp_path / "outside.txt", mirror.files
    monkeypatch.setitem(corpora.SUBSETS, "dev-clean", (0, "0" * 32))
    with pytest.raises(OSError, match=f"{mirror.url}.*md5 is"):
        read(root, subsets="dev-clean")
    for bad in (good | {"../outside.txt": b"x"}, good | {"LibriSpeech/link": "-> ../../.."},
                {"LibriSpeech/dev-other/x": b"x"}):
        monkeypatch.setitem(corpora.SUBSETS, "dev-clean", write_archive(mirror.archive, bad))
        with pytest.raises(ValueError, match="dev-clean.tar.gz .*can be unpacked"):
            read(root, subsets="dev-clean")
        assert os.listdir(root) == ["dev-clean.tar.gz"] and not outside.exists()
        os.remove(root / "dev-clean.tar.gz")
    n_asked = len(mirror.asked)
    monkeypatch.setitem(corpora.SUBSETS, "dev-clean", (10**15, ""))
    with pytest.raises(OSError, match="dev-clean needs 2000000.0 GB .* make room"):
        read(root, subsets="dev-clean")
    assert len(mirror.asked) == n_asked
