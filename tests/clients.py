"""Client programs against serve.py, each through its own code; prints a markdown table.

    python tests/clients.py --folder=out/clients  # keeps what it installs
    python tests/clients.py --only=openai,llm --audio=clip.wav --words="some words of it"

A line `what | code` is a call: half the words must be in its text or stream.
`what -> x`: x must be in its text or error. Exit code 1: a call went otherwise.
"""
import atexit
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from drill import sound, start_server, user

from configurator import configure
from recordings import read_audio
from voices import speak, version

ckpt = "pretrained"
folder = ""  # for installed clients; '': a temporary one
only = ""    # clients, with commas; '': all
audio = ""   # a clip; '': Piper speaks the words
words = "i believe in the training of people to their highest capacity"
configure(globals())
KEY = "a-key"

PYTHON = '''
import json, sys
from importlib.metadata import version
SOUND, QUESTION = MESSAGES[0]["content"]
SPEECH = open(PCM, "rb").read()  # of 16 bits, 24 kHz

def call(what, ask):
    try:
        said = ask()
        if not isinstance(said, str):  # a stream's pieces
            first, second, *rest = filter(None, said)
            said = "".join([first, second, *rest])
    except Exception as e:
        said = f"{type(e).__name__}: {e}"
    print("\\n#:" + json.dumps([what, said]), flush=True)

call("version", lambda: version(PACKAGE))
'''
NODE = '''
import fs from "fs";
const [, QUESTION] = MESSAGES[0].content;
async function call(what, ask) {
  console.log("\\n#:" + JSON.stringify([what, `${await ask().catch(String)}`]));
}
const about = `node_modules/${PACKAGE}/package.json`;
await call("version", async () => JSON.parse(fs.readFileSync(about)).version);
'''

# packages: a program
PROGRAMS = {
    "openai[realtime]": """
from base64 import b64encode
from openai import OpenAI
client = OpenAI()
def chat(**more):
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, **more)
def respond(**more):
    return client.responses.create(model=MODEL, input=MESSAGES, **more)
def transcribe(kind, **more):
    return client.audio.transcriptions.create(
        model=MODEL, file=open(AUDIO, "rb"), response_format=kind, **more)
def segments():
    answer = transcribe("verbose_json")
    times = sum(([part.start, part.end] for part in answer.segments), [])
    assert times == sorted(times) and times[-1] <= answer.duration + 0.1, times
    return answer.text
def deltas(events):
    *events, end = events
    assert end.type.endswith(("completed", "done")), end
    return "".join(event.delta for event in events if event.type.endswith("text.delta"))
def live():
    with client.realtime.connect(extra_query={"intent": "transcription"}) as session:
        for at in range(0, len(SPEECH), 9600):
            session.input_audio_buffer.append(audio=b64encode(SPEECH[at:at + 9600]).decode())
        return next(event.transcript for event in session if event.type.endswith("completed"))
chat, input_audio | chat().choices[0].message.content
chat, streamed | (chunk.choices[0].delta.content for chunk in chat(stream=True))
transcribe, json | transcribe("json").text
transcribe, verbose_json | segments()
transcribe, streamed | deltas(transcribe("json", stream=True))
responses | respond().output_text
responses, streamed | deltas(respond(stream=True))
realtime | live()
""",
    "livekit-plugins-openai": """
import asyncio
from livekit import rtc
from livekit.agents import stt, utils
from livekit.plugins import openai
async def live():
    async with utils.http_context.open(), openai.STT(use_realtime=True).stream() as stream:
        for at in range(0, len(SPEECH), 4800):
            part = SPEECH[at:at + 4800]
            stream.push_frame(rtc.AudioFrame(part, 24_000, 1, len(part) // 2))
        async for event in stream:
            if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                return event.alternatives[0].text
realtime | asyncio.run(asyncio.wait_for(live(), 60))
""",
    "pipecat-ai[openai]": """
import asyncio, os
from pipecat.frames.frames import InputAudioRawFrame, TranscriptionFrame
from pipecat.services.openai.stt import OpenAIRealtimeSTTService
from pipecat.tests.utils import SleepFrame, run_test
async def live():
    service = OpenAIRealtimeSTTService(
        api_key=os.environ["OPENAI_API_KEY"], turn_detection=None,
        base_url=URL.replace("http", "ws") + "/realtime")
    frames = [InputAudioRawFrame(SPEECH[at:at + 4800], 24_000, 1)
              for at in range(0, len(SPEECH), 4800)]
    found, _ = await run_test(service, frames_to_send=[*frames, SleepFrame(9)])
    return [frame.text for frame in found if isinstance(frame, TranscriptionFrame)][-1]
realtime | asyncio.run(live())
""",
    "litellm": """
import litellm
completion, input_audio | litellm.completion("openai/x", MESSAGES).choices[0].message.content
transcribe | litellm.transcription("openai/x", open(AUDIO, "rb")).text
""",
    "langchain-openai": """
from langchain_openai import ChatOpenAI
def ask(kind):
    sound = {"type": kind, "base64": SOUND["input_audio"]["data"], "mime_type": "audio/wav"}
    return [{"role": "user", "content": [{**sound, "filename": "a.wav"}, QUESTION]}]
audio | ChatOpenAI(model=MODEL).invoke(ask("audio")).text
stream | (chunk.text for chunk in ChatOpenAI(model=MODEL).stream(ask("audio")))
Responses, file | ChatOpenAI(model=MODEL, use_responses_api=True).invoke(ask("file")).text
""",
    "pydantic-ai-slim[openai]": """
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
def ask(kind, *more):
    agent = Agent(kind(MODEL), system_prompt="listen", instructions="be short")
    return agent.run_sync([QUESTION["text"], *more]).output
sound = BinaryContent(open(AUDIO, "rb").read(), media_type="audio/wav")
OpenAIChatModel, BinaryContent | ask(OpenAIChatModel, sound)
OpenAIResponsesModel -> True | str(ask(OpenAIResponsesModel) > "")
""",
    "llm": """
import llm
about = {"model_id": "ours", "model_name": MODEL, "api_base": URL, "audio": True,
         "api_key_name": "openai"}
open("extra-openai-models.yaml", "w").write(json.dumps([about]))
model, sounds = llm.get_model("ours"), [llm.Attachment(path=AUDIO)]
attachment | model.prompt(QUESTION["text"], attachments=sounds).text()
""",
    "npm openai": """
import OpenAI from "openai";
const client = new OpenAI(), file = fs.createReadStream(AUDIO);
const chat = {model: MODEL, messages: MESSAGES};
chat, input_audio | (await client.chat.completions.create(chat)).choices[0].message.content
transcribe | (await client.audio.transcriptions.create({model: MODEL, file})).text
""",
    "npm ai @ai-sdk/openai": """
import * as ai from "ai";
import { openai } from "@ai-sdk/openai";
const transcribe = ai.transcribe ?? ai.experimental_transcribe;
const audio = fs.readFileSync(AUDIO), file = {type: "file", mediaType: "audio/wav", data: audio};
const messages = [{role: "user", content: [QUESTION, file]}];
openai(model) -> true | (await ai.generateText({model: openai(MODEL), prompt: "hi"})).text > ""
openai.chat(model), file | (await ai.generateText({model: openai.chat(MODEL), messages})).text
transcribe | (await transcribe({model: openai.transcription("whisper-1"), audio})).text
""",
}


def run_client(home, client, job):
    """Install a client and run its program -> {what: what came}."""
    packages = client.removeprefix("npm ").split()
    begin, head, prelude, call = [home / "bin/python"], "", PYTHON, r'call("\1", lambda: \2)'
    pip = [sys.executable, "-m", "pip", "--python", *begin, "install", *packages]
    commands = [[sys.executable, "-m", "venv", "--without-pip", home], pip]
    if client.startswith("npm "):
        begin, head, prelude = ["node"], "const ", NODE
        call = r'await call("\1", async () => \2);'
        commands = [["npm", "install", "--prefix", home, *packages]]
    for command in commands * (not (home / "installed").exists()):
        subprocess.run(command, check=True, stdout=sys.stderr)
    (home / "installed").touch()
    job = job | {"PACKAGE": packages[0].partition("[")[0]}
    head += f"[{', '.join(job)}] = {json.dumps([*job.values()])}"
    calls = re.sub(r"(?m)^(.+) \| (.+)$", call, PROGRAMS[client])
    (home / "run.mjs").write_text(head + prelude + calls)
    env = {"LLM_USER_PATH": str(home), "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": job["URL"]}
    done = subprocess.run([*begin, "run.mjs"], cwd=home, env=os.environ | env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = done.stdout.splitlines()
    found = dict(json.loads(line[2:]) for line in lines if line.startswith("#:"))
    return found | ({"end": str(lines[-1:])} if done.returncode else {})


def main():
    at = Path(folder or tempfile.mkdtemp()).resolve()
    os.makedirs(at, exist_ok=True)
    clip = Path(audio or at / "clip.wav").resolve()
    if not audio:
        version("piper")  # says what is missing
        soundfile.write(clip, *speak("piper", words, {"length_scale": 1.1}))
    server, port = start_server(ckpt, f"--api_key={KEY}")
    atexit.register(server.kill)
    question = user(sound(clip.read_bytes()), "what does the speaker say")
    job = {"URL": f"http://127.0.0.1:{port}/v1", "MODEL": Path(ckpt).resolve().name,
           "AUDIO": str(clip), "PCM": str(at / "speech.pcm"), "MESSAGES": [question]}
    wav = np.pad(soxr.resample(read_audio(clip), 16_000, 24_000), 24_000)
    (32767 * wav).astype("<i2").tofile(job["PCM"])
    expected, n_wrong = words.lower().split(), 0
    print("| client | version | call | result |\n|---|---|---|---|")
    for client in only.split(",") if only else PROGRAMS:
        try:
            found = run_client(at / re.sub(r"\W+", "-", client), client, job)
        except (OSError, subprocess.SubprocessError) as e:
            print(f"| {client} | | install | {e} |")
            n_wrong += not isinstance(e, FileNotFoundError)  # no npm here
            continue
        installed = found.pop("version", "")
        for what, came in found.items():
            known = [word for word in expected if word in came.lower().split()]
            wanted = what.partition(" -> ")[2]
            is_ok = wanted in came if wanted else 2 * len(known) >= len(expected)
            n_wrong += not is_ok
            result = "ok" if is_ok else " ".join(came.split())[:200].replace("|", "/")
            print(f"| {client} | {installed} | {what} | {result} |", flush=True)
    sys.exit(n_wrong > 0)


main()
