"""Sparse autoencoders (survey section 2.5, Eq. 7-9): states as sparse sums of many directions.

    a    = act(z),  z = (x - b_dec) W_enc + b_enc   Eq. 7, with b_dec subtracted first, as in published practice
    x^   = a W_dec + b_dec                          Eq. 8; feature f_j is **row** j of W_dec (audit A13)
    loss = |x - x^|^2 + lambda |a|_1                Eq. 9, meaningful only with rows of unit norm (audit A11)

The survey's act is left open. Here are five, `KINDS`, each with its own way to be sparse:

    relu       a = max(z, 0)                                     loss + lambda |a|_1
    topk       the k largest of max(z, 0), others 0              needs no penalty          Gao et al. 2024
    batchtopk  the k n largest in a batch of n states; later     needs no penalty          Bussmann et al. 2024
               a = z where z > threshold (one number)
    jumprelu   a = z where z > threshold_j (learned)             loss + lambda |a|_0       Rajamanoharan et al. 2024b
    gated      a = max(e^r (x - b_dec) W_enc + b_mag, 0),        loss + lambda |max(z, 0)|_1   ... 2024a
               where z > 0                                       + the error of max(z, 0) alone

Any of them can be a Matryoshka SAE (Bussmann et al. 2025): the error of its first 10, 100, ... features is added up.

Why unit norm: for ReLU, dividing W_enc and b_enc by c and multiplying W_dec by c changes no reconstruction and divides
the L1 term by c, so the penalty can be made as small as you like without any sparsity. `rescaled` does exactly that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import topk

KINDS = ("relu", "topk", "batchtopk", "jumprelu", "gated")
REMEDIES = ("resample", "auxk")
AUXK_WEIGHT = 1 / 32  # Gao et al. 2024


class Use(NamedTuple):
    """How a batch used the features. count [m]: states in which each fired; smallest: the least activation above 0."""

    count: Tensor
    smallest: Tensor


class SAE(nn.Module):
    """A sparse autoencoder of states at `site`.

    W_enc [d, m], b_enc [m], W_dec [m, d], b_dec [d]: m features, d = width of the site.
    kind      one of `KINDS`; k: active features per state, for topk and batchtopk
    site      where in the model it reads ("x3", "mlp2", "neurons1", "z0" with heads side by side); None: no model
    prefixes  None, or increasing sizes that end in m, such as (16, 64, 256): a Matryoshka SAE
    threshold jumprelu: [m], learned; batchtopk: one number, set at the end of training
    r_mag, b_mag [m]: gated only; how large a feature is once its gate is open

    Attach it with `model.saes["mine"] = sae`; then `mineF17` is a site to record and to intervene on, with the
    reconstruction error x - x^ kept. New SAEs have random unit rows; `train` makes a fitted one.
    """

    bandwidth = 0.1  # jumprelu: how near to its threshold a pre-activation must be to count for the gradient of it

    def __init__(self, d: int, m: int, kind: str = "relu", k: int | None = None, site: str | None = None,
                 seed: int = 0, prefixes: Sequence[int] | None = None):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if (kind in ("topk", "batchtopk")) != (k is not None) or (k is not None and not 1 <= k <= m):
            raise ValueError(f"k={k} with kind={kind!r}: give k in 1 ... {m} for topk and batchtopk, none for others")
        sizes = (0, *prefixes) if prefixes else (0, m)
        if sizes[-1] != m or any(small >= large for small, large in pairwise(sizes)):
            raise ValueError(f"prefixes={prefixes} must increase and end in m={m}, the number of features")
        self.kind, self.k, self.site, self.prefixes = kind, k, site, sizes[1:]
        rows = torch.randn(m, d, generator=torch.Generator().manual_seed(seed))
        rows = rows / rows.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(m))
        self.b_dec = nn.Parameter(torch.zeros(d))
        if kind == "jumprelu":
            self.threshold = nn.Parameter(torch.full((m,), self.bandwidth))
        if kind == "batchtopk":
            self.register_buffer("threshold", torch.tensor(0.0))
        if kind == "gated":
            self.r_mag, self.b_mag = nn.Parameter(torch.zeros(m)), nn.Parameter(torch.zeros(m))

    # -- Eq. 7 and 8 ---------------------------------------------------------------------------------------------

    def pre(self, x: Tensor) -> Tensor:
        """Pre-activations z [..., m] of states [..., d]."""
        return self._centred(x) @ self.W_enc + self.b_enc

    def _centred(self, x: Tensor) -> Tensor:
        return x - self.b_dec

    def activate(self, z: Tensor) -> Tensor:
        """Pre-activations -> activations [..., m], all >= 0, by the formula of the kind."""
        if self.kind == "relu":
            return z.relu()
        if self.kind == "topk":
            top = z.relu().topk(self.k, dim=-1)
            return torch.zeros_like(z).scatter(-1, top.indices, top.values)
        if self.kind == "batchtopk" and self.training:
            flat = z.relu().flatten()
            top = flat.topk(self.k * (z.numel() // z.shape[-1]))
            return torch.zeros_like(flat).scatter(0, top.indices, top.values).view_as(z)
        if self.kind == "gated":
            return (z > 0) * ((z - self.b_enc) * self.r_mag.exp() + self.b_mag).relu()
        on = (z > self.threshold) & (z > 0)
        if self.kind == "jumprelu" and self.training:
            return z * on - self.threshold.detach() * self._pull(z)
        return z * on

    def _pull(self, z: Tensor) -> Tensor:
        """Zero, with gradient K((z - threshold) / bandwidth) / bandwidth for the threshold; K = 1 on (-1/2, 1/2).

        A step has derivative zero, so a threshold would never learn. Over many states, though, the mean of a step does
        have a derivative: minus the density of z at the threshold, which the window K estimates.
        """
        near = (z - self.threshold).abs().detach() < self.bandwidth / 2
        return (self.threshold - self.threshold.detach()) * near / self.bandwidth

    def encode(self, x: Tensor) -> Tensor:
        """States [..., d] -> feature activations a [..., m], all >= 0 (O16)."""
        return self.activate(self.pre(x))

    def decode(self, a: Tensor) -> Tensor:
        """Activations [..., m] -> states [..., d]: sum_j a_j f_j + b_dec."""
        return a @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction x^ of x."""
        return self.decode(self.encode(x))

    # -- Eq. 9 ---------------------------------------------------------------------------------------------------

    def loss(self, x: Tensor, sparsity: float = 0.0, dead: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Eq. 9, averaged over states [n, d]: |y - x^|^2 + sparsity * (the penalty of the kind), sparsity = lambda.

        y: what to reconstruct, x itself if None. A transcoder is given the output of an FFN.
        Matryoshka: the first term is the sum over `prefixes` of |y - x^ from the first features alone|^2.
        dead [m], bool: adds the AuxK term (Gao et al. 2024) for these features.
        """
        return self._loss_and_use(x, sparsity, dead, x if y is None else y)[0]

    def _loss_and_use(self, x: Tensor, sparsity: float, dead: Tensor | None, y: Tensor) -> tuple[Tensor, Use]:
        if sparsity and self.k is not None:
            raise ValueError(f"sparsity={sparsity}: a {self.kind} SAE has no penalty; choose k instead")
        if self.k is not None and self.training and (dead is None or not dead.any()):
            return self._loss_of_winners(x, y)
        z = self.pre(x)
        a = self.activate(z)
        loss = sum((y - self._first(a, n)).pow(2).sum(-1).mean() for n in self.prefixes)
        if sparsity:
            loss = loss + sparsity * self._penalty(z, a).sum(-1).mean()
        if self.kind == "gated":  # the gate has no gradient of its own: let it reconstruct too, with a frozen decoder
            by_gate = z.relu() @ self.W_dec.detach() + self.b_dec.detach()
            loss = loss + (y - by_gate).pow(2).sum(-1).mean()
        if dead is not None and dead.any():
            loss = loss + AUXK_WEIGHT * self._auxk(z, (y - self.decode(a)).detach(), dead)
        on = a.detach() > 0
        return loss, Use(on.sum(0), a.detach()[on].min() if on.any() else a.new_tensor(0.0))

    def _loss_of_winners(self, x: Tensor, y: Tensor) -> tuple[Tensor, Use]:
        """The same for topk and batchtopk, with every zero left out (`objects/topk.py`)."""
        columns, values, offsets = topk.encode(self._centred(x), self.W_enc, self.b_enc, self.k,
                                               self.kind == "batchtopk")
        first = [topk.decode(columns, values * (columns < n), offsets, self.W_dec) for n in self.prefixes]
        loss = sum((y - part - self.b_dec).pow(2).sum(-1).mean() for part in first)
        on = values.detach() > 0
        return loss, Use(columns[on].bincount(minlength=len(self.b_enc)),
                         values.detach()[on].min() if on.any() else values.new_tensor(0.0))

    def _first(self, a: Tensor, n: int) -> Tensor:
        """The reconstruction from the first n features."""
        return a[..., :n] @ self.W_dec[:n] + self.b_dec

    def _penalty(self, z: Tensor, a: Tensor) -> Tensor:
        """What the sparsity term counts, per feature [..., m]."""
        if self.kind == "jumprelu":
            return (z > self.threshold).to(z) - self._pull(z)  # L0: the count, whose gradient goes to the threshold
        return z.relu() if self.kind == "gated" else a

    def _auxk(self, z: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        """|e - e^|^2, e^ = sum of z_j f_j over the d / 2 dead features with the largest z: dead ones learn from e.

        z enters without a ReLU, so a feature far below zero gets a gradient too.
        """
        best = torch.where(dead, z, -torch.inf).topk(min(int(dead.sum()), max(1, len(self.b_dec) // 2)), dim=-1)
        guess = torch.zeros_like(z).scatter(-1, best.indices, best.values) @ self.W_dec
        return (error - guess).pow(2).sum(-1).mean()

    # -- scale ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rescaled(self, c: float | Tensor) -> SAE:
        """The same function with activations divided by c > 0 (one number, or [m]) and features multiplied by it.

        relu and topk only: this is the counter-example of audit A11. TopK ranks activations, so there c is one number.
        """
        c = torch.as_tensor(c, dtype=self.W_dec.dtype, device=self.W_dec.device)
        if not (c > 0).all():
            raise ValueError("c must be positive: ReLU commutes with positive factors only")
        if self.kind not in ("relu", "topk"):
            raise ValueError(f"a {self.kind} SAE has thresholds or gates that are not rescaled here; use relu or topk")
        if self.kind == "topk" and c.numel() > 1:
            raise ValueError("c must be one number for a TopK SAE: different factors would change which features win")
        new = SAE(*reversed(self.W_dec.shape), kind=self.kind, k=self.k, site=self.site,
                  prefixes=self.prefixes).to(self.W_dec)
        new.W_enc.copy_(self.W_enc / c)
        new.b_enc.copy_(self.b_enc / c)
        new.W_dec.copy_(self.W_dec * c.reshape(-1, 1))
        new.b_dec.copy_(self.b_dec)
        return new

    def unit_rows(self) -> SAE:
        """The same function with features of norm 1: the scale is fixed, and |a|_1 means something. ReLU only."""
        return self.rescaled(1 / self.W_dec.detach().norm(dim=1).clamp_min(1e-8))

    @torch.no_grad()
    def _for_larger_states(self, s: float) -> SAE:
        """Change in place so that encode(s x) is s times what encode(x) was: every bias and threshold times s."""
        for name in ("b_enc", "b_dec", "b_mag", "threshold"):
            if hasattr(self, name):
                getattr(self, name).mul_(s)
        return self

    # -- quality -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def quality(self, x: Tensor) -> dict[str, float]:
        """On states x [n, d]: what every report must say (audit A11).

        fvu        share of variance not explained: |x - x^|^2 / |x - mean|^2, 0 is perfect
        l0         active features per state
        dead       share of features that never fire on x
        shrinkage  1 - |x^|^2 / (x . x^), both counted from b_dec: 0 when lengths are right, 0.1 when reconstructions
                   are a tenth too short (1 - gamma of Rajamanoharan et al. 2024a)
        """
        a = self.encode(x)
        y = self.decode(a)
        from_bias, made = x - self.b_dec, y - self.b_dec
        return {
            "fvu": ((x - y).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item(),
            "l0": (a > 0).sum(-1).float().mean().item(),
            "dead": 1 - (a > 0).any(0).float().mean().item(),
            "shrinkage": 1 - (made.pow(2).sum() / (made * from_bias).sum()).item(),
        }

    def splice(self, positions="all"):
        """The intervention that replaces the site by its reconstruction: the baseline of every SAE experiment.

        What splicing alone changes must be subtracted from what a clamped feature is said to change. positions: as for
        every edit; an SAE that was trained without the first token should not be spliced in there.
        """
        from mi_course.models.edits import edit

        if self.site is None:
            raise ValueError("site is not set: say where this SAE reads, for example sae.site = 'x3'")
        # z has an axis of heads, which an SAE has not
        return edit(self.site, lambda x: self(x.flatten(2)).view_as(x), positions)

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, model, dtype: torch.dtype | None = None) -> None:
        """Write to a safetensors file, with the fingerprint of the model it was trained on.

        dtype: store in this precision, for instance torch.float16; None keeps the SAE's own.
        """
        from safetensors.torch import save_file

        about = {"kind": self.kind, "k": str(self.k or ""), "site": self.site or "", "fingerprint": model.fingerprint(),
                 "prefixes": " ".join(map(str, self.prefixes))}
        tensors = {name: t.detach().to(dtype or t.dtype).contiguous().cpu() for name, t in self.state_dict().items()}
        save_file(tensors, path, metadata=about)

    @classmethod
    def load(cls, path: str | Path, model) -> SAE:
        """Read an SAE that `save` wrote, frozen, in the model's precision. ValueError for another model's."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if about["fingerprint"] != model.fingerprint():
            raise ValueError(f"path {Path(path).name}: this SAE was trained on another model (fingerprint "
                             f"{about['fingerprint']}, {model.name} has {model.fingerprint()}); load that model, or "
                             f"train an SAE on this one")
        m, d = tensors["W_dec"].shape
        sae = cls(d, m, about["kind"], int(about["k"]) if about["k"] else None, about["site"] or None,
                  prefixes=tuple(map(int, about["prefixes"].split())))
        sae.load_state_dict(tensors)
        return sae.to(device=model.device, dtype=model.dtype).requires_grad_(False).eval()


# ---------------------------------------------------------------------------------------------------------- training


def train(x: Tensor, m: int, kind: str = "relu", k: int | None = None, site: str | None = None, seed: int = 0,
          prefixes: Sequence[int] | None = None, **options) -> SAE:
    """A new SAE with m features, fitted to states x [n, d]. options: sparsity, steps, lr, remedy ... of `fit`.

    States are divided by one number for training, so that |x - mean|^2 is 1 on average, and the SAE is scaled back
    afterwards: the loss then starts as the share of variance not explained, and `sparsity` means the same everywhere.
    """
    _check_states(x)
    sae = SAE(x.shape[1], m, kind, k, site, seed, prefixes).to(x)
    scale = (x - x.mean(0)).pow(2).sum(-1).mean().sqrt().item() or 1.0
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0) / scale)
    return fit(sae, x / scale, seed=seed, **options)._for_larger_states(scale)


def fit(sae: SAE, x: Tensor, sparsity: float = 0.0, steps: int = 2000, batch_size: int = 256, lr: float = 2e-3,
        remedy: str | None = None, dead_after: int = 100, seed: int = 0, progress: bool = False,
        history: list | None = None, y: Tensor | None = None) -> SAE:
    """Train `sae` in place on states x [n, d] with Adam, rows of W_dec held at norm 1; returns it, frozen.

    y [n, d]: what to reconstruct from x; None: x itself.

    The rate falls to zero over the last fifth, `sparsity` rises over the first tenth. States are used as they are: when
    their size is far from 1, use `train`, which brings them to it.

    A feature that never fires gets no gradient through its activation, so it stays dead. Remedies, for features that
    have not fired for `dead_after` steps:
        "resample"  they start anew in the direction of a badly reconstructed state, up to the last fifth of training
                    (Bricken et al. 2023)
        "auxk"      they learn to reconstruct what the others leave over (Gao et al. 2024)
    history: a list that gets about 50 dicts with step, loss, l0 and dead (the share silent for `dead_after` steps).
    """
    _check_states(x)
    if y is not None and len(y) != len(x):
        raise ValueError(f"y has {len(y)} states for {len(x)} in x; give what follows each of them, in the same order")
    if y is not None and remedy == "resample":
        raise ValueError("remedy='resample' restarts features at states they should explain, which needs x and y to be "
                         "the same; use 'auxk'")
    if remedy is not None and remedy not in REMEDIES:
        raise ValueError(f"remedy={remedy!r} is unknown; choose one of {', '.join(REMEDIES)}, or None")
    from tqdm.auto import trange

    generator = torch.Generator().manual_seed(seed)
    sae.requires_grad_(True).train()
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    silent = torch.zeros(len(sae.b_enc), dtype=torch.long, device=x.device)  # steps since a feature fired
    thresholds = []
    for step in trange(1, steps + 1, desc="SAE", disable=not progress):
        late = step > 0.8 * steps
        optimizer.param_groups[0]["lr"] = lr * min(1, 5 * (1 - step / steps) + 1e-3)
        weight = sparsity * min(1, 10 * step / steps)
        rows = torch.randint(len(x), (batch_size,), generator=generator).to(x.device)
        batch = x[rows]
        optimizer.zero_grad()
        loss, use = sae._loss_and_use(batch, weight, silent >= dead_after if remedy == "auxk" else None,
                                      batch if y is None else y[rows])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))
            silent = torch.where(use.count > 0, 0, silent + 1)
            if sae.kind == "jumprelu":
                sae.threshold.clamp_min_(0)
            if sae.kind == "batchtopk" and late:
                thresholds.append(use.smallest)  # what the batch's last winner had
        if remedy == "resample" and step % dead_after == 0 and not late:
            _resample(sae, optimizer, silent >= dead_after, x, generator)
        if history is not None and (step % max(1, steps // 50) == 0 or step == steps):
            history.append({"step": step, "loss": loss.item(), "l0": use.count.sum().item() / batch_size,
                            "dead": (silent >= dead_after).float().mean().item()})
    if thresholds:
        sae.threshold.copy_(torch.stack(thresholds).mean())
    return sae.requires_grad_(False).eval()


def _check_states(x: Tensor) -> None:
    if x.dim() != 2 or len(x) == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; give states as [n, d], for example states(model, 'x3', texts)")


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
    fresh = {"W_dec": rows, "W_enc": 0.5 * alive * rows.T, "b_enc": 0.0, "r_mag": 0.0, "b_mag": 0.0,
             "threshold": sae.bandwidth}
    for name, parameter in sae.named_parameters():
        if name in fresh:
            index = (slice(None), dead) if name == "W_enc" else dead
            parameter[index] = fresh[name]
            for moment in ("exp_avg", "exp_avg_sq"):
                optimizer.state[parameter][moment][index] = 0.0


# ------------------------------------------------------------------------------------------------------- in the model


def batches(model, documents: Sequence, batch_size: int = 64):
    """Documents as tokenized batches, in order."""
    if len(documents) == 0:
        raise ValueError("documents is empty: give at least one document")
    for start in range(0, len(documents), batch_size):
        yield model.tokenize(documents[start : start + batch_size])


@torch.no_grad()
def states(model, site: str, documents: Sequence, skip: int = 0, batch_size: int = 64) -> Tensor:
    """The states at `site` of all real tokens of the documents, [n_tokens, d], document after document.

    skip: leave out so many tokens at the beginning of each document. In many models (not in `lab`) the first token has
    a state far larger than any other, which would rule the training of an SAE: skip=1 there, here and when splicing.
    """
    from mi_course.models import record

    found = []
    for batch in batches(model, documents, batch_size):
        keep = batch.mask.bool() & (batch.position_ids >= skip)
        found.append(record(model, batch, [site], logits=False)[site].flatten(2)[keep])
    return torch.cat(found)


@torch.no_grad()
def next_token_loss(model, documents: Sequence, make_edits=lambda positions: [], skip: int = 0,
                    batch_size: int = 64) -> float:
    """Mean cross-entropy of the documents' own next tokens, in nats, under `make_edits(positions)`.

    positions: bool [B, T], the real tokens of a batch without the first `skip` of each document.
    """
    from mi_course.models.edits import intervene

    total = count = 0.0
    for batch in batches(model, documents, batch_size):
        with intervene(model, make_edits(batch.mask.bool() & (batch.position_ids >= skip))):
            logprobs = model(batch)[:, :-1].float().log_softmax(-1)
        real = (batch.mask[:, 1:] * batch.mask[:, :-1]).bool()
        total -= logprobs.gather(-1, batch.ids[:, 1:, None]).squeeze(-1)[real].sum().item()
        count += real.sum().item()
    return total / count


@torch.no_grad()
def loss_recovered(model, sae: SAE, documents: Sequence, baseline: str = "zero", skip: int = 0,
                   batch_size: int = 64) -> float:
    """Share of the model's next-token loss that survives splicing the SAE in: (none - spliced) / (none - plain).

    1: the reconstruction serves as well as the state; 0: no better than the baseline at the site, which is "zero" (as
    mostly published; in the residual stream it destroys everything, so that nearly any SAE comes out near 1) or "mean"
    (the mean state of these documents). The loss is the mean cross-entropy of the documents' own next tokens.
    skip: leave the state as it is at so many first tokens of each document.
    """
    from mi_course.models import Site
    from mi_course.models.edits import mean, zero

    if baseline not in ("zero", "mean"):
        raise ValueError(f"baseline={baseline!r} is unknown; choose 'zero' or 'mean'")

    def loss(make_edits) -> float:
        return next_token_loss(model, documents, make_edits, skip, batch_size)

    def none(positions):
        if baseline == "zero":
            return zero(sae.site, positions)
        return mean(sae.site, average, positions)

    if baseline == "mean":
        average, site = states(model, sae.site, documents, skip).mean(0), Site.parse(sae.site)
        average = average.view(-1, model.d_head) if site.kind == "head" and site.index is None else average
    plain, spliced, without = loss(lambda positions: []), loss(sae.splice), loss(none)
    if abs(without - plain) < 1e-6:
        raise ValueError(f"sae: the {baseline} baseline at {sae.site} changes nothing on these documents, so there is "
                         f"no loss to recover")
    return (without - spliced) / (without - plain)
