"""
Talk to a checkpoint in the terminal: let it hear a recording, ask about it, or let it continue a text.

    python chat.py --ckpt=out/cpu_w2 --audio=clip.wav                        # wav, flac, ogg or mp3, 10 minutes at most
    python chat.py --ckpt=out/cpu_w3 --audio=clip.wav --prompt="who is speaking?"
    python chat.py --ckpt=out/cpu_base --prompt="the train" --temperature=0.8
"""
import os

from configurator import configure, fail

# config: every value here can be set from a config file or as --name=value
ckpt = "out/cpu_w2"  # the run's folder
step = -1            # which checkpoint of it; -1: the last
audio = ""           # a recording to transcribe, or to ask about; '': only `prompt` is read
prompt = ""          # a question, for a run of train_sft.py; for another, text to continue
max_tokens = 64      # of an answer or a continuation; a transcript ends by itself
temperature = 0.8    # of an answer or a continuation, 0 is greedy
beams = 5            # of a transcript: hypotheses kept; 1: greedy
top_k = 50           # of a continuation: only the k likeliest tokens are drawn; 0: all
seed = 0             # of a continuation
device = "auto"      # auto, cuda, mps, cpu
config = configure(globals())  # prints each change
# -----------------------------------------------------------------------------


def stream(tok, tokens, strip=False):
    """Print token ids (an iterable of int) as text as they come; return the text. A half UTF-8 character waits.

    strip: without the space before it.
    """
    ids, shown, text = [], "", ""
    for token in tokens:
        ids.append(token)
        text = tok.decode(ids).removeprefix(" " * strip)
        if not text.endswith("\ufffd"):
            print(text[len(shown):], end="", flush=True)
            shown = text
    print(text[len(shown):], end="", flush=True)
    return text


def listen(model, meta, tok):
    """Print what the model hears in the setting `audio`, a long one cut at pauses to the length of training's."""
    from audio import encode, load_ears, read_audio, split_at_pauses
    from decode import transcribe
    wav = read_audio(audio)  # float32 (n,) at 16 kHz
    encoder, projector = load_ears(ckpt, meta, model.cos.device)
    for start, end in split_at_pauses(wav, meta["audio"].get("piece_s", 15.0)):
        features = encode(encoder, [wav[start:end]], tuple(meta["audio"]["taps"]))
        heard = transcribe(model, projector, tok, features, meta["audio"]["audio_at"], beams)[0]
        print(heard, end=" " if heard and end < len(wav) else "", flush=True)
    print()


def answer(model, meta, tok):
    """Print what the model answers to `prompt` about the setting `audio`, if any, as it comes."""
    import torch
    from audio import encode, load_ears, read_audio
    from decode import generate
    from tokenizer import chat_prompt, plain_text
    ears, heard = meta["audio"], None
    if audio:
        encoder, projector = load_ears(ckpt, meta, model.cos.device)
        features = torch.from_numpy(encode(encoder, [read_audio(audio)], tuple(ears["taps"]))[0]).to(model.cos.device)
        with torch.inference_mode():
            heard = [projector(features[None], torch.tensor([len(features)]))[0][0]]
    ids = chat_prompt(tok, [], plain_text(prompt) if ears["plain"] else prompt)
    n, room = len(ids) + max_tokens + (len(heard[0]) if heard else 0), model.cos.size(0)
    if n > room:
        raise ValueError(f"{n} tokens of audio, prompt and max_tokens > the model's {room}: give a shorter recording")
    tokens = generate(model, [ids], heard, ears["audio_at"], max_tokens, temperature, top_k,
                      stop_ids=(tok.special("<|assistant_end|>"), tok.bos_id), seed=seed)
    stream(tok, (row[0] for row in tokens), ears["plain"])
    print()


def continue_text(model, tok):
    """Print `prompt` and what the model says after it."""
    from decode import generate
    ids, room = [tok.bos_id, *tok.encode(prompt)], model.cos.size(0)
    if len(ids) + max_tokens > room:
        raise ValueError(f"{len(ids)} tokens of prompt and max_tokens={max_tokens} > the model's {room}: lower them")
    print(prompt, end="", flush=True)
    tokens = generate(model, [ids], max_tokens=max_tokens, temperature=temperature,
                      top_k=top_k, stop_ids=(tok.bos_id,), seed=seed)
    stream(tok, (row[0] for row in tokens))
    print()


def main():
    if audio and not os.path.isfile(audio):
        raise ValueError(f"audio: {audio}: {'a folder, give one file' if os.path.isdir(audio) else 'no such file'}")
    for name, least in (("max_tokens", 1), ("beams", 1), ("temperature", 0), ("top_k", 0)):
        if config[name] < least:
            raise ValueError(f"{name}={config[name]}: give {least} or more")
    from model import load_checkpoint, pick_device, read_meta
    from tokenizer import load_tokenizer
    ears = read_meta(ckpt, step).get("audio")
    if audio and not ears:
        raise ValueError(f"{ckpt} takes no audio (its meta has no 'audio'): give a run of train_align.py")
    answers = bool(ears) and ears["prompt"] == "chat"
    if audio and prompt and not answers:
        raise ValueError(f"{ckpt} is a 'transcript' model: it only transcribes, so leave out --prompt")
    model, meta = load_checkpoint(ckpt, step, pick_device(device))
    tok = load_tokenizer(ckpt, model.config.vocab_size)
    if prompt and answers:
        answer(model, meta, tok)
    elif audio:
        listen(model, meta, tok)
    else:
        continue_text(model, tok)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        fail(e)
