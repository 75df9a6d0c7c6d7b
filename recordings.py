"""From a sound file of a recorder, browser or archive to float32 samples at 16 kHz."""
import contextlib
import io
import math
import os
import re
import struct
from fractions import Fraction

import numpy as np

SAMPLE_RATE = 16000
MAX_CHANNELS = 16
SLACK_S = 0.25   # encoders add up to 0.25 s at the ends; headers count them or don't
MOST_S = 36_000  # the packets of longer recordings are not counted to the end
XING = re.compile(rb"(?:Xing|Info)\0{3}[\x01\x03\x05\x07\x09\x0b\x0d\x0f](.{4})", re.DOTALL)
READABLE = "wav, flac, mp3, ogg, opus, m4a, mp4, aac, webm, mkv, amr, wma, aiff, au, caf"
FFMPEG_FORMATS = ("wav,w64,aiff,au,caf,voc,flac,mp3,ogg,aac,mov,matroska,asf,amr,wv,"
                  "nistsphere")  # as ffmpeg names them


class TooLong(ValueError):
    """A recording over the limit of seconds."""


def audio_header(path):
    """Return a recording's seconds without decoding it; errors as in read_audio.

    They are exact for wav and flac, else within SLACK_S.
    """
    with open(path, "rb") as f:
        return float(read_header(f, os.fspath(path)))


def read_audio(path_or_bytes, max_s=600.0):
    """Decode a sound file, a path or its bytes, of at most max_s -> float32 mono (n,) at 16 kHz.

    Channels: their mean; where they cancel (the mean is 12 dB below the loudest channel), the
    loudest. Joined files are read to the end of the last, but for wav. A file shorter than it
    declares is refused, as are float samples over 64: integers that nobody divided. Raises OSError,
    or a ValueError (TooLong) that names file and fault.
    """
    import soxr
    is_path = not isinstance(path_or_bytes, bytes)
    name = os.fspath(path_or_bytes) if is_path else "audio"
    with open(name, "rb") if is_path else io.BytesIO(path_or_bytes) as f:
        declared = read_header(f, name)
        require_length(name, declared, max_s + SLACK_S, max_s)
        runs, seconds, peak, channel = mix(decode(f, name), name, max_s)
        require_whole(name, seconds, declared)
        if channel is not None:  # decoded again: all channels at once take too much memory
            runs, *_ = mix(decode(f, name), name, max_s, channel)
    require_length(name, seconds, max_s, max_s)
    wav = np.concatenate([soxr.resample(np.concatenate(parts), rate, SAMPLE_RATE)
                          for rate, parts in runs])
    if not np.isfinite(wav).all():
        raise ValueError(f"{name} holds NaN or infinite samples")
    if peak > 64:
        raise ValueError(f"{name} holds samples of {peak:.3g}: scale them to -1..1")
    return wav


def require_length(name, seconds, most, max_s):
    if seconds > most:
        shown = math.ceil(seconds * 100) / 100  # not down, to "30.00 s, over the limit of 30 s"
        raise TooLong(f"{name} is {shown:.2f} s long, over the limit of {max_s:g} s")


def mix(blocks, name, max_s, channel=None):
    """Join blocks of (rate, float32 (n, channels)), each as its channels' mean or one `channel`.

    Returns [(rate, [float32 (n,), ...]), ...], one a change of the rate; seconds; peak; the channel
    to take in place of the mean, or None.
    """
    runs, seconds, peak = [], 0, 0.0
    power = np.zeros(1 + MAX_CHANNELS)  # of the mean of the channels, and of each
    for rate, x in blocks:
        n_channels = x.shape[1]
        if not 1000 <= rate <= 192_000 or n_channels > MAX_CHANNELS:
            raise ValueError(f"{name} has {n_channels} channels at {rate} Hz: at most "
                             f"{MAX_CHANNELS} at 1 to 192 kHz")
        mono = x.mean(1) if channel is None or channel >= n_channels else x[:, channel]
        if not runs or runs[-1][0] != rate:
            runs.append((rate, []))
        runs[-1][1].append(mono)
        seconds += Fraction(len(x), rate)
        peak = max(peak, np.abs(x).max())
        require_length(name, seconds, max_s + 1, max_s)  # longer than its header says
        if n_channels > 1:
            both = np.column_stack([mono, x])
            power[:1 + n_channels] += len(x) * both.var(0, dtype=np.float64)  # offsets don't count
    loudest = int(power[1:].argmax())
    return runs, seconds, peak, loudest if power[0] < power[1 + loudest] / 16 else None


def decode(f, name):
    """Yield (Hz, float32 (n, channels)) of a sound file."""
    if wav := open_wav(f):
        for x in wav.blocks(1 << 16, frames=wav.frames, dtype="float32", always_2d=True):
            yield wav.samplerate, x
        return
    with ffmpeg(f, name) as (container, stream):
        for frame in container.decode(stream):
            yield frame.sample_rate, to_float(frame)


def open_wav(f):
    """Return soundfile's reader of a wav file; None where it can't read it or knows no length.

    ffmpeg reads all else; of wav it takes 24 bits in 32 for 24.
    """
    import soundfile
    f.seek(0)
    if f.read(4) not in (b"RIFF", b"RIFX"):
        return None
    f.seek(0)
    try:
        wav = soundfile.SoundFile(f)
    except soundfile.LibsndfileError:
        return None
    return wav if wav.subtype != "MPEG_LAYER_III" and 0 < wav.frames < 2**40 else None


# ---- ffmpeg

@contextlib.contextmanager
def ffmpeg(f, name):
    """Open a binary file with ffmpeg -> (container, its first audio stream); ValueError: none.

    FFMPEG_FORMATS hold no playlist, which names other files or addresses.
    """
    import av
    f.seek(0)
    is_old = int(av.__version__.split(".")[0]) < 19  # it decodes tags
    tags = {"metadata_errors": "ignore"} if is_old else {}
    try:
        with av.open(f, options={"format_whitelist": FFMPEG_FORMATS}, **tags) as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None or stream.codec_context is None:
                raise ValueError(f"{name} holds no sound that can be read: {READABLE} can")
            if stream.codec_context.name == "flac":  # else damaged samples are heard as noise
                stream.codec_context.options = {"err_detect": "crccheck+explode"}
            yield container, stream
    except av.FFmpegError as e:
        f.seek(0)
        raise ValueError(f"{name} is corrupt or no sound file ({e.strerror}; it begins with "
                         f"{f.read(16)}): {READABLE} can be read") from None


def to_float(frame):
    """PyAV's AudioFrame -> float32 (n, channels), full scale 1."""
    x = frame.to_ndarray()
    x = x.T if frame.format.is_planar else x.reshape(-1, frame.layout.nb_channels)
    if x.dtype == np.uint8:
        return (x.astype(np.float32) - 128) / 128
    return x.astype(np.float32) / (2.0 ** (8 * x.itemsize - 1) if x.dtype.kind == "i" else 1)


# ---- is the file whole?

def read_header(f, name):
    """Return a binary file's seconds (Fraction); ValueError: it declares more than it holds.

    They are those of all packets, or the header's if about the same, which may be a guess.
    """
    f.seek(0)
    magic = f.read(4)
    if not magic:
        raise ValueError(f"{name} is empty (0 bytes)")
    if magic == b"RIFF":
        check_riff(f, name)
    if wav := open_wav(f):
        return Fraction(wav.frames, wav.samplerate)
    with ffmpeg(f, name) as (container, stream):
        kind, base = container.format.name, stream.time_base
        counted, reached, n_packets, first = Fraction(0), 0, 0, 0
        for packet in container.demux(stream):
            if packet.size:
                first = first if n_packets else packet.pos or 0
                n_packets += 1
                duration = packet.duration or 0
                if duration >= 2**31:  # negative in 32 bits: the last packet of a short ogg
                    duration -= 2**32
                counted += duration * base
                reached = ((packet.pts or 0) + duration) * base
            if counted > MOST_S:  # a small file can hold days of silence
                return counted
        declared = (stream.duration or 0) * base or Fraction(container.duration or 0, 10**6)
    is_guess = kind in ("mp3", "aac", "amr") or magic == b"RIFF"
    require_whole(name, counted, 0 if is_guess else declared)
    if kind == "mp3":
        f.seek(0)
        found = XING.findall(f.read(first)[-2000:])
        n_frames = int.from_bytes(found[-1]) if found else 0
        require_whole(name, counted, counted * (n_frames - 2) / n_packets, 0)
    if kind == "flac":  # its frames are numbered; damaged ones were skipped
        require_whole(name, counted, reached, 0)
    if kind == "ogg":
        check_last_page(f, name)
    return declared if abs(declared - counted) <= SLACK_S else counted


def require_whole(name, seconds, declared, slack=SLACK_S):
    """Raise a ValueError where less of a recording is there than it declares, or nothing."""
    if seconds * SAMPLE_RATE < 1:
        raise ValueError(f"{name} is empty (no samples)")
    if seconds < declared - slack:
        raise ValueError(f"{name} ends early or is corrupt: {float(seconds):.2f} of "
                         f"{float(declared):.2f} s can be read")


def check_riff(f, name):
    """ValueError where a wav file's samples are cut short, or followed by others.

    A size of 0 or of 2 GB and more means: to the end.
    """
    end, at, n_data = f.seek(0, os.SEEK_END), 12, 0
    for _ in range(1000):
        f.seek(at)
        kind, n_bytes = struct.unpack("<4sI", f.read(8).ljust(8, b"\0"))
        start = at + 8
        if n_data and (kind == b"RIFF" or not kind.isascii() or start + n_bytes > end):
            break
        if kind == b"data":
            n_data = n_bytes
            if not 0 < n_bytes < 2_000_000_000:
                return
            if end - start < 0.99 * n_bytes:  # some writers count their own header of 44 bytes
                raise ValueError(f"{name} ends early, at {end - start:,} of {n_bytes:,} bytes")
        at = start + n_bytes + n_bytes % 2
    if n_data and (kind == b"RIFF" or end - at > n_data / 10):
        raise ValueError(f"{name} goes on for {end - at:,} bytes after the {n_data:,} that it "
                         "declares (joined files, a power cut?): save it anew with an editor")


def check_last_page(f, name):
    f.seek(max(f.seek(0, os.SEEK_END) - 65307, 0))  # the longest page
    tail = f.read()
    page = tail[tail.rfind(b"OggS"):]
    n_segments = sum(page[26:27])
    if len(page) < 27 + n_segments + sum(page[27:27 + n_segments]):
        raise ValueError(f"{name} ends early, within a page: copy it again")
