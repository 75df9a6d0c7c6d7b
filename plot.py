"""A picture of where audio tokens lie among the embeddings of text tokens."""
import torch

from kernels import norm


@torch.no_grad()
def plot_pca(out_dir, model, projector, vocab_size, feats, lens):
    """Write out_dir/pca.png: audio tokens of clips on the two main axes of the token embeddings.

    feats, lens: numpy (B, T, n_taps, D), (B,).
    """
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    device = model.cos.device
    rows = zip(*projector(*(torch.from_numpy(x).to(device) for x in (feats, lens))))
    audio = torch.cat([row[:n] for row, n in rows]).float().cpu()
    words = norm(model.transformer.wte.weight[:vocab_size]).float().cpu()
    centre = words.mean(0)
    _, spread, axes = torch.linalg.svd(words - centre, full_matrices=False)
    shares = (spread ** 2 / (spread ** 2).sum())[:2].tolist()
    fig, ax = plt.subplots(figsize=(7, 6))
    kinds = (words, "token embeddings", 6), (audio, "projected audio tokens", 3)
    for points, label, size in kinds:
        x, y = ((points - centre) @ axes[:2].T).T
        ax.scatter(x, y, s=size, alpha=0.5, label=f"{label} ({len(points):,})")
    ax.set(xlabel=f"axis 1 ({shares[0]:.1%} of the embeddings' variance)",
           ylabel=f"axis 2 ({shares[1]:.1%})",
           title=f"{out_dir}: PCA fitted on the token embeddings")
    ax.legend()
    fig.savefig(f"{out_dir}/pca.png", dpi=120, bbox_inches="tight")
    plt.close(fig)
