"""How long after its sound a live transcript comes.

    python tests/delay.py --audio=clip.wav --commit=True
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
commit = False  # else two seconds of silence
configure(globals())


def show(ws, ended):
    """Print what comes, and when after the sound."""
    for message in ws:
        event = json.loads(message)
        after = f"{time.time() - ended[0]:+.2f} s" if ended else ""
        print(after, event["type"], event.get("delta", event.get("transcript")), flush=True)
        if "transcript" in event:
            return


wav = np.pad(soxr.resample(read_audio(audio), 16_000, 24_000), (0, 48_000 * (not commit)))
n_sound = len(wav) - 48_000 * (not commit)
server, port = start_server(ckpt)
with listen(port) as ws:
    given = {"turn_detection": None} if commit else {}
    ws.send(json.dumps({"type": "session.update", "session": {"audio": {"input": given}}}))
    ended, began = [], time.time()
    reader = threading.Thread(target=show, args=(ws, ended))
    reader.start()
    for n in range(2400, len(wav) + 2400, 2400):
        time.sleep(max(began + n / 24_000 - time.time(), 0))
        ws.send(json.dumps(append(wav[n - 2400:n])))
        ended += [time.time()] * (n >= n_sound and not ended)
    if commit:
        ws.send(json.dumps({"type": "input_audio_buffer.commit"}))
    reader.join()
server.kill()
