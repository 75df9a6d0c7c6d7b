"""corpora.py: lists, folders and archives as people have them, read without features."""
import hashlib
import http.server
import io
import json
import os
import shutil
import struct
import subprocess
import tarfile
import unicodedata
from collections import Counter

import pytest

import corpora
from commands import ROOT, raises, web_server, write_file
from drill import make_audio

FLAC = make_audio(0.5, 1, "FLAC")


def read(source, **settings):
    """{key: info and path} and {key: reason} of the clips that can be used, and can't."""
    clips, failures, _ = corpora.read_corpus(str(source), **settings)
    good = {clip["info"]["key"]: clip["info"] | {"path": clip["path"]} for clip in clips}
    return good, {failure["key"]: failure["reason"] for failure in failures}


def write_list(folder, rows, encoding="utf-8"):
    """Write list.jsonl of rows (dicts, or lines as they are) and each row's audio."""
    for row in rows:
        if isinstance(row, dict):
            write_file(folder / row["audio"], FLAC)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    return write_file(folder / "list.jsonl", "\r\n".join([*lines, ""]).encode(encoding))


@pytest.mark.case("B15", "B16", "B17", "B22")
def test_lists(tmp_path):
    """Broken: a byte order mark, U+2028, an odd name, accents or backslashes lose or join clips."""
    names = ("spk1/utt1.flac", "take.2.flac", "2 Track 2.0 (Clean).flac", "n/UPPER.FLAC",
             "comma, quote' .flac", "ümlaut.flac", "日本語 🎤.flac", "-a %41 two  spaces.flac")
    rows = [{"audio": name, "text": f"number\u2028{'abcdefgh'[i]}"} for i, name in enumerate(names)]
    good, bad = read(write_list(tmp_path, [*rows, "", "  "], "utf-8-sig"))
    assert not bad and len(good) == 8 and {"spk1-utt1", "take-2"} < set(good)
    assert {info["text"]: info["path"] for info in good.values()} == {
        row["text"].replace("\u2028", " "): f"{tmp_path}/{row['audio']}" for row in rows}
    assert not any(set(key) & set("./\\") for key in good)
    rows = [{"audio": f"{name}.flac", "text": "café", "key": "same"} for name in "ab"]
    good, bad = read(write_list(tmp_path, rows))
    assert set(good) == {"same"} and "list.jsonl:2: key there twice, at " in bad["same"]
    write_file(tmp_path / "n" / unicodedata.normalize("NFD", "café.flac"), FLAC)
    lines = [json.dumps({"audio": name, "text": "a name"}) for name in (
        unicodedata.normalize("NFC", "n/café.flac"), "n\\UPPER.FLAC", "C:\\my\\none.wav")]
    good, bad = read(write_list(tmp_path, lines))
    assert set(good) == {"n-café", "n-UPPER"}
    assert bad["C:-my-none"].endswith(f"list.jsonl:3: no recording ({tmp_path}/C:\\my\\none.wav)")


@pytest.mark.case("B21")
def test_rows_with_surprises(tmp_path):
    """Broken: a number, null or NaN spoils the index or a split; a fault isn't named or counted."""
    odd = [{"key": "a", "speaker": 10**30}, {"key": 7, "speaker": None},
           {"key": "c", "split": "TRAIN"}, {"key": "d", "split": "validation"},
           {"key": "e", "seconds": "unknown"}]
    rows = [{"audio": f"{i}.flac", "text": "has 50 turns"} | more for i, more in enumerate(odd)]
    rows += ['{"audio": "0.flac", "audio": "1.flac", "text": "first", "text": "second"}',
             '{"audio": "2.flac", "text": "not a number", "snr": NaN, "gain": -Infinity}',
             '{"audio": "3.flac", "question": "who", "answer": 3}']
    good, bad = read(write_list(tmp_path, rows))
    assert not bad and [good[key]["split"] for key in "cd"] == ["train", "val"]
    assert good["7"]["speaker"] == "" and good["1"]["text"] == "second" and good["2"]["snr"] is None
    assert good["a"]["text"] == "has fifty turns" and good["a"]["written"] == "has 50 turns"
    assert good["e"]["seconds"] == 0.5 and good["3"]["turns"] == [["own", "who", "3"]]
    rows = [{"audio": f"{i}.flac", "text": text} for i, text in enumerate(("你好", "<unk>", "", " "))]
    clips, failures, counts = corpora.read_corpus(str(write_list(tmp_path, rows)))
    assert [clip["info"]["text"] for clip in clips] == ["", ""] and not failures
    assert sum(counts.values()) == 2 and counts["dropped: letters of another script"] == 1
    for line, words in (('{"audio": "1.flac", "text": null}', '"text" is null, not a string'),
                        ('{"audio": "1.flac", "question": "a"}', '"answer" is missing')):
        reason = read(write_list(tmp_path, [line]))[1][""]
        assert reason.startswith(f"{tmp_path}/list.jsonl:1: {words}")


def make_layout(root, ext="flac", sep=" ", start=""):
    """Write a corpus of three speakers with 3 clips each, and what a Mac leaves beside them."""
    for subset, speaker in (("train-a", 100), ("train-a", 101), ("dev-a", 200)):
        chapter = root / f"{subset}/{speaker}/7"
        keys = [f"{speaker}-7-000{i}" for i in range(3)]
        for key in keys:
            write_file(chapter / f"{key}.{ext}", FLAC)
            for name in (f"._{key}.{ext}", f"{key}.mp3"):  # the second: flac goes before it
                write_file(chapter / name, b"\0\5\x16\7\0\2\0\0Mac OS X\xff\xfe\x80")
        lines = [f"{key}{sep}MY OLDER SISTER\r\n" for key in keys]
        write_file(chapter / f"{speaker}-7.trans.txt", "".join([start, *lines]))
        shutil.copytree(chapter, chapter / ".ipynb_checkpoints")
    return root


@pytest.mark.case("B16", "B17", "B18", "B19", "B20", "B22")
def test_layouts(tmp_path):
    """Broken: endings, tabs, marks, system files or accents lose clips; a misfit is not told."""
    root = make_layout(tmp_path / "upper", "FLAC", "\t", "\ufeff")
    good, bad = read(root)
    assert [info["text"] for info in good.values()] == ["my older sister"] * 9 and not bad
    assert {info["split"] for info in read(root / "dev-a")[0].values()} == {"val"}
    assert len(read(root, subsets="dev-a")[0]) == 3
    root = make_layout(tmp_path / "some speech", sep="  ")
    chapter = root / "dev-a/200/7"
    write_file(root / "labels.jsonl", '\ufeff{"key": "100-7-0000", "mood": "a\u2028b"}\n')
    decomposed = unicodedata.normalize("NFD", "200-7-é.v2")
    for i, new in (1, decomposed), (2, "200-7-ü"):
        (chapter / f"200-7-000{i}.flac").rename(chapter / f"{new}.flac")
        (chapter / f"200-7-000{i}.mp3").unlink()
    lines = ["200-7-0000 MY OLDER\u2028SISTER", "200-7-é.v2 MY OLDER SISTER",
             unicodedata.normalize("NFD", "200-7-ü") + " MY OLDER SISTER"]
    write_file(chapter / "200-7.trans.txt", "\n".join(lines))
    good, bad = read(root)
    assert [info["text"] for info in good.values()] == ["my older sister"] * 9 and not bad
    assert good["100-7-0000"]["mood"] == "a\u2028b" and good["100-7-0000"]["speaker"] == "100"
    assert good["200-7-é-v2"]["path"] == str(chapter / f"{decomposed}.flac")
    (chapter / "200-7-0000.mp3").unlink()
    (chapter / "200-7-0000.flac").rename(chapter / "extra.flac")
    bad = read(root)[1]
    assert "no recording" in bad["200-7-0000"] and "extra.flac has no trans" in bad["extra"]
    for folder in (tmp_path, root / "dev-a/200"):
        raises("trans.txt here, but .*trans.txt: point --source at ", read, folder)


def test_other_layouts(tmp_path):
    """Broken: the folders of Common Voice, LJSpeech or AISHELL-1 are not read as they come."""
    lines = ["client_id\tpath\tsentence\tgender", "me\t\t\t"]
    for i in range(3):
        write_file(tmp_path / f"cv/clips/en_{i}.mp3", FLAC)
        lines.append(f'{i:064x}\ten_{i}.mp3\tShe said: "number {"abc"[i]}!"\tfemale')
    write_file(tmp_path / "cv/validated.tsv", "\n".join([*lines, ""]))
    good, bad = read(tmp_path / "cv")
    assert len(bad) == 1 and "validated.tsv:2" in bad[""]
    assert [info["text"] for info in good.values()] == [f"she said number {x}" for x in "abc"]
    write_file(tmp_path / "lj/wavs/LJ001-0001.wav", FLAC)
    write_file(tmp_path / "lj/metadata.csv",
               "LJ001-0001|Dr. A went.|Doctor A went.\nLJ001-0002|No sound.|No sound.")
    good, bad = read(tmp_path / "lj")
    assert [info["text"] for info in good.values()] == ["doctor a went"]
    assert "no recording" in bad["LJ001-0002"]
    for name in ("train/S0002/a", "train/S0002/b", "dev/S0724/c", "test/S0764/d"):
        write_file(tmp_path / f"zh/wav/{name}.wav", FLAC)
    write_file(tmp_path / "zh" / corpora.AISHELL, "a 而 对 楼市\nc 也 A P P\nd 三\n")
    good, bad = read(tmp_path / "zh", language=corpora.Language("zh"))
    assert {key: (info["text"], info["split"]) for key, info in good.items()} == {
        "a": ("而对楼市", "train"), "c": ("也a p p", "val"), "d": ("三", "test")}
    assert list(bad) == ["b"] and "no line for it" in bad["b"] and good["d"]["speaker"] == "S0764"


def test_queen(tmp_path):
    """Broken: a line gets another's clip; a cut file is a traceback."""
    lines = ["A note?", *12 * ["?"], "It's *aa50%*bb LOCKED"]
    files = {"QUEEN.JAS": bytes(20) + struct.pack(">4H", 0, 0, 0, 1),
             "QUEEN2.JAS": "\r\n".join(lines).encode()}
    files |= {f"JOE000{key}.SB": FLAC for key in ("11", "12", "13", "21", "31")}
    table, at = bytes(13) + struct.pack(">H", len(files)), 15 + 21 * len(files)
    for name, data in files.items():
        table += struct.pack(">12sxII", name.encode(), at, len(data))
        at += len(data)
    archive = write_file(tmp_path / "queen.1c", table + b"".join(files.values()))
    good, bad = read(tmp_path)
    texts = {key: info["text"] for key, info in good.items()}
    assert texts == {"JOE00011": "it's", "JOE00012": "fifty percent",
                     "JOE00013": "locked", "JOE00021": "a note"} and not bad
    os.truncate(archive, 90)
    raises("queen.1c is cut short", read, tmp_path)


def test_speechocean(tmp_path):
    """Broken: its speakers mix between the splits, or children count as adults."""
    tables = {"wav.scp": "9{s}\tWAVE/9{s}.WAV", "text": "9{s}\tCLIP {w}", "utt2spk": "9{s} {s}",
              "spk2age": "{s} {age}", "spk2gender": "{s} {sex}"}
    for part, first in (("train", 0), ("test", 100)):
        for name, line in tables.items():
            rows = [line.format(s=s, w="ABCDEFGHIJKL"[s % 12], age=17 + s % 2, sex="mf"[s % 2])
                    for s in range(first, first + 12)]
            write_file(tmp_path / part / name, "\n".join([*rows, ""]))
        for s in range(first, first + 12):
            write_file(tmp_path / f"WAVE/9{s}.WAV", FLAC)
    good, bad = read(tmp_path)
    assert not bad and Counter(info["split"] for info in good.values()) == {
        "train": 10, "val": 2, "test_adults": 6, "test_children": 6}
    adults = {(i["sex"], i["age"]) for i in good.values() if i["split"] == "test_adults"}
    assert adults == {("female", 18)}


def test_downloads_a_subset(tmp_path, monkeypatch, capfd):
    """Broken: a missing subset isn't fetched, half of one stays, an unknown one is asked for."""
    write_file(tmp_path / "curl", "#!/bin/sh\nexit 22\n").chmod(0o755)  # no net is asked
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    root, chapter = tmp_path / "LibriSpeech", "LibriSpeech/dev-clean/1/2"
    files = {f"{chapter}/1-2.trans.txt": b"1-2-3 YES", f"{chapter}/1-2-3.flac": FLAC}
    root.mkdir()
    for name, content, said in (
            ("dev-clean", {"x": b""}, "dev-clean.tar.gz holds no LibriSpeech/dev-clean"),
            ("dev-other", {}, "no address serves it"), ("dev-clean", files, ""),
            ("home-made", {}, "none of LibriSpeech's: dev-clean")):
        if content:
            with tarfile.open(root / f"{name}.tar.gz", "w:gz") as tar:
                for path, data in content.items():
                    member = tarfile.TarInfo(path)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        if said:
            raises(f"{name}: no such folder", read, root, subsets=name, error=OSError)
            assert said in capfd.readouterr().err
        else:
            good, bad = read(root, subsets=name)
            assert not bad and [info["text"] for info in good.values()] == ["yes"]
            assert os.listdir(root) == [name]


def test_a_download_goes_on_and_is_verified(tmp_path):
    """Broken: what was cut off is fetched anew, or a wrong file is kept."""
    body, asked = bytes(range(256)) * 999, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            asked.append((self.path, start))
            self.send_response(206 if start else 200)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            self.wfile.write((body if self.path == "/good" else body[::-1])[start:])

    address, file = web_server(Handler), tmp_path / "file"
    (tmp_path / "file.part").write_bytes(body[:1000])
    for md5, name, rc in ((hashlib.md5(body).hexdigest(), "good", 0), ("1" * 32, "bad", 1),
                          ("", "good", 0)):
        command = f". runs/get.sh; get {file} '{md5}' http://127.0.0.1:9/x {address}/{name}"
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True,
                              env=os.environ | {"no_proxy": "127.0.0.1"})
        assert done.returncode == rc, done.stderr
        assert [path.name for path in tmp_path.glob("file*")] == ["file"] * (rc == 0)
        assert rc or file.read_bytes() == body
        file.unlink(missing_ok=True)
    assert asked == [("/good", 1000), ("/bad", 0), ("/good", 0)]
