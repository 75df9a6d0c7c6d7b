"""
    python prepare_documents.py --documents=data/climbmix --vocab_size=32768 --tokenizer_mb=500 \
        --out_dir=data/web
    torchrun --standalone --nproc_per_node=8 train_base.py config/base_d12.py

UNTESTED, no GPU was at hand. A d12 GPT (286M parameters with its embeddings) on 1.3 billion tokens
of nanochat's web text, with its schedule: 2**19 tokens a step, 12 tokens per weight of the matrices
and lm_head. For another depth multiply the steps by the weights, and a step's tokens by the weights
to the power of 0.383. GB of memory by batch_size, computed by GPT.training_gb(); above 90% of the
GPU's, blocks are recomputed in the backward pass:

           1     4     8    16   16, recomputed
    d12  6.8   9.1  12.3  18.6    8.1
    d20 17.3  24.0  32.8  50.4   19.8
    d26 30.5  41.7  56.6  86.3   34.0

24 GB are enough for d20, 32 GB for d26 with batch_size 1.
"""
out_dir = "out/base_d12"
device = "cuda"
documents = "data/web"
practice = 0.0
depth = 12
head_dim = 128
text_len = 2048
batch_size = 16
grad_accum = 16         # 2**19 tokens a step
max_steps = 12 * (12 * 12 * 768**2 + 32768 * 768) // 2**19
lr_decay_steps = max_steps
warmup_steps = 40
grad_clip = 0.0
save_every = 1000
