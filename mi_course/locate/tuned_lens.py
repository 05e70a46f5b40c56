"""The tuned lens (survey section 3.5, L5b; Belrose et al. 2023): a learned translator in front of the logit lens.

    tuned_l(x) = unembed(x + x A_l + b_l)        A_l [d, d], b_l [d], both 0 at the start: then it is the logit lens

Each layer's translator is trained to bring its reading close to the model's final distribution: minimise the mean of
KL(p_final || softmax tuned_l(x^l)) over tokens. The model is frozen. An affine map can undo a rotation or a shift of
basis between layer l and the output, which the logit lens cannot.

What is learned is what a *linear* reader can predict of the final output from x^l. It is a probe, trained on the
model's own output: it may find what the model has not made use of at that layer, so it needs a held-out set, and what
it says is about information, not about use.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mi_course.models import record
from mi_course.objects import Scores

from .projection import Lens


class TunedLens:
    """Translators of one model: A [n_layers, d, d], b [n_layers, d], for x^0 ... x^(n_layers - 1).

    Call it as `lens(x, layer)` for logits [..., V], or give it to `read_tokens(..., lens=lens)` and `lens_kl`.
    """

    def __init__(self, model, A: Tensor | None = None, b: Tensor | None = None):
        n, d = model.n_layers, model.d_model
        like = {"device": model.device, "dtype": model.dtype}
        self.model = model
        self.A = torch.zeros(n, d, d, **like) if A is None else A
        self.b = torch.zeros(n, d, **like) if b is None else b

    def translate(self, x: Tensor, layer: int) -> Tensor:
        """States x^layer [..., d] -> states [..., d] in the output's basis. Layer n_layers: as it is."""
        if not 0 <= layer <= self.model.n_layers:
            raise ValueError(f"layer {layer} is out of range: {self.model.name} has states 0 to {self.model.n_layers}")
        return x if layer == self.model.n_layers else x + x @ self.A[layer] + self.b[layer]

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """States x^layer [..., d] -> logits [..., V]."""
        return self.model.unembed(self.translate(x, layer))

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, with the fingerprint of the model it was trained on."""
        from safetensors.torch import save_file

        tensors = {"A": self.A.detach().cpu().contiguous(), "b": self.b.detach().cpu().contiguous()}
        save_file(tensors, path, metadata={"kind": "tuned lens", "fingerprint": self.model.fingerprint()})

    @classmethod
    def load(cls, path: str | Path, model) -> TunedLens:
        """Read what `save` wrote. Raises ValueError for a file of another kind, or of another model."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("kind") != "tuned lens":
                raise ValueError(f"path {Path(path).name}: not a tuned lens; give a file that TunedLens.save wrote")
            if about["fingerprint"] != model.fingerprint():
                raise ValueError(
                    f"path {Path(path).name}: this lens was trained on the model with fingerprint "
                    f"{about['fingerprint']}, {model.name} has {model.fingerprint()}; train one with train_tuned_lens"
                )
            tensors = {name: file.get_tensor(name) for name in ("A", "b")}
        return cls(model, *(t.to(model.device, model.dtype) for t in tensors.values()))


def _states(model, documents: Sequence, batch_size: int) -> list[Tensor]:
    """x^0 ... x^L at every real token of the documents, the first one left out: L + 1 tensors [n, d].

    The first token (<bos> in `lab`) is the same in every document and has a state unlike all others.
    """
    names = [f"x{layer}" for layer in range(model.n_layers + 1)]
    kept: list[list[Tensor]] = [[] for _ in names]
    for start in range(0, len(documents), batch_size):
        cache = record(model, documents[start : start + batch_size], names, logits=False)
        counted = cache.batch.mask.bool() & (cache.batch.position_ids > 0)
        for states, name in zip(kept, names, strict=True):
            states.append(cache[name][counted])
    return [torch.cat(states) for states in kept]


def train_tuned_lens(
    model, documents: Sequence, steps: int = 100, batch: int = 256, lr: float = 5e-3, seed: int = 0
) -> TunedLens:
    """A TunedLens fitted to the tokens of the documents: Adam, learning rate falling linearly to 0, all layers at once.

    documents: texts or lists of token ids, of the kind that you will read; keep others back for `lens_kl`. batch:
    tokens per step. The same seed gives the same lens. On `lab`, 100 steps take about five seconds of one core.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"steps={steps} and batch={batch} must be at least 1")
    states = _states(model, documents, 64)
    n, lens = len(states[0]), TunedLens(model)
    A, b = lens.A.clone().requires_grad_(), lens.b.clone().requires_grad_()
    optimizer = torch.optim.Adam([A, b], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(seed)
    frozen = [p for p in model.hf.parameters() if p.requires_grad]
    for p in frozen:  # the unembedding needs no gradient of its own
        p.requires_grad_(False)
    try:
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(n, (min(batch, n),), generator=generator).to(model.device)
                x = torch.stack([state[rows] for state in states[:-1]])  # [L, batch, d]
                with torch.no_grad():
                    final = model.unembed(states[-1][rows]).float().log_softmax(-1)
                read = model.unembed(x + x @ A + b[:, None]).float().log_softmax(-1)
                loss = (final.exp() * (final - read)).sum(-1).mean(1).sum()  # layers do not share parameters
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    finally:
        for p in frozen:
            p.requires_grad_(True)
    return TunedLens(model, A.detach(), b.detach())


@torch.no_grad()
def lens_kl(model, documents: Sequence, lens: Lens | None = None, batch_size: int = 64) -> Scores:
    """KL(p_final || lens at x^l), nats per token, mean over the documents' tokens but the first: Scores over x0 ... .

    lens None is the logit lens. 0 at a layer: it reads the model's final prediction exactly there. For a trained lens,
    give documents that it was not trained on.
    """
    started = time.perf_counter()
    states = _states(model, documents, batch_size)
    total = torch.zeros(model.n_layers)
    for start in range(0, len(states[0]), 2048):
        part = slice(start, start + 2048)
        final = model.unembed(states[-1][part]).float().log_softmax(-1)
        for layer in range(model.n_layers):
            x = states[layer][part]
            read = (model.unembed(x) if lens is None else lens(x, layer)).float().log_softmax(-1)
            total[layer] += (final.exp() * (final - read)).sum().cpu()
    sites = [f"x{layer}" for layer in range(model.n_layers)]
    method = "logit lens, KL" if lens is None else "tuned lens, KL"
    return Scores(sites, total / len(states[0]), method, "magnitude", forwards=len(documents),
                  seconds=time.perf_counter() - started)
