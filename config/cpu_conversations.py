"""
    git clone --depth 1 https://github.com/google-research-datasets/dstc8-schema-guided-dialogue data/dstc8
    python prepare_chat.py config/cpu_conversations.py

What a base made on a laptop learns to chat from: dialogues about everyday errands, and the built-in conversations.
"""
out_dir = "data/chat"
mix = "identity=2000,repeat=8000,letters=30000,data/dstc8=4000"
