"""recordings.py: sound files as recorders, browsers and archives leave them, or wrong ones."""
import io
import random
import struct

import av
import numpy as np
import pytest
from commands import raises
from drill import file_bytes
from recordings import TooLong, audio_header, read_audio
from test_audio import RATE, make_wav

WAV = make_wav(2.0)
PCM = (WAV * 32767).astype("<i2").tobytes()


def rms(wav):
    return float(np.sqrt(np.square(wav).mean()))


def by_ffmpeg(kind, codec, rate, bit_rate=64000, **options):
    """What ffmpeg writes into a container of this kind."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono", bit_rate=bit_rate)
        frame = av.AudioFrame.from_ndarray((WAV * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(stream.format, "mono", rate,
                                      stream.codec_context.frame_size or 1024)
        for part in resampler.resample(frame) + resampler.resample(None):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


def chunk(name, data, size=None):
    return name + struct.pack("<I", len(data) if size is None else size) + data


def riff(*chunks, size=None):
    return chunk(b"RIFF", b"WAVE" + b"".join(chunks), size)


def fmt(tag=1, channels=1, bits=16, extra=b""):
    align = channels * bits // 8
    head = struct.pack("<HHIIHH", tag, channels, RATE, RATE * align, align, bits)
    return chunk(b"fmt ", head + extra)


def without_length(flac):
    """A flac file of unknown length: the number of samples and the checksum are zeros."""
    return flac[:21] + bytes([flac[21] & 0xf0]) + bytes(20) + flac[42:]


def without_xing(data):
    """An mp3 without its first frame, which tells the number of frames."""
    return data[data.index(b"\xff", 4 + data.index(b"LAME")):]


def cover():
    """An ID3 tag with a picture of 100 kB, full of what looks like the beginning of a frame."""
    picture = b"\0image/jpeg\0\3\0" + b"\xff\xfb\x90\x64" * 25_000
    frame = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    size = [len(frame) >> shift & 127 for shift in (21, 14, 7, 0)]
    return b"ID3\3\0\0" + bytes(size) + frame


def check(data, seconds, tolerance, path, level=rms(WAV)):
    """Assert that bytes, path and header of a file agree, and its length and loudness; read it."""
    wav = read_audio(data)
    assert wav.dtype == np.float32 and abs(len(wav) / RATE - seconds) <= tolerance
    assert rms(wav) == pytest.approx(level, rel=0.15)
    path.write_bytes(data)
    assert np.array_equal(read_audio(path), wav)
    assert audio_header(path) == pytest.approx(len(wav) / RATE, abs=0.25)
    return wav


# --- formats
@pytest.mark.case("B13")
@pytest.mark.parametrize("kind, codec, rate, options", [
    ("webm", "libopus", 48000, {}), ("webm", "libopus", 48000, {"live": "1"}),
    ("ipod", "aac", 44100, {}), ("adts", "aac", 44100, {}), ("ogg", "libopus", 48000, {}),
    ("mp4", "aac", 48000, {"movflags": "frag_keyframe+empty_moov"}),
    ("amr", "libopencore_amrnb", 8000, {"bit_rate": 12200}), ("asf", "wmav2", 44100, {}),
    ("ipod", "alac", 16000, {}), ("matroska", "flac", 16000, {})])
def test_what_browsers_and_phones_record(tmp_path, kind, codec, rate, options):
    """Broken: a browser's webm or a phone's m4a is refused, or read at another length or pitch."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV can't write {codec}")
    wav = check(by_ffmpeg(kind, codec, rate, **options), 2.0, 0.1, tmp_path / "named.wav")
    ours, theirs = (np.abs(np.fft.rfft(x[:RATE + RATE // 2]))[200:1500] for x in (WAV, wav))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.6


@pytest.mark.case("B14")
@pytest.mark.parametrize("coding", """
    WAV/ULAW/8000 WAV/ALAW/8000 WAV/IMA_ADPCM/16000 WAV/MS_ADPCM/16000 WAV/GSM610/8000
    WAV/PCM_U8/11025 WAV/PCM_32/96000 RF64/PCM_16/44100 W64/PCM_16/16000 AIFF/PCM_16/44100
    CAF/PCM_16/48000 AU/ULAW/8000 NIST/PCM_16/16000 WAVEX/PCM_24/48000 VOC/PCM_16/16000
    WAV/DOUBLE/16000""".split())
def test_old_and_rare_codings(tmp_path, coding):
    """Broken: an archive's coding is refused or noise, or the name counts, not the content."""
    kind, subtype, rate = coding.split("/")
    rate = int(rate)
    sound = np.interp(np.arange(2 * rate) / rate, np.arange(2 * RATE) / RATE, WAV)
    check(file_bytes(sound, kind, subtype, rate), 2.0, 0.1, tmp_path / "a.mp3", rms(sound))


# --- whole
@pytest.mark.case("B01")
def test_flac_of_unknown_length(tmp_path):
    """Broken: a streamed flac lasts years, or a tag hides it, or its damaged frames are noise."""
    whole = file_bytes(WAV, "FLAC")
    flac = without_length(whole)
    for data in (flac, cover() + whole):
        check(data, 2.0, 0, tmp_path / "a.flac")
    raises("2.00 s long, over the limit of 1 s", read_audio, flac, max_s=1, error=TooLong)
    for at in (9000, 15000):
        raises("corrupt", read_audio, flac[:at] + bytes([flac[at] ^ 8]) + flac[at + 1:])


@pytest.mark.case("B02", "B27")
@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_ogg_that_was_stopped(tmp_path, subtype):
    """Broken: ogg without its end is refused, a part is read as whole, or half a second is days."""
    data = file_bytes(make_wav(6.0), "OGG", subtype)
    assert 4 < len(read_audio(data[:data.rindex(b"OggS")])) / RATE < 6
    raises("ends early", read_audio, data[:-300])
    check(file_bytes(WAV[:8000], "OGG", subtype), 0.5, 0.05, tmp_path / "a.ogg",
          rms(WAV[:8000]))


@pytest.mark.case("B03")
@pytest.mark.parametrize("size", [0, 0x7ffff000, 0x7fffffff, 2_000_000_000, 0xffffffff])
def test_streamed_wav(tmp_path, size):
    """Broken: a wav written to a pipe, its sizes made up, is empty or endless."""
    whole = min(size + 36, 0xffffffff) if size else 0
    for before in (b"", chunk(b"LIST", b"INFOISFT\x0e\0\0\0Lavf60.16.100\0")):
        check(riff(fmt(), before, chunk(b"data", PCM, size), size=whole), 2.0, 0, tmp_path / "a")


@pytest.mark.case("B04")
def test_odd_chunks_of_wav(tmp_path):
    """Broken: an odd size, zeros, Latin-1 notes, a short PEAK, 24 of 32 bits or a late header."""
    floats = np.stack([WAV, WAV], 1).astype("<f4").tobytes()
    pcm24 = ((WAV * 8388607).astype("<i4") << 8).view(np.uint8).reshape(-1, 4)
    odd = chunk(b"data", pcm24[:-1, 1:].tobytes())
    guid = struct.pack("<HHIH", 22, 24, 0, 1) + bytes.fromhex("000000001000800000aa00389b71")
    notes = chunk(b"LIST", b"INFOICMT\4\0\0\0caf\xe9")
    peak = chunk(b"PEAK", struct.pack("<IIfI", 1, 0, 0.5, 0))  # of one channel of two
    for data in (
        riff(fmt(bits=24), odd, notes),
        riff(fmt(), chunk(b"LIST", bytes(4096)), chunk(b"data", PCM)),
        riff(fmt(3, 2, 32), peak, chunk(b"data", floats)),
        riff(fmt(), notes, chunk(b"data", PCM, 0)),
        riff(fmt(0xFFFE, bits=32, extra=guid), chunk(b"data", pcm24.tobytes())),
        riff(chunk(b"data", PCM), fmt()),
    ):
        wav = check(data, 2.0, 0.001, tmp_path / "a.wav")
        assert np.abs(wav[:31999] - WAV[:31999]).max() < 1e-4


@pytest.mark.case("B05", "B06")
def test_mp3_without_a_header_and_with_tags(tmp_path):
    """Broken: an mp3 ends where a guess from its first frame ends, or tags count as sound."""
    loud, soft, silence = make_wav(3.0), make_wav(5.0), np.zeros(3 * RATE, np.float32)
    tags = b"APETAGEX" + bytes(20000) + b"TAG" + b" " * 125
    mp3 = file_bytes(soft, "MP3")
    head = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 144, 1, 1393)
    cases = [(soft, riff(chunk(b"fmt ", head), chunk(b"data", without_xing(mp3))))]
    for bare in (mp3, without_xing(mp3)):
        cases += [(soft, data) for data in (bare, cover() + bare, bare + tags)]
    wav = np.concatenate([silence, loud])
    vbr = file_bytes(wav, "MP3", bitrate_mode="VARIABLE", compression_level=0.2)
    for wav, data in (*cases, (wav, vbr), (wav, without_xing(vbr))):
        check(data, len(wav) / RATE, 0.12, tmp_path / "a.mp3", rms(wav))


@pytest.mark.case("B07")
def test_joined_files(tmp_path):
    """Broken: `cat a.ogg b.ogg` is read as a.ogg alone, without a word."""
    two, three = make_wav(2.0), make_wav(3.0, seed=1)
    for kind, subtype in (("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)):
        parts = [file_bytes(wav, kind, subtype) for wav in (two, three)]
        check(b"".join(parts), 5.0, 0.2, tmp_path / "a")
    slower = file_bytes(three, "MP3", rate=8000)  # 6 s at another rate
    check(file_bytes(two, "MP3") + slower, 8.0, 0.3, tmp_path / "a")
    flac = file_bytes(two, "FLAC") + file_bytes(three, "FLAC")
    assert len(read_audio(flac)) == 5 * RATE
    raises("joined", read_audio, file_bytes(two) + file_bytes(three))


CUT = [file_bytes(make_wav(2.0, seed=4), kind) for kind in "WAV FLAC MP3 RF64 AIFF AU NIST".split()]
CUT += [by_ffmpeg("ipod", "aac", 44100), by_ffmpeg("adts", "aac", 44100),
        by_ffmpeg("webm", "libopus", 48000)]
if "libopencore_amrnb" in av.codecs_available:  # PyAV 19 reads amr, and can't write it
    CUT.append(by_ffmpeg("amr", "libopencore_amrnb", 8000, bit_rate=12200))


@pytest.mark.case("B02", "B03", "B05")
@pytest.mark.parametrize("data", CUT, ids=lambda data: data[:12].hex())
def test_a_file_that_ends_early_says_so(data):
    """Broken: the first part of a recording is taken for all of it."""
    raises("ends early|corrupt", read_audio, data[:len(data) * 3 // 5 - 5])


# --- channels and levels
@pytest.mark.case("B08")
def test_channels_that_cancel():
    """Broken: a balanced cable read as stereo is silence; a voice on one of many is soft."""
    hum = 0.05 * np.sin(2 * np.pi * 50 * np.arange(len(WAV)) / RATE).astype(np.float32)
    silent = np.zeros_like(WAV)
    for channels, expected in (
            ([WAV, -0.9 * WAV], WAV), ([WAV + 0.2, 0.2 - WAV], WAV + 0.2),
            ([0.4 * WAV, -WAV], -0.3 * WAV), ([WAV, silent], WAV / 2),
            ([WAV, hum], (WAV + hum) / 2), ([WAV, *5 * [silent]], WAV)):
        for kind in ("WAV", "CAF"):  # by soundfile and by ffmpeg
            wav = read_audio(file_bytes(np.stack(channels, 1), kind))
            assert np.abs(np.abs(wav) - np.abs(expected)).max() < 1e-4  # of either sign
    swing = np.repeat([1, -1], RATE) * WAV  # in phase, then not: the mean is not far below
    wav = read_audio(file_bytes(np.stack([WAV, swing], 1)))
    assert np.abs(wav[:RATE] - WAV[:RATE]).max() < 1e-4


@pytest.mark.case("B09")
@pytest.mark.parametrize("scale", [0.001, 2.5, 100, 2**15, 2**31])
def test_floats_that_are_integers(scale):
    """Broken: integers written as floats are 90 dB too loud, or a loud file is made softer."""
    wav = WAV / np.abs(WAV).max() / 2
    for kind in ("WAV", "AIFF"):
        data = file_bytes(wav * scale, kind, "FLOAT")
        if scale > 100:
            raises("holds samples of .*: scale them to -1..1", read_audio, data)
        else:
            assert np.abs(read_audio(data) / scale - wav).max() < 1e-6


@pytest.mark.case("B11")
def test_faulty_recorders():
    """Broken: a voice 60 dB too quiet loses its form; an offset, a click, clipping is changed."""
    quiet = read_audio(file_bytes(0.001 * WAV, subtype="PCM_16"))
    assert np.corrcoef(quiet, WAV)[0, 1] > 0.98 and rms(quiet) < 0.002 * rms(WAV)
    click = 0.001 * WAV
    click[RATE] = 1
    for wav in (0.1 * WAV + 0.8, click, np.clip(20 * WAV, -1, 1)):
        assert np.abs(read_audio(file_bytes(wav, subtype="FLOAT")) - wav).max() < 1e-6


# --- refusals
@pytest.mark.case("B13", "B14")
@pytest.mark.parametrize("word, data", [
    ("empty", b""), ("empty", file_bytes([])),
    ("goes on", file_bytes(WAV[:9000]) + b"\xab" * 9000),
    ("NaN", file_bytes([0, float("nan")] * 99, subtype="FLOAT")),
    ("samples of 1e.11: scale them to -1..1", file_bytes([1e11] * 99, subtype="FLOAT")),
    ("17 channels at 16000 Hz: at most 16", file_bytes(np.zeros((99, 17)))),
    ("holds no sound", by_ffmpeg("webm", "libopus", 48000).replace(b"A_OPUS", b"A_NONE")),
    ("can be read|is empty", b"<!doctype html><title>302 Found</title>" * 40),
    ("can be read|is empty", np.random.default_rng(0).bytes(50_000)),
], ids=range(9))
def test_bad_files(tmp_path, word, data):
    """Broken: a wrong file or a web page is heard, or no line names the file and the fault."""
    path = tmp_path / "clip.flac"
    path.write_bytes(data)
    for source, name in ((path, str(path)), (data, "audio")):
        assert name in raises(word, read_audio, source, max_s=2)


@pytest.mark.case("B13")
def test_a_list_of_other_files_is_refused(tmp_path):
    """Broken: a playlist makes ffmpeg read another file of this machine, or an address."""
    (tmp_path / "secret.wav").write_bytes(file_bytes(WAV))
    for text in ("ffconcat version 1.0\nfile secret.wav\n",
                 "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://127.0.0.1:9/a.wav\n"):
        (tmp_path / "list.m3u8").write_text(text)
        raises("no sound file", read_audio, tmp_path / "list.m3u8")


@pytest.mark.case("B12")
def test_limits(monkeypatch):
    """Broken: exactly the limit is refused, or a file of a few kB takes gigabytes: it is decoded,
    or its header is believed."""
    sound = np.resize(WAV, 31 * RATE)
    for extra, shown in ((2, "30.01"), (640, "30.04")):
        long = file_bytes(sound[:30 * RATE + extra], "FLAC")
        raises(f"{shown} s long, over the limit of 30 s", read_audio, long, 30, error=TooLong)
    whole = sound[:30 * RATE]
    for data in (file_bytes(sound[:30 * 11025], rate=11025), file_bytes(whole, "MP3"),
                 file_bytes(whole, "FLAC")):
        assert len(read_audio(data, max_s=30)) / RATE == pytest.approx(30, abs=0.001)
    hours = without_length(file_bytes(np.zeros(20 * 60 * RATE), "FLAC"))
    with monkeypatch.context() as patch:
        patch.setattr("recordings.to_float", lambda frame: pytest.fail("decoded"))
        patch.setattr("recordings.MOST_S", 300)
        raises("300.* s long", read_audio, hours, max_s=2, error=TooLong)
    monkeypatch.setattr("recordings.read_header", lambda *a: 1)  # as if it said so
    raises("over the limit", read_audio, hours, max_s=2, error=TooLong)


def test_damaged_files_raise_nothing_else():
    """Broken: damage ends in another error than a ValueError of one line, or in infinities."""
    files = [*CUT, file_bytes(WAV, "OGG"), by_ffmpeg("asf", "wmav2", 44100)]
    n_refused = 0
    for i in range(300):
        rng, data = random.Random(i), bytearray(files[i % len(files)])
        for _ in range(rng.choice([1, 4, 20])):
            data[rng.randrange(min(len(data), rng.choice([300, 10**6])))] = rng.randrange(256)
        end = rng.choice([None, rng.randrange(len(data))])
        try:
            assert np.isfinite(read_audio(bytes(data[:end]), 10.0)).all()
        except ValueError as e:
            n_refused += 1
            assert "\n" not in str(e)
    assert 100 < n_refused < 300
