"""A small decoder-only transformer (Flax Linen) learns to write molecules, character by character.

    python examples/linen_transformer.py --plot=transformer.png

AdamW, K-FAC-expand, Adam in K-FAC's eigenbasis and Muon in K-FAC's metric train it on the 7,807 molecules of the
package qc-b3db, written as SMILES strings. Factors are estimated at every step. The program prints which parameters
have curvature and each optimiser's loss, and plots the training losses. It takes about 50 seconds on a CPU.

Each optimiser has one setting: AdamW's rate is the best of three, Muon's of two, the others' the only one. The losses
end close together, AdamW's a little above the others'. It is one seed and no benchmark.
"""

import argparse
import csv
import importlib.metadata
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from submissions import kfac

LENGTH, WIDTH, BATCH_SIZE = 32, 32, 32


class Transformer(nn.Module):
    n_codes: int

    @nn.compact
    def __call__(self, codes):
        x = nn.Embed(self.n_codes, WIDTH)(codes)
        x += self.param("position", nn.initializers.normal(0.02), (LENGTH, WIDTH))
        x += nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x), mask=nn.make_causal_mask(codes))
        x += nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))
        return nn.Dense(self.n_codes)(nn.LayerNorm()(x))


def read_molecules() -> np.ndarray:
    """Codes of characters `[n_molecules, LENGTH + 1]`; 0 at the start and after the end."""
    path = Path(str(importlib.metadata.distribution("qc-b3db").locate_file("B3DB/B3DB_classification.tsv")))
    with path.open(newline="", encoding="utf-8") as file:
        strings = [row["SMILES"][:LENGTH] for row in csv.DictReader(file, delimiter="\t")]
    alphabet = sorted(set("".join(strings)))
    return np.array(
        [[0, *(1 + alphabet.index(c) for c in string), *[0] * (LENGTH - len(string))] for string in strings]
    )


def optimizers(layers: tuple[kfac.Layer, ...], n_steps: int) -> dict[str, tuple[optax.GradientTransformation, dict]]:
    """Each optimiser, with what it needs of `estimate`: the layers to estimate factors for, and which factors."""

    def rate(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, n_steps // 10, n_steps)

    none, both, inputs_only = {"layers": ()}, {"layers": layers}, {"layers": layers, "output_factors": False}
    return {
        "AdamW": (optax.adamw(rate(0.03)), none),
        "K-FAC-expand": (kfac.kfac(layers, learning_rate=rate(0.3), damping=0.01, kl_clip=0.1), both),
        "Adam in K-FAC's eigenbasis": (kfac.eigenbasis_adam(layers, learning_rate=rate(0.01)), both),
        "Muon in K-FAC's metric": (kfac.kfac_muon(layers, learning_rate=rate(0.05)), inputs_only),
    }


def train(optimizer, curvature, model: Transformer, params: dict, molecules: np.ndarray, n_steps: int) -> np.ndarray:
    """The training loss at each step `[n_steps]`."""

    @jax.jit
    def step(params, state, codes, key):
        inputs, targets = codes[:, :-1], codes[:, 1:]
        is_token = (targets > 0).astype(jnp.float32)

        def loss(logits):
            losses = is_token * optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return losses.sum(), is_token.sum()

        batch = kfac.estimate(
            lambda params: (model.apply({"params": params}, inputs), None),
            loss,
            params,
            layout=kfac.batch_layout(BATCH_SIZE, is_token=is_token),
            sharing=kfac.Sharing.EXPAND,  # each character has a loss of its own
            geometry=kfac.Geometry(kfac.LossKind.SOFTMAX),
            weights=is_token,
            key=key,
            **curvature,
        )
        updates, state = optimizer.update(batch.gradients, state, params, factors=batch.factors, refresh=True)
        return optax.apply_updates(params, updates), state, batch.loss

    state, losses, rng = optimizer.init(params), [], np.random.default_rng(0)
    for index in range(n_steps):
        codes = rng.choice(molecules, BATCH_SIZE, replace=False)
        params, state, loss = step(params, state, codes, jax.random.key(index))
        losses.append(loss)
    return np.array(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--plot", type=Path, default=Path("linen_transformer.png"))
    flags = parser.parse_args()
    molecules = read_molecules()
    model = Transformer(n_codes=int(molecules.max()) + 1)
    params = model.init(jax.random.key(0), molecules[:1, :-1])["params"]
    layers = kfac.find_layers(params)
    print(kfac.describe(params, layers, lambda params: (model.apply({"params": params}, molecules[:1, :-1]), None)))
    figure, axes = plt.subplots(layout="constrained")
    for name, (optimizer, curvature) in optimizers(layers, flags.steps).items():
        losses = train(optimizer, curvature, model, params, molecules, flags.steps)
        print(f"{name}: loss {np.mean(losses[-10:]):.3f} in the last 10 of {flags.steps} steps", flush=True)
        axes.plot(losses, label=name)
    axes.set(xlabel="step", ylabel="training loss per character (nats)", ylim=(1.1, 2.6))
    axes.legend()
    figure.savefig(flags.plot)


if __name__ == "__main__":
    main()
