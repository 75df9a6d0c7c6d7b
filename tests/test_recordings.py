"""recordings.py: sound files as recorders, browsers and archives leave
them are read whole, or refused in a line.
"""
import io
import random
import struct

import av
import numpy as np
import pytest
import soundfile

from recordings import TooLong, audio_header, read_audio
from test_audio import RATE, make_wav

WAV = make_wav(2.0)
RMS = float(np.sqrt(np.square(WAV).mean()))


def file_bytes(samples, rate=RATE, kind="WAV", subtype=None, **more):
    """What soundfile writes."""
    file = io.BytesIO()
    soundfile.write(
    file,
    np.asarray(
        samples,
        dtype=np.float32),
        rate,
        format=kind,
        subtype=subtype,
         **more)
    return file.getvalue()


def by_ffmpeg(kind, codec, rate, seconds=2.0, bit_rate=64000, **options):
    """What ffmpeg writes into a container of this kind."""
    file, sound = io.BytesIO(), np.resize(WAV, int(seconds * RATE))
    with av.open(file, "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono", bit_rate=bit_rate)
        frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], "s16", "mono")
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
    body = b"WAVE" + b"".join(chunks)
    return chunk(b"RIFF", body, size)


def fmt(tag=1, channels=1, bits=16, extra=b""):
    align = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels,
                 RATE, RATE * align, align, bits) + extra)


def ogg_pages(data):
    at, pages = 0, []
    while at < len(data):
        end = at + 27 + data[at + 26] + sum(data[at + 27:at + 27 + data[at + 26]])
        pages.append(data[at:end])
        at = end
    return pages


def without_end_flag(data):
    """An ogg file whose last page is not marked as the last one, its checksum anew."""
    *first, last = ogg_pages(data)
    page, crc = bytearray(last), 0
    page[5] &= ~4
    page[22:26] = bytes(4)
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04c11db7 if crc >> 31 else 0)) & 0xffffffff
    page[22:26] = struct.pack("<I", crc)
    return b"".join(first) + bytes(page)


def without_xing(data):
    """An mp3 without its first frame, which tells the number of frames."""
    return data[data.index(b"\xff", 4 + data.index(b"LAME")):]


def cover(n_bytes):
    """An ID3 tag with a picture that is full of what looks like the beginning of a frame."""
    frame = b"APIC" + struct.pack(">IH", n_bytes + 14, 0) + \
                                  b"\0image/jpeg\0\3\0" + b"\xff\xfb\x90\x64" * (n_bytes // 4)
    n = len(frame)
    return b"ID3\3\0\0" + bytes([n >> 21 & 127, n >> 14 & 127, n >> 7 & 127, n & 127]) + frame


def check(data, seconds, tolerance=0.1, level=RMS, path=None):
    """Assert that a file's bytes, and a path and a header where there is
    one, have the length and loudness.
    """
    wav = read_audio(data)
    assert wav.dtype == np.float32 and abs(len(wav) / RATE - seconds) <= tolerance
    assert np.sqrt(np.square(wav).mean()) == pytest.approx(level, rel=0.15)
    if path:
        path.write_bytes(data)
        assert np.array_equal(read_audio(path), wav)
        assert audio_header(path)[0] == pytest.approx(len(wav) / RATE, abs=0.25)
    return wav


# --- formats
@pytest.mark.parametrize(
    "kind, subtype, tolerance",
    [
        ("wav", "PCM_16", 1e-3),
        ("wav", "FLOAT", 1e-6),
        ("flac", "PCM_16", 1e-3),
        ("ogg", "VORBIS", 0.1),
        ("mp3", None, 0.1),
    ],
)
def test_formats(tmp_path, kind, subtype, tolerance):
    """A decoder that drops samples or scales them, and bytes read otherwise
    than a path, would show here.
    """
    wav, path = make_wav(1.3), tmp_path / f"a.{kind}"
    soundfile.write(path, wav, RATE, subtype=subtype)
    read = read_audio(str(path))
    assert read.dtype == np.float32 and read.shape == wav.shape and np.abs(
        read - wav).max() < tolerance
    assert np.array_equal(
    read_audio(
        path.read_bytes()),
        read) and np.array_equal(
            read_audio(path),
             read)
    assert audio_header(path) == (pytest.approx(1.3, abs=0.02), RATE, 1)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resampled_mono(tmp_path, rate):
    """A wrong rate would shift every pitch, a channel lost would silence half a recording."""
    t = np.arange(rate * 2) / rate
    left, right = np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 1000 * t)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1) * 0.5, rate)
    wav = read_audio(tmp_path / "a.wav")
    assert abs(len(wav) - 2 * RATE) <= 1 and wav.dtype == np.float32
    peaks = np.abs(np.fft.rfft(wav[:RATE])) / (RATE / 2)
    assert peaks[440] == pytest.approx(
    0.25, abs=0.01) and peaks[1000] == pytest.approx(
        0.25, abs=0.01)
    assert audio_header(tmp_path / "a.wav") == (2.0, rate, 2)


@pytest.mark.case("B13")
@pytest.mark.parametrize("kind, codec, rate, options", [
    ("webm", "libopus", 48000, {}), ("webm", "libopus",
     48000, {"live": "1"}), ("ipod", "aac", 44100, {}),
    ("mp4", "aac", 48000, {"movflags": "frag_keyframe+empty_moov"}), ("adts", "aac", 44100, {}),
    ("ogg", "libopus", 48000, {}), ("amr", "libopencore_amrnb",
     8000, {"bit_rate": 12200}), ("asf", "wmav2", 44100, {}),
    ("ipod", "alac", 16000, {}), ("matroska", "flac", 16000, {})])
def test_what_browsers_and_phones_record(tmp_path, kind, codec, rate, options):
    """A browser's webm or a phone's m4a is refused, or read at another length, pitch or loudness.
    """
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV can't write {codec}")
    wav = check(by_ffmpeg(kind, codec, rate, **options), 2.0, path=tmp_path / "named.wav")
    ours, theirs = (np.abs(np.fft.rfft(x[:RATE + RATE // 2]))[200:1500] for x in (WAV, wav))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.6


@pytest.mark.case("B14")
@pytest.mark.parametrize(
    "kind, subtype, rate",
    [
        ("WAV", "ULAW", 8000),
        ("WAV", "ALAW", 8000),
        ("WAV", "IMA_ADPCM", 16000),
        ("WAV", "MS_ADPCM", 16000),
        ("WAV", "GSM610", 8000),
        ("WAV", "PCM_U8", 11025),
        ("WAV", "PCM_32", 96000),
        ("RF64", "PCM_16", 16000),
        ("W64", "PCM_16", 16000),
        ("AIFF", "PCM_16", 44100),
        ("CAF", "PCM_16", 48000),
        ("AU", "ULAW", 8000),
        ("NIST", "PCM_16", 16000),
        ("WAVEX", "PCM_24", 48000),
        ("VOC", "PCM_16", 16000),
        ("WAV", "DOUBLE", 16000),
    ],
)
def test_old_and_rare_codings(tmp_path, kind, subtype, rate):
    """A coding that archives are in is refused or heard as noise, or the
    name counts in place of the content.
    """
    sound = np.interp(np.arange(2 * rate) / rate, np.arange(2 * RATE) / RATE, WAV)
    check(
    file_bytes(
        sound,
        rate,
        kind,
        subtype),
        2.0,
        level=np.sqrt(
            np.square(sound).mean()),
            path=tmp_path /
             "a.mp3")


# --- whole
@pytest.mark.case("B01")
def test_flac_of_unknown_length(tmp_path):
    """A streamed flac is "576460752303423 s long", or a tag before it hides it."""
    flac = bytearray(file_bytes(WAV, kind="FLAC"))
    flac[21] &= 0xf0
    flac[22:42] = bytes(20)  # the length's lower bits and the checksum
    check(bytes(flac), 2.0, 0, path=tmp_path / "a.flac")
    check(cover(8000) + file_bytes(WAV, kind="FLAC"), 2.0, 0, path=tmp_path / "a.flac")
    with pytest.raises(TooLong, match="2.00 s long, over the limit of 1 s"):
        read_audio(bytes(flac), max_s=1)


@pytest.mark.case("B02")
@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_ogg_that_was_stopped_hard(tmp_path, subtype):
    """An ogg file without the mark of its end is refused; one that is cut
    within a page is read in part, silently.
    """
    data = file_bytes(make_wav(6.0), kind="OGG", subtype=subtype)
    check(without_end_flag(data), 6.0, path=tmp_path / "a.ogg")
    # indistinguishable from a recorder that was stopped there
    without_last = b"".join(ogg_pages(data)[:-1])
    assert 4 < len(read_audio(without_last)) / RATE < 6
    with pytest.raises(ValueError, match="ends early"):
        read_audio(data[:-300])


@pytest.mark.case("B03")
@pytest.mark.parametrize("size", [0, 0x7ffff000, 0x7fffffff, 2_000_000_000, 0xffffffff])
def test_streamed_wav(tmp_path, size):
    """A wav written to a pipe, its sizes made up, is empty or endless."""
    pcm = (WAV * 32767).astype("<i2").tobytes()
    for before in (b"", chunk(b"LIST", b"INFOISFT\x0e\0\0\0Lavf60.16.100\0")):
        data = riff(
    fmt(), before, chunk(
        b"data", pcm, size), size=min(
            size + 36, 0xffffffff) if size else 0)
        check(data, 2.0, 0, path=tmp_path / "a.wav")


@pytest.mark.case("B04")
def test_odd_chunks_of_wav(tmp_path):
    """A chunk of odd size, of zeros, of Latin-1 notes, a short PEAK, or 24
    bits of 32 stop a wav from being read.
    """
    pcm, floats = (
        WAV * 32767).astype("<i2").tobytes(), np.stack([WAV, WAV], 1).astype("<f4").tobytes()
    pcm24 = ((WAV * 8388607).astype("<i4") << 8).view(np.uint8).reshape(-1, 4)
    odd = pcm24[:-1, 1:].tobytes()
    guid = struct.pack("<HHIH", 22, 24, 0, 1) + bytes.fromhex("000000001000800000aa00389b71")
    notes = chunk(b"LIST", b"INFOICMT\4\0\0\0caf\xe9")
    peak = chunk(b"PEAK", struct.pack("<IIfI", 1, 0, 0.5, 0))  # of one channel of two
    assert len(odd) % 2
    for data in (
        riff(fmt(bits=24), chunk(b"data", odd)),
        riff(fmt(bits=24), chunk(b"data", odd), notes),
        riff(fmt(), chunk(b"LIST", bytes(4096)), chunk(b"data", pcm)),
        riff(notes, fmt(), chunk(b"data", pcm)),
        riff(fmt(3, 2, 32), peak, chunk(b"data", floats)),
        riff(fmt(), notes, chunk(b"data", pcm, 0)),
        riff(fmt(0xFFFE, bits=32, extra=guid), chunk(b"data", pcm24.tobytes())),
    ):
        assert np.abs(check(data, 2.0, 0.001, path=tmp_path / "a.wav")
                      [:31999] - WAV[:31999]).max() < 1e-4
    with pytest.raises(ValueError, match="samples stand before their format"):
        read_audio(riff(chunk(b"data", pcm), fmt()))


@pytest.mark.case("B05", "B06")
def test_mp3_without_a_header_and_with_tags(tmp_path):
    """An mp3 is cut where a guess from its first frame ends, or a cover or tags count as sound."""
    loud, soft, silence = make_wav(3.0), make_wav(5.0), np.zeros(3 * RATE, np.float32)
    tags = b"APETAGEX" + bytes(20000) + b"TAG" + b" " * 125
    mp3 = file_bytes(soft, kind="MP3")
    vbr = {"kind": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.2}
    cbr = file_bytes(soft, kind="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
    joined = [np.concatenate(pair) for pair in ((silence, loud), (loud, silence))]
    in_wav = riff(
        chunk(
            b"fmt ", struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 144, 1, 1393)
        ),
        chunk(b"fact", struct.pack("<I", len(soft))),
        chunk(b"data", without_xing(mp3)),
    )
    cases = []
    for bare in (mp3, cbr, without_xing(mp3), without_xing(cbr)):
        cases += [(soft, data)
                   for data in (bare, cover(100_000) + bare, bare + tags, bare + tags[-128:])]
    for wav in joined:
        whole = file_bytes(wav, **vbr)
        cases += [(wav, whole), (wav, without_xing(whole))]
    for wav, data in [*cases, (soft, in_wav)]:
        check(data, len(wav) / RATE, 0.12, np.sqrt(np.square(wav).mean()), tmp_path / "a.mp3")
    eight = file_bytes(make_wav(3.0)[::2], 8000, "MP3")
    assert len(read_audio(eight)) == 3 * RATE
    with pytest.raises(ValueError, match="ends early or is corrupt: 3.* of 5.* s can be read"):
        read_audio(mp3[:-6000])  # its header knows the number of frames
    assert len(read_audio(bytes(3000) + mp3)) / RATE == pytest.approx(5, abs=0.15)


@pytest.mark.case("B07")
def test_joined_files(tmp_path):
    """`cat a.ogg b.ogg` is read as a.ogg alone, without a word."""
    two, three = make_wav(2.0), make_wav(3.0, seed=1)
    for options in ({"kind": "OGG", "subtype": "VORBIS"}, {
                    "kind": "OGG", "subtype": "OPUS"}, {"kind": "MP3"}):
        check(
    file_bytes(
        two,
        **options) +
        file_bytes(
            three,
            **options),
            5.0,
            0.2,
            path=tmp_path /
             "a")
    check(
    file_bytes(
        two,
        kind="MP3") +
        file_bytes(
            three,
            8000,
            kind="MP3"),
            8.0,
             0.3)  # the second at another rate
    for kind in ("WAV", "FLAC"):
        with pytest.raises(ValueError, match="joined"):
            read_audio(file_bytes(two, kind=kind) + file_bytes(three, kind=kind))


CUT = [file_bytes(make_wav(2.0, seed=4), kind=kind)
                  for kind in ("WAV", "FLAC", "MP3", "RF64", "AIFF", "AU", "NIST")]
CUT += [by_ffmpeg("ipod", "aac", 44100), by_ffmpeg("adts", "aac", 44100),
                  by_ffmpeg("webm", "libopus", 48000)]
if "libopencore_amrnb" in av.codecs_available:  # PyAV 19 reads amr, and can't write it
    CUT.append(by_ffmpeg("amr", "libopencore_amrnb", 8000, bit_rate=12200))


@pytest.mark.case("B02", "B03", "B05")
@pytest.mark.parametrize("data", CUT, ids=lambda data: data[:12].hex())
def test_a_file_that_ends_early_says_so(data):
    """The first part of a recording is taken for all of it: of an interrupted copy, or of a
    recorder without power.
    """
    with pytest.raises(ValueError, match="ends early|corrupt"):
        read_audio(data[:len(data) * 3 // 5 - 5])


def test_flipped_bits_of_flac_are_no_noise():
    """ffmpeg reads on over damaged frames of a flac of unknown length, as noise."""
    flac = bytearray(file_bytes(WAV, kind="FLAC"))
    whole = read_audio(bytes(flac))
    for flip in (None, 9000, 15000):
        data = flac.copy()
        data[21] &= 0xf0
        data[22:42] = bytes(20)
        if flip:
            data[flip] ^= 8
            with pytest.raises(ValueError, match="corrupt"):
                read_audio(bytes(data))
        else:
            assert np.array_equal(read_audio(bytes(data)), whole)


# --- channels and levels
@pytest.mark.case("B08")
def test_channels_that_cancel():
    """A balanced cable read as stereo is silence; a voice on one of many channels is soft."""
    hum = 0.05 * np.sin(2 * np.pi * 50 * np.arange(len(WAV)) / RATE).astype(np.float32)
    silent = np.zeros_like(WAV)
    for channels, expected in (
            ([WAV, -WAV], WAV), ([WAV, -0.9 * WAV], WAV), ([WAV + 0.2, 0.2 - WAV], WAV + 0.2),
            ([0.6 * WAV, -WAV], -WAV), ([0.4 * WAV, -WAV], -0.3 * WAV),
            ([WAV, silent], WAV / 2), ([WAV, np.roll(WAV, 8)], (WAV + np.roll(WAV, 8)) / 2),
            ([WAV, hum], (WAV + hum) / 2),
            ([silent, silent, WAV, silent, silent, silent], WAV), ([WAV] * 8, WAV)):
        for data in (file_bytes(np.stack(channels, 1)),
                     file_bytes(np.stack(channels, 1), kind="CAF")):
            assert np.abs(np.abs(read_audio(data)) -
     np.abs(expected)).max() < 1e-4  # of either sign
    # in phase, then not: the mean is not far below, and is kept
    swing = np.repeat([1, -1], RATE) * WAV
    assert np.abs(read_audio(file_bytes(np.stack([WAV, swing], 1)))[
                  :RATE] - WAV[:RATE]).max() < 1e-4


@pytest.mark.case("B09")
def test_floats_that_are_integers():
    """A script that forgot to divide is heard 90 dB too loud; or a loud float file is made softer.
    """
    wav = WAV / np.abs(WAV).max() / 2
    for scale in (2**15, 2**23, 2**31):
        for kind in ("WAV", "AIFF"):
            assert np.abs(
    read_audio(
        file_bytes(
            wav *
            scale,
            kind=kind,
            subtype="FLOAT")) -
             wav).max() < 1e-6
    for scale in (0.001, 1, 2.5, 20, 100):
        assert np.abs(
    read_audio(
        file_bytes(
            wav *
            scale,
            subtype="FLOAT")) /
            scale -
             wav).max() < 1e-6
    with pytest.raises(ValueError, match="samples of 1.07e\\+10: scale them to -1..1"):
        read_audio(file_bytes(wav * 5 * 2**32, subtype="FLOAT"))


# --- refusals
BAD = [
    ("empty", b""),
    ("empty", file_bytes([])),
    ("empty", file_bytes([0.5], 48000)),
    ("corrupt", b"no samples" * 99),
    ("corrupt", file_bytes(make_wav(1.9), kind="FLAC")[:20000]),
    ("corrupt", file_bytes(make_wav(1.9), kind="MP3")[:5000]),
    ("goes on", file_bytes(WAV[:9000]) + b"\xab" * 9000),
    ("NaN", file_bytes([0, float("nan")] * 99, subtype="FLOAT")),
    ("NaN or inf", file_bytes([0, float("inf")] * 99, subtype="FLOAT")),
    ("2.10 s long, over the limit of 2 s", file_bytes(make_wav(2.1))),
    ("over the limit of 2 s", file_bytes(make_wav(2.1), kind="FLAC")),
    ("17 channels at 16000 Hz: at most 16", file_bytes(np.zeros((99, 17)))),
    (
        "no sound that can be read",
        by_ffmpeg("webm", "libopus", 48000).replace(b"A_OPUS", b"A_NONE"),
    ),
]


@pytest.mark.parametrize("word, data", BAD)
def test_bad_files(tmp_path, word, data):
    """Each wrong file is a ValueError in one line that names the file and says what is wrong."""
    path = tmp_path / "clip.flac"
    path.write_bytes(data)
    for source, name in ((path, str(path)), (data, "audio")):
        with pytest.raises(ValueError, match=word) as e:
            read_audio(source, max_s=2)
        assert name in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("data", [file_bytes([]), b"fLaC", b"RIFF", b"no audio", b"no sound" * 9])
def test_a_header_without_sound_is_refused(tmp_path, data):
    """A clip of which nothing is there is found out only when it is
    decoded, after an hour of others.
    """
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(ValueError, match="a.flac is (empty|corrupt)"):
        audio_header(tmp_path / "a.flac")


@pytest.mark.case("B13", "B14")
@pytest.mark.parametrize(
    "data",
    [
        b"<!doctype html><title>302 Found</title>" * 40,
        b"version https://git-lfs.github.com/spec/v1\nsize 12\n",
        bytes.fromhex("1a45dfa39f4286810142f7810142f2810442f381084282847765626d")
        + bytes(range(256)) * 20,
        b"\0\0\0\x1cftypM4A \0\0\2\0M4A isomiso2\0\0\0\x08free\0\0\x0f\xa8mdat"
        + bytes(range(250)) * 16,
        b"\xff\xf1\x50\x80\x2b\x9f\xfc" + bytes(range(256)) * 4,
        b"#!AMR\n<" + bytes(31) * 50,
        bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(400),
        np.random.default_rng(0).bytes(50_000),
        bytes(50_000),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"GIF89a" + bytes(100),
        b"%PDF-1.7\n" * 20,
        b"PK\3\4" + bytes(99),
        (
            b"NIST_1A\n   1024\nsample_count -i 32000\nsample_rate -i 16000\n"
            b"channel_count -i 1\nsample_n_bytes -i 2\n"
            b"sample_byte_format -s2 01\nsample_sig_bits -i 16\n"
            b"sample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
        ).ljust(1024)
        + b"ajkg\2"
        + bytes(range(256)) * 8,
    ],
    ids=lambda data: repr(data[:10]),
)
def test_what_is_no_sound_is_not_heard(tmp_path, data):
    """A saved web page, a pointer, a picture or random bytes are heard as
    noise, or the error has no name.
    """
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="clip.wav .*(webm.* can be read|ends early)") as e:
        read_audio(path)
    assert "\n" not in str(e.value)


@pytest.mark.case("B13")
def test_a_list_of_other_files_is_refused(tmp_path):
    """A playlist makes ffmpeg read another file of this machine, or an address."""
    (tmp_path / "secret.wav").write_bytes(file_bytes(WAV))
    for text in (
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "<?xml version='1.0'?><MPD><Period><BaseURL>{}</BaseURL></Period></MPD>",
    ):
        for target in ("secret.wav", str(tmp_path / "secret.wav"), "http://127.0.0.1:9/a.wav"):
            (tmp_path / "list.m3u8").write_text(text.format(target))
            with pytest.raises(ValueError, match="no sound file"):
                read_audio(tmp_path / "list.m3u8")
    with pytest.raises(OSError):
        read_audio(f"concat:{tmp_path}/secret.wav")


@pytest.mark.case("B12")
def test_limits():
    """A recording of exactly the limit is refused, or a refusal says "30.0
    s, over the limit of 30 s".
    """
    sound = np.resize(WAV, 31 * RATE)
    for seconds, number in ((29.99, ""), (30.0, ""), (30.0001, "30.01"),
                            (30.01, "30.01"), (30.04, "30.04")):
        data = file_bytes(sound[:round(seconds * RATE)], kind="FLAC")
        if number:
            with pytest.raises(TooLong, match=f"{number} s long, over the limit of 30 s"):
                read_audio(data, max_s=30)
        else:
            assert len(read_audio(data, max_s=30)) == round(seconds * RATE)
    for data in (file_bytes(sound[:30 * 11025], 11025), file_bytes(sound[:30 * RATE], kind="MP3"),
                 by_ffmpeg("webm", "libopus", 48000, 30.0)):
        assert len(read_audio(data, max_s=30)) / RATE == pytest.approx(30, abs=0.001)
    with pytest.raises(TooLong, match="30.1. s long, over the limit of 30 s"):
        read_audio(by_ffmpeg("webm", "libopus", 48000, 30.1), max_s=30)


def test_a_small_file_of_hours_stops_at_the_limit(monkeypatch):
    """A file of a few kB takes minutes or gigabytes: it is refused before
    it is decoded, or where its header lied.
    """
    hours, header_lies = (
    bytearray(
        file_bytes(
            np.zeros(
                20 * 60 * RATE), kind="FLAC")) for _ in range(2))
    hours[21:26] = bytes([hours[21] & 0xf0, 0, 0, 0, 0])
    header_lies[21:26] = bytes([hours[21] & 0xf0]) + struct.pack(">I", 100)
    with monkeypatch.context() as patch:
        patch.setattr(soundfile.SoundFile, "read", lambda *a, **k: pytest.fail("decoded"))
        patch.setattr("recordings.to_float", lambda frame: pytest.fail("decoded"))
        patch.setattr("recordings.MOST_S", 300)
        for data, seconds in ((bytes(hours), "300."), (file_bytes(make_wav(3)), "3.00"),
                              (file_bytes(make_wav(3), kind="OGG"), "3.0")):
            with pytest.raises(TooLong, match=f"{seconds}.* s long"):
                read_audio(data, max_s=2)
    monkeypatch.setattr("recordings.count_seconds", lambda *a: 1)  # as if the header said so
    with pytest.raises(TooLong, match="longer than its header says"):
        read_audio(bytes(hours), max_s=2)


def test_other_bad_files(tmp_path):
    """Nothing there, a folder, a headerless file: told with the path."""
    (tmp_path / "a.raw").write_bytes(b"\0" * 4000)
    for name, error in (("nowhere.wav", OSError), ("", OSError), ("a.raw", ValueError)):
        for read in (read_audio, audio_header):
            with pytest.raises(error, match=str(tmp_path / name)):
                read(tmp_path / name)


def test_damaged_files_raise_nothing_else():
    """A damaged file ends in another error than a ValueError of one line,
    or in samples that are not finite.
    """
    files = [*CUT, *(file_bytes(WAV, kind=kind) for kind in ("OGG", "CAF", "W64"))]
    files += [file_bytes(WAV, kind="OGG", subtype="OPUS"), by_ffmpeg("asf", "wmav2", 44100)]
    n_refused = 0
    for i in range(300):
        rng, data = random.Random(i), bytearray(files[i % len(files)])
        for _ in range(rng.choice([1, 4, 20])):
            data[rng.randrange(min(len(data), rng.choice([300, 10**6])))] = rng.randrange(256)
        try:
            assert np.isfinite(read_audio(
                bytes(data[:rng.choice([10**6, rng.randrange(len(data))])]), 10.0)).all()
        except ValueError as e:
            n_refused += 1
            assert "\n" not in str(e)
    assert 100 < n_refused < 300


@pytest.mark.case("B02", "B27")
@pytest.mark.parametrize("n", [3000, 6400, 8000, 16000])
def test_short_vorbis(n):
    """Broken: an ogg file of half a second is taken for three days."""
    out = io.BytesIO()
    soundfile.write(out, np.random.default_rng(0).normal(
        0, 0.1, n), 16000, format="OGG", subtype="VORBIS")
    assert abs(len(read_audio(out.getvalue(), 30)) - n) <= 512


@pytest.mark.case("B11")
def test_faulty_recorders(tmp_path):
    """Broken: a voice 60 dB too quiet loses its form, or an offset, a click
    or clipping is refused or changed.
    """
    x = make_wav(2.0)

    def read(wav, subtype="FLOAT"):
        soundfile.write(tmp_path / "a.wav", wav, RATE, subtype=subtype)
        return read_audio(str(tmp_path / "a.wav"))
    quiet = read(0.001 * x, "PCM_24")
    assert np.corrcoef(quiet, x)[0, 1] > 0.999 and np.abs(quiet).max() < 0.002 * np.abs(x).max()
    assert np.corrcoef(read(0.001 * x, "PCM_16"), x)[0, 1] > 0.98  # in steps of 16 bits
    assert np.abs(read(0.1 * x + 0.8) - 0.1 * x - 0.8).max() < 1e-6
    click = 0.001 * x
    click[RATE] = 1
    assert len(read(click)) == len(x) and np.abs(read(np.clip(20 * x, -1, 1))).max() <= 1
