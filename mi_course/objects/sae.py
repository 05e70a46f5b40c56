"""Sparse autoencoders (survey section 2.5, Eq. 7-9): states as sparse sums of many directions.

    a    = relu((x - b_dec) W_enc + b_enc)          Eq. 7, with b_dec subtracted first, as in published practice
    x^   = a W_dec + b_dec                          Eq. 8; feature f_j is **row** j of W_dec (audit A13)
    loss = |x - x^|^2 + lambda |a|_1                Eq. 9, meaningful only with rows of unit norm (audit A11)

Why unit norm: for ReLU, dividing W_enc and b_enc by c and multiplying W_dec by c changes no reconstruction and divides
the L1 term by c, so the penalty can be made as small as you like without any sparsity. `rescaled` does exactly that.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

KINDS = ("relu", "topk")


class SAE(nn.Module):
    """A sparse autoencoder of states at `site`.

    W_enc [d, m], b_enc [m], W_dec [m, d], b_dec [d]: m features, d = width of the site.
    kind   "relu", trained with the L1 penalty, or "topk", which keeps the k largest activations and needs no penalty.
    site   where in the model it reads ("x3", "mlp2", "neurons1"); None while it belongs to no model.

    Attach it with `model.saes["mine"] = sae`; then `mineF17` is a site to record and to intervene on, with the
    reconstruction error x - x^ kept. New SAEs have random unit rows; `train` makes a fitted one.
    """

    def __init__(self, d: int, m: int, kind: str = "relu", k: int | None = None, site: str | None = None,
                 seed: int = 0):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if (kind == "topk") != (k is not None) or (k is not None and not 1 <= k <= m):
            raise ValueError(f"k={k} with kind={kind!r}: give k in 1 ... {m} for 'topk' and none for 'relu'")
        self.kind, self.k, self.site = kind, k, site
        rows = torch.randn(m, d, generator=torch.Generator().manual_seed(seed))
        rows = rows / rows.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(m))
        self.b_dec = nn.Parameter(torch.zeros(d))

    def encode(self, x: Tensor) -> Tensor:
        """States [..., d] -> feature activations a [..., m], all >= 0 (O16)."""
        a = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        if self.kind == "relu":
            return a
        top = a.topk(self.k, dim=-1)
        return torch.zeros_like(a).scatter(-1, top.indices, top.values)

    def decode(self, a: Tensor) -> Tensor:
        """Activations [..., m] -> states [..., d]: sum_j a_j f_j + b_dec."""
        return a @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction x^ of x."""
        return self.decode(self.encode(x))

    def loss(self, x: Tensor, l1: float = 0.0) -> Tensor:
        """Eq. 9, averaged over states: |x - x^|^2 + l1 * |a|_1, with l1 the survey's lambda."""
        a = self.encode(x)
        return (x - self.decode(a)).pow(2).sum(-1).mean() + l1 * a.sum(-1).mean()

    @torch.no_grad()
    def rescaled(self, c: float | Tensor) -> SAE:
        """The same function with activations divided by c > 0 (one number, or [m]) and features multiplied by it.

        ReLU only: this is the counter-example of audit A11. TopK ranks activations, so a common c alone keeps it.
        """
        c = torch.as_tensor(c, dtype=self.W_dec.dtype, device=self.W_dec.device)
        if not (c > 0).all():
            raise ValueError("c must be positive: ReLU commutes with positive factors only")
        if self.kind == "topk" and c.numel() > 1:
            raise ValueError("c must be one number for a TopK SAE: different factors would change which features win")
        new = SAE(*reversed(self.W_dec.shape), kind=self.kind, k=self.k, site=self.site).to(self.W_dec)
        new.W_enc.copy_(self.W_enc / c)
        new.b_enc.copy_(self.b_enc / c)
        new.W_dec.copy_(self.W_dec * c.reshape(-1, 1))
        new.b_dec.copy_(self.b_dec)
        return new

    def unit_rows(self) -> SAE:
        """The same function with features of norm 1: the scale is fixed, and |a|_1 means something. ReLU only."""
        return self.rescaled(1 / self.W_dec.detach().norm(dim=1).clamp_min(1e-8))

    @torch.no_grad()
    def quality(self, x: Tensor) -> dict[str, float]:
        """On states x [n, d]: what every report must say (audit A11).

        fvu   share of variance not explained: |x - x^|^2 / |x - mean|^2, 0 is perfect
        l0    active features per state
        dead  share of features that never fire on x
        """
        a = self.encode(x)
        error = (x - self.decode(a)).pow(2).sum()
        return {"fvu": (error / (x - x.mean(0)).pow(2).sum()).item(), "l0": (a > 0).sum(-1).float().mean().item(),
                "dead": 1 - (a > 0).any(0).float().mean().item()}

    def splice(self):
        """The intervention that replaces the site by its reconstruction: the baseline of every SAE experiment.

        What splicing alone changes must be subtracted from what a clamped feature is said to change.
        """
        from mi_course.models.edits import edit

        if self.site is None:
            raise ValueError("site is not set: say where this SAE reads, for example sae.site = 'x3'")
        return edit(self.site, self)

    def save(self, path: str | Path, model) -> None:
        """Write to a safetensors file, with the fingerprint of the model it was trained on."""
        from safetensors.torch import save_file

        about = {"kind": self.kind, "k": str(self.k or ""), "site": self.site or "", "fingerprint": model.fingerprint()}
        save_file({name: p.detach().contiguous().cpu() for name, p in self.named_parameters()}, path, metadata=about)

    @classmethod
    def load(cls, path: str | Path, model) -> SAE:
        """Read an SAE that `save` wrote. ValueError when it belongs to another model."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if about["fingerprint"] != model.fingerprint():
            raise ValueError(f"path {Path(path).name}: this SAE was trained on another model (fingerprint "
                             f"{about['fingerprint']}, {model.name} has {model.fingerprint()}); load that model, or "
                             f"train an SAE on this one")
        m, d = tensors["W_dec"].shape
        sae = cls(d, m, about["kind"], int(about["k"]) if about["k"] else None, about["site"] or None)
        sae.load_state_dict(tensors)
        return sae.to(device=model.device, dtype=model.dtype)


def train(x: Tensor, m: int, kind: str = "relu", k: int | None = None, site: str | None = None, seed: int = 0,
          **options) -> SAE:
    """A new SAE with m features, fitted to states x [n, d]. options: l1, steps, lr ... of `fit`."""
    _check_states(x)
    sae = SAE(x.shape[1], m, kind, k, site, seed).to(x)
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
    return fit(sae, x, seed=seed, **options)


def fit(sae: SAE, x: Tensor, l1: float = 0.0, steps: int = 2000, batch_size: int = 256, lr: float = 2e-3,
        resample_every: int | None = None, seed: int = 0, progress: bool = False) -> SAE:
    """Train `sae` in place on states x [n, d] with Adam, rows of W_dec held at norm 1; returns it, frozen.

    A feature that never fires gets no gradient through the ReLU, so it stays dead. With `resample_every`, features that
    have not fired for so many steps start anew in the direction of a badly reconstructed state (the remedy of Bricken
    et al. 2023), until the last fifth of training.
    States are used as they are: divide by a common scale first when their norm is far from 1, or adapt `l1`.
    """
    _check_states(x)
    from tqdm.auto import trange

    generator = torch.Generator().manual_seed(seed)
    sae.requires_grad_(True).train()
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    fired = torch.zeros(len(sae.b_enc), dtype=torch.bool, device=x.device)
    for step in trange(1, steps + 1, desc="SAE", disable=not progress):
        batch = x[torch.randint(len(x), (batch_size,), generator=generator).to(x.device)]
        optimizer.zero_grad()
        sae.loss(batch, l1).backward()
        optimizer.step()
        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))
            if resample_every:
                fired |= (sae.encode(batch) > 0).any(0)
        if resample_every and step % resample_every == 0:
            if step <= 0.8 * steps:
                _resample(sae, optimizer, ~fired, x, generator)
            fired.zero_()
    return sae.requires_grad_(False).eval()


def _check_states(x: Tensor) -> None:
    if x.dim() != 2 or len(x) == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; give states as [n, d], for example cache['x3'].flatten(0, 1)")


@torch.no_grad()
def _resample(sae: SAE, optimizer, dead: Tensor, x: Tensor, generator) -> None:
    """Point dead features at what is left over of badly explained states; forget their optimizer state."""
    if not dead.any():
        return
    some = x[torch.randint(len(x), (4096,), generator=generator).to(x.device)]
    residual = some - sae(some)
    chance = residual.pow(2).sum(1).cpu()
    chosen = torch.multinomial(chance + 1e-12, int(dead.sum()), replacement=True, generator=generator)
    rows = residual[chosen.to(x.device)]
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8)
    alive = sae.W_enc[:, ~dead].norm(dim=0).mean() if (~dead).any() else sae.W_enc.new_tensor(1.0)
    sae.W_dec[dead] = rows
    sae.W_enc[:, dead] = 0.5 * alive * rows.T
    sae.b_enc[dead] = 0.0
    for parameter, index in ((sae.W_dec, dead), (sae.W_enc, (slice(None), dead)), (sae.b_enc, dead)):
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][moment][index] = 0.0


@torch.no_grad()
def loss_recovered(model, sae: SAE, prompts) -> float:
    """Share of the model's next-token loss that survives splicing the SAE in: (zero - spliced) / (zero - plain).

    1: the reconstruction serves as well as the state; 0: no better than zeros at the site. Prompts are documents; the
    loss is the mean cross-entropy of their own next tokens, padding left out.
    """
    from mi_course.models.edits import intervene, zero

    batch = model.tokenize(prompts)

    def loss() -> float:
        logprobs = model(batch)[:, :-1].float().log_softmax(-1)
        real = (batch.mask[:, 1:] * batch.mask[:, :-1]).bool()
        return -logprobs.gather(-1, batch.ids[:, 1:, None]).squeeze(-1)[real].mean().item()

    plain = loss()
    with intervene(model, sae.splice()):
        spliced = loss()
    with intervene(model, zero(sae.site)):
        without = loss()
    if abs(without - plain) < 1e-6:
        raise ValueError(f"sae: zeroing {sae.site} changes nothing on these prompts, so there is no loss to recover")
    return (without - spliced) / (without - plain)
