"""record: run a model once and keep the activations of the named sites, nothing else."""

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .batch import Batch, columns_of
from .hooks import Where
from .sites import Site, parse_sites


class Cache(Mapping):
    """What one forward pass left at the recorded sites. `cache["x4"]`, `cache["L3H5.z"]`: shapes in `models.sites`.

    logits [B, T, V], or None where they were left out; batch: the padded prompts, whose columns are the position axis
    of every entry.
    """

    def __init__(self, values: dict[str, Tensor], logits: Tensor | None, batch: Batch):
        self._values, self.logits, self.batch = values, logits, batch

    def __getitem__(self, site: str | Site) -> Tensor:
        key = str(Site.parse(site))
        if key not in self._values:
            raise KeyError(f"site '{key}' was not recorded; name it in record(). Recorded: {', '.join(self._values)}")
        return self._values[key]

    def __contains__(self, site) -> bool:
        return str(Site.parse(site)) in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "Cache(" + ", ".join(f"{key}: {tuple(value.shape)}" for key, value in self._values.items()) + ")"


def record(model, prompts, sites, grad: bool = False, logits: bool = True) -> Cache:
    """Run `prompts` and keep the activations of `sites`; active interventions apply, and what is kept is what flows on.

    prompts: anything `model.tokenize` takes, or a Batch.  sites: strings or Sites, see `models.sites` for shapes.
    grad: keep the graph, so that `torch.autograd.grad(metric(cache.logits), cache["x4"])` is the total derivative.
    logits: False leaves out what the sites do not need: the blocks above them, and the unembedding.
    Returns a Cache. Raises SiteError for a site that the model does not have.
    """
    batch, wanted = model.tokenize(prompts), parse_sites(sites)
    values: dict[str, Tensor] = {}
    rows = torch.arange(len(batch), device=batch.mask.device)
    places = {p: (rows, columns_of(batch.mask, p)[:, 0]) for p in {site.position for site in wanted} - {None}}
    taps = [(site.at(None), _Recorder(site, values, places, grad)) for site in dict.fromkeys(wanted)]
    with model.taps.active(taps):
        if logits:
            output = model(batch, grad=grad)
        else:
            with model.without_blocks(range(max(_blocks_needed(model, site) for site in wanted), model.n_layers)):
                model.states(batch, grad=grad)
            output = None
    if not grad:
        _let_go(values)
    return Cache({str(site): values[str(site)] for site in wanted}, output, batch)


def _blocks_needed(model, site: Site) -> int:
    """How many blocks have to run until the site has its value."""
    if site.kind == "feature":
        return _blocks_needed(model, Site.parse(model.saes[site.sae].site))
    if site.layer is None:  # the embeddings
        return 0
    return site.layer if site.kind == "x" else site.layer + 1


def _let_go(values: dict[str, Tensor]) -> None:
    """Copy views of tensors that were not recorded whole, so that only the named sites stay in memory."""
    recorded = Counter()
    for value in values.values():
        recorded[value.untyped_storage().data_ptr()] += value.nbytes
    for key, value in values.items():
        storage = value.untyped_storage()
        if recorded[storage.data_ptr()] < storage.nbytes():
            values[key] = value.clone()


class _Recorder:
    """Keeps the value of one site. With grad, the kept tensor is put back in place of the one that flowed."""

    def __init__(self, site: Site, values: dict, places: dict[int, tuple], grad: bool):
        self.key, self.position, self.values, self.places, self.grad = str(site), site.position, values, places, grad

    def __call__(self, value: Tensor, where: Where) -> Tensor:
        index = (slice(None),) if self.position is None else self._index(where.axis, value.device)
        if not self.grad:
            self.values[self.key] = value[index].detach()
            return value
        kept = value[index].clone() if value.requires_grad else value[index].clone().requires_grad_()
        self.values[self.key] = kept
        if self.position is None:
            return kept
        new = value.clone()
        new[index] = kept
        return new

    def _index(self, axis: int, device) -> tuple:
        rows, columns = (index.to(device) for index in self.places[self.position])
        return (rows, columns) if axis == 1 else (rows, slice(None), columns)
