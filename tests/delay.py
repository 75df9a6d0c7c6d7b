"""How long after its sound a live transcript comes; a clip is sent as fast as it is spoken.

    python tests/delay.py --audio=clip.wav    # silence follows: Silero ends the utterance
    python tests/delay.py --audio=clip.wav --commit=True    # the client ends it
"""
import json
import threading
import time

import numpy as np
import soxr
from drill import append, listen, start_server

from configurator import configure
from recordings import read_audio

ckpt = "pretrained"
audio = ""
commit = False
configure(globals())
RATE, STEP = 24_000, 2400  # samples a second, of a message


def show(ws, ended):
    """Print what comes, and how many seconds after the end of the sound, until it is whole."""
    for message in ws:
        event = json.loads(message)
        text = event.get("delta", event.get("transcript", ""))
        after = f"{time.time() - ended[0]:+.2f} s" if ended else ""
        print(f"{after:>8}  {event['type']:<55} {text}", flush=True)
        if "transcript" in event:
            return


wav = soxr.resample(read_audio(audio), 16_000, RATE)
tail = np.zeros(0 if commit else 2 * RATE)
parts = np.array_split(np.concatenate([wav, tail]), -(-(len(wav) + len(tail)) // STEP))
server, port = start_server(ckpt)
try:
    with listen(port) as ws:
        given = {"turn_detection": None} if commit else {}
        ws.send(json.dumps({"type": "session.update", "session": {"audio": {"input": given}}}))
        ended, began, n = [], time.time(), 0
        reader = threading.Thread(target=show, args=(ws, ended))
        reader.start()
        for part in parts:
            n += len(part)
            time.sleep(max(began + n / RATE - time.time(), 0))
            ws.send(json.dumps(append(part)))
            if n >= len(wav) and not ended:
                ended.append(time.time())
        if commit:
            ws.send(json.dumps({"type": "input_audio_buffer.commit"}))
        reader.join()
finally:
    server.kill()
