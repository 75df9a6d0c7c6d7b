"""From a sound file of a recorder, browser or archive to float32 samples at 16 kHz."""
import contextlib
import io
import itertools
import math
import os
import struct
from fractions import Fraction

import numpy as np

SAMPLE_RATE = 16000
MAX_CHANNELS = 16
SLACK_S = 0.25   # encoders add up to 0.25 s at the ends; headers count them or don't
MOST_S = 36_000  # the packets of longer recordings are not counted to the end
READABLE = "wav, flac, mp3, ogg, opus, m4a, mp4, aac, webm, mkv, amr, wma, aiff, au, caf"
FFMPEG_FORMATS = ("wav,w64,aiff,au,caf,voc,flac,mp3,ogg,aac,mov,matroska,asf,amr,wv,"
                  "nistsphere")  # as ffmpeg names them


class TooLong(ValueError):
    """A recording over the limit of seconds."""


def audio_header(path):
    """Return a recording's (seconds, Hz, channels) without decoding it; errors as in read_audio.

    seconds: exact for wav and flac, else within SLACK_S of what read_audio decodes.
    """
    with open(path, "rb") as f:
        (seconds, rate, n_channels), _ = open_sound(f, os.fspath(path))
    return float(seconds), rate, n_channels


def read_audio(path_or_bytes, max_s=600.0):
    """Decode a sound file, a path or its bytes, of at most max_s -> float32 mono (n,) at 16 kHz.

    Channels: their mean; where they cancel (the mean is 12 dB below the loudest channel), the
    loudest. Levels: float samples over 64 are taken for integers that nobody divided; their peak
    tells 16, 24 or 32 bits. Ends: joined ogg or mp3 files are read to the end of the last. A file
    shorter than it declares is refused. ogg, webm and mp3 files of a stopped recorder declare no
    length: what is there is read. Raises OSError, or a ValueError (TooLong) that names the file
    and the fault.
    """
    is_path = not isinstance(path_or_bytes, (bytes, bytearray))
    name = os.fspath(path_or_bytes) if is_path else "audio"
    with open(name, "rb") if is_path else io.BytesIO(path_or_bytes) as f:
        (seconds, _, _), blocks = open_sound(f, name)
        if seconds > max_s + SLACK_S:
            raise too_long(name, seconds, max_s)
        runs, seconds, peak, channel = mix(blocks, name, max_s)
        if channel is not None:  # decoded again: all channels at once take too much memory
            f.seek(0)
            runs, *_ = mix(open_sound(f, name)[1], name, max_s, channel)
    if seconds > max_s:
        raise too_long(name, seconds, max_s)
    if seconds * SAMPLE_RATE < 1:
        raise ValueError(f"{name} is empty (no samples)")
    wav = np.concatenate([resample(np.concatenate(parts), rate) for rate, parts in runs])
    if not np.isfinite(wav).all():
        raise ValueError(f"{name} holds NaN or infinite samples")
    if peak > 2**31:
        raise ValueError(f"{name} holds samples of {peak:.3g}: scale them to -1..1")
    if peak > 64:
        wav = wav / np.float32(next(full for full in (2**15, 2**23, 2**31) if peak <= full))
    return wav


def mix(blocks, name, max_s, channel=None):
    """Join blocks of (rate, float32 (n, channels)), each as its channels' mean or one `channel`.

    Returns [(rate, [float32 (n,), ...]), ...], one for each change of the rate; seconds; peak of
    all channels; the channel to take in place of the mean, or None.
    """
    runs, sums, n, seconds, peak = [], np.zeros((2, 1 + MAX_CHANNELS)), 0, 0, 0.0
    for rate, x in blocks:
        n_channels = x.shape[1]
        if not 1000 <= rate <= 192_000 or n_channels > MAX_CHANNELS:
            raise ValueError(f"{name} has {n_channels} channels at {rate} Hz: at most "
                             f"{MAX_CHANNELS} at 1 to 192 kHz")
        mono = x.mean(1) if channel is None or channel >= n_channels else x[:, channel]
        if not runs or runs[-1][0] != rate:
            runs.append((rate, []))
        runs[-1][1].append(mono)
        n += len(x)
        seconds += Fraction(len(x), rate)
        peak = max(peak, np.abs(x).max())
        if seconds > max_s + 1:
            raise TooLong(f"{name} is longer than its header says: over the limit of {max_s:g} s")
        if n_channels > 1:
            both = np.concatenate([mono[:, None], x], 1, dtype=np.float64)
            sums[:, :1 + n_channels] += both.sum(0), np.square(both).sum(0)
    mean, square = sums / max(n, 1)  # (17,) of the mean of the channels, and of each
    power = square - np.square(mean)  # an offset is no sound
    loudest = int(power[1:].argmax())
    return runs, seconds, peak, loudest if power[0] < power[1 + loudest] / 16 else None


def resample(wav, rate):
    """float32 (n,) at `rate` Hz -> float32 (n,) at 16 kHz."""
    if rate == SAMPLE_RATE:
        return wav
    import soxr
    return soxr.resample(wav, rate, SAMPLE_RATE)


def too_long(name, seconds, max_s):
    """Return the error of a recording over its limit."""
    shown = math.ceil(seconds * 100) / 100  # not down, to "30.00 s, over the limit of 30 s"
    return TooLong(f"{name} is {shown:.2f} s long, over the limit of {max_s:g} s")


def cut_short(name, seconds, declared):
    """Return the error of a recording of which less is there than it declares."""
    return ValueError(f"{name} ends early or is corrupt: {float(seconds):.2f} of "
                      f"{float(declared):.2f} s can be read")


def open_sound(f, name):
    """Open a binary file -> ((seconds, Hz, channels), generator of (Hz, float32 (n, channels))).

    soundfile reads wav and flac: it knows all their sample formats and checks their checksums.
    ffmpeg reads the rest, and what soundfile can't open.
    """
    kind = f.read(4)
    if not kind:
        raise ValueError(f"{name} is empty (0 bytes)")
    if kind == b"RIFF":
        check_riff(f, name)
    opened = open_with_soundfile(f, name) if kind in (b"RIFF", b"RIFX", b"fLaC") else None
    return opened or open_with_ffmpeg(f, name)


# --- wav and flac
def riff_chunks(f):
    """Yield (kind, first byte, bytes that it declares) of a wav file's first 1000 chunks."""
    at = 12
    for _ in range(1000):
        f.seek(at)
        head = f.read(8)
        if len(head) < 8:
            return
        kind, n_bytes = struct.unpack("<4sI", head)
        yield kind, at + 8, n_bytes
        at += 8 + n_bytes + n_bytes % 2


def check_riff(f, name):
    """ValueError where a wav file's samples are cut short, or followed by samples without a header.

    A size of 0 or of 2 GB and more means: to the file's end.
    """
    end, n_data, last = f.seek(0, os.SEEK_END), 0, 0
    for kind, start, n_bytes in riff_chunks(f):
        if n_data and (kind == b"RIFF" or not kind.isascii() or start + n_bytes > end):
            break
        if kind == b"data":
            n_data = n_bytes
            if not 0 < n_bytes < 2_000_000_000:
                return
            if end - start < 0.99 * n_bytes:  # some writers count their own header of 44 bytes
                raise ValueError(f"{name} ends early, at {end - start:,} of {n_bytes:,} bytes")
        last = start + n_bytes
    if n_data and (kind == b"RIFF" or end - last > n_data / 10):
        raise ValueError(f"{name} goes on for {end - last:,} bytes after the {n_data:,} that it "
                         "declares (joined files, a power cut?): save it anew with an editor")


def open_with_soundfile(f, name):
    """As open_sound; None where soundfile can't open the file or does not know its length."""
    import soundfile
    f.seek(0)
    try:
        sound = soundfile.SoundFile(f)
    except soundfile.LibsndfileError:
        return None
    if sound.subtype == "MPEG_LAYER_III" or not 0 < sound.frames < 2**40:
        return None
    rate, declared = sound.samplerate, Fraction(sound.frames, sound.samplerate)

    def blocks():
        n = 0
        try:
            while len(x := sound.read(1 << 16, dtype="float32", always_2d=True)):
                n += len(x)
                yield rate, x
        except soundfile.LibsndfileError as e:
            raise ValueError(f"{name} is corrupt after {n / rate:.2f} s: {e.error_string.strip()}"
                             ) from None
        if n < sound.frames:
            raise cut_short(name, n / rate, declared)
        f.seek(4)
        if sound.format == "FLAC" and b"fLaC\0\0\0\x22" in f.read():
            raise ValueError(f"{name} holds several flac files, joined: give them one by one")
    return (declared, rate, sound.channels), blocks()


# --- everything else
@contextlib.contextmanager
def ffmpeg(f, name):
    """Open a binary file with ffmpeg -> (container, its first audio stream); ValueError: none.

    Only FFMPEG_FORMATS, from f alone: no playlist that names other files or addresses.
    """
    import av
    f.seek(0)
    options = {"format_whitelist": FFMPEG_FORMATS}
    decodes_tags = int(av.__version__.split(".")[0]) < 19
    tags = {"metadata_errors": "ignore"} if decodes_tags else {}
    try:
        with av.open(f, options=options, **tags) as container:
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


def open_with_ffmpeg(f, name):
    """As open_sound."""
    with ffmpeg(f, name) as (container, stream):
        seconds, codec = count_seconds(f, name, container, stream), stream.codec_context
        header = seconds, codec.sample_rate, codec.layout.nb_channels

    def place(numbered_frame):
        i, frame = numbered_frame
        return frame.sample_rate, frame.layout.nb_channels, i // 64  # 64 frames: about a second

    def blocks():
        decoded = 0
        with ffmpeg(f, name) as (container, stream):
            frames = enumerate(container.decode(stream))
            for (rate, _, _), group in itertools.groupby(frames, place):
                x = np.concatenate([to_float(frame) for _, frame in group])
                decoded += Fraction(len(x), rate)
                yield rate, x
        if decoded < seconds - SLACK_S:
            raise cut_short(name, decoded, seconds)
    return header, blocks()


def to_float(frame):
    """PyAV's AudioFrame of any sample format -> float32 (n, channels), full scale 1."""
    x = frame.to_ndarray()
    x = x.T if frame.format.is_planar else x.reshape(-1, frame.layout.nb_channels)
    if x.dtype == np.uint8:
        return (x.astype(np.float32) - 128) / 128
    return x.astype(np.float32) / (2.0 ** (8 * x.itemsize - 1) if x.dtype.kind == "i" else 1)


def count_seconds(f, name, container, stream):
    """Return the seconds of all packets, or those of the header if they are about the same.

    A header may know the first of joined files only, or guess. ValueError: it declares more.
    """
    counted, reached, n_packets, first = Fraction(0), 0, 0, 0
    for packet in container.demux(stream):
        if packet.size:
            first = first if n_packets else packet.pos or 0
            n_packets += 1
            duration = packet.duration or 0
            if duration >= 2**31:  # a negative number in 32 bits: the last packet of a short ogg
                duration -= 2**32
            counted += duration * stream.time_base
            reached = ((packet.pts or 0) + duration) * stream.time_base
        if counted > MOST_S:  # a small file can hold days of silence
            return counted
    if not n_packets:
        raise ValueError(f"{name} is empty (no samples)")
    kind, codec = container.format.name, stream.codec_context.name
    declared = (stream.duration or 0) * stream.time_base
    is_guess = kind in ("mp3", "aac", "amr", "wav") and not codec.startswith("pcm_")
    n_frames = xing_frames(f, first) if kind == "mp3" else 0
    if n_packets < n_frames - 2:
        raise cut_short(name, counted, counted * n_frames / n_packets)
    if kind == "flac" and reached > counted:  # its frames are numbered; damaged ones were skipped
        raise cut_short(name, counted, reached)
    if not is_guess and declared > counted + SLACK_S:
        raise cut_short(name, counted, declared)
    if kind == "ogg":
        check_last_page(f, name)
    if kind == "matroska,webm":
        check_segment(f, name)
    return declared if abs(declared - counted) <= SLACK_S else counted


def xing_frames(f, first):
    """Return how many frames an mp3's Xing or Info header before byte `first` declares, or 0."""
    f.seek(max(first - 2000, 0))
    head = f.read(min(first, 2000))
    at = max(head.rfind(b"Xing"), head.rfind(b"Info"))
    has_number = at >= 0 and len(head) >= at + 12 and head[at + 7] & 1
    return int.from_bytes(head[at + 8:at + 12]) if has_number else 0


def check_last_page(f, name):
    """ValueError where an ogg file ends within a page."""
    f.seek(max(f.seek(0, os.SEEK_END) - 65307, 0))  # the longest page
    tail = f.read()
    page = tail[tail.rfind(b"OggS"):]
    n_segments = sum(page[26:27])
    if len(page) < 27 + n_segments + sum(page[27:27 + n_segments]):
        raise ValueError(f"{name} ends early, within a page: copy it again")


def check_segment(f, name):
    """ValueError where a webm or mkv file is shorter than it declares; live ones declare none."""
    end = f.seek(0, os.SEEK_END)
    f.seek(4)
    f.seek(ebml_size(f), os.SEEK_CUR)
    is_segment = f.read(4) == b"\x18\x53\x80\x67"
    missing = ebml_size(f) + f.tell() - end
    if is_segment and missing > 0:
        raise ValueError(f"{name} ends early, {missing:,} bytes are missing: copy it again")


def ebml_size(f):
    """Read a size of 1 to 8 bytes, one more than the first has leading zeros; all ones: 0."""
    first = int.from_bytes(f.read(1) or b"\xff")
    n_more = 8 - first.bit_length()
    ones = (1 << 7 * (n_more + 1)) - 1
    size = (first << 8 * n_more | int.from_bytes(f.read(n_more))) & ones
    return 0 if size == ones else size
