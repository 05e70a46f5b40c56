"""Taps: the one mechanism under `record` and `intervene`. Nothing else in the package touches a hook.

A **port** is a tensor of the forward pass that can be read and replaced: the input or output of a module, or one of
the five tensors inside attention. A **slot** says how one site is read from, and written into, the tensor of a port.
A **tap** is a function on the value of one site. While taps are active, every port they need has one hook:

    tensor of the port -> for each tap: value = read(tensor); new = tap(value); tensor = write(tensor, new) -> go on

A tap that returns the very tensor it was given writes nothing, so reading costs nothing and changes no bit.

Two sites are no tensor of the model: a head's result and the state `mid` of a sequential block. They are computed
beside the block output y and written as y + (new - old), so an untouched value again changes no bit.
"""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from . import attention, weights
from .batch import Chosen
from .families import absent
from .sites import Site, SiteError

ATTENTION_PORTS = ("q", "k", "v", "scores", "pattern")


@dataclass(frozen=True)
class Slot:
    """Where a site lives: read(tensor of port) -> value; write(tensor, new) -> tensor; positions lie along `axis`."""

    port: tuple
    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, Tensor], Tensor]
    axis: int = 1


@dataclass(frozen=True)
class Where:
    """What a tap knows about the value it is given: its columns start..end of the sequence lie along `axis`."""

    chosen: Chosen
    axis: int
    start: int
    end: int

    def mask(self, positions, value: Tensor) -> Tensor | None | bool:
        """Bool mask that broadcasts over `value`; None when all columns are chosen, False when none is."""
        mask = self.chosen.among(positions, self.start, self.end)
        if mask is None or mask is False:
            return mask
        shape = [mask.shape[0]] + [1] * (value.dim() - 1)
        shape[self.axis] = mask.shape[1]
        return mask.view(shape)


@dataclass(frozen=True)
class Rows:
    """The rows of a batch that one tap works on, and the prompts in them: a batch may hold many copies of a task."""

    index: slice
    chosen: Chosen


# A site, a function of its value and, where the tap works on some rows of the batch only, which.
Tap = tuple[Site, Callable[[Tensor, Where], Tensor]] | tuple[Site, Callable[[Tensor, Where], Tensor], Rows]


class Taps:
    """All active taps of one model and the hooks that serve them."""

    def __init__(self, model):
        self.model = model
        self.prompt_width = None  # set while generating without a cache, where a call cannot tell prompt from reply
        self._active: list[tuple[Slot, Callable, Rows | None]] = []
        self._by_port: dict[tuple, list[tuple[Slot, Callable, Rows | None]]] = {}
        self._handles: dict[tuple, object] = {}
        self._leave_attention = None
        self._prompt = None
        self._run: tuple | None = None
        self._kept: dict[tuple, Tensor] = {}

    @contextmanager
    def active(self, taps: Iterable[Tap]):
        """Serve these taps, after those already active. Sites are checked first: SiteError leaves nothing behind."""
        entries = [(resolve(self.model, site), tap, *(rows or [None])) for site, tap, *rows in taps]
        before = self._active
        try:
            self._install(before + entries)
            yield
        finally:
            self._install(before)

    # -- hooks ---------------------------------------------------------------------------------------------------

    def _install(self, active: list) -> None:
        self._active, self._by_port = active, {}
        for entry in active:
            self._by_port.setdefault(entry[0].port, []).append(entry)
        if not active:
            self._run, self._prompt = None, None
            self._kept.clear()
        wanted = self._hooks_for(self._by_port) if active else {}
        for port in set(self._handles) - set(wanted):
            self._handles.pop(port).remove()
        for port, register in wanted.items():
            if port not in self._handles:
                self._handles[port] = register()
        self._switch_attention(any(kind in ATTENTION_PORTS for kind, *_ in self._by_port))

    def _switch_attention(self, wanted: bool) -> None:
        if wanted and self._leave_attention is None:
            context = attention.tapped(self.model, self._tap_attention)
            context.__enter__()
            self._leave_attention = context
        elif not wanted and self._leave_attention is not None:
            context, self._leave_attention = self._leave_attention, None
            context.__exit__(None, None, None)

    def _hooks_for(self, ports) -> dict[tuple, Callable]:
        """Hook point -> function that registers it, for all ports in use."""
        model, family = self.model, self.model.family
        hooks = {("begin",): partial(model.body.register_forward_pre_hook, self._begin, with_kwargs=True)}

        def on_output(point, module):
            hooks[point] = partial(module.register_forward_hook, partial(self._output, point))

        def on_input(point, module):
            hooks[point] = partial(module.register_forward_pre_hook, partial(self._input, point))

        for kind, layer, *_ in ports:
            if kind in ("embed", "pos"):
                on_output((kind, None), model.hf.get_submodule(getattr(family, kind)))
            elif kind in ATTENTION_PORTS:
                pass
            elif kind == "x" and layer == model.n_layers:
                on_input((kind, layer), model.hf.get_submodule(family.final_norm))
            else:
                block = model.block(layer)
                if kind in ("x", "mid"):
                    on_input(("x", layer), block)
                if kind in ("z", "result"):
                    on_input(("z", layer), block.get_submodule(family.o))
                if kind in ("attn", "result") or (kind == "mid" and not family.attn_post_norm):
                    on_output(("attn", layer), block.get_submodule(family.o))
                if kind in ("attn.write", "mid") and family.attn_post_norm:
                    on_output(("attn.write", layer), block.get_submodule(family.attn_post_norm))
                if kind in ("gate", "up"):
                    on_output((kind, layer), block.get_submodule(getattr(family, kind)))
                if kind == "gate_up":
                    on_output((kind, layer), block.get_submodule(family.gate_up))
                if kind == "neurons":
                    on_input((kind, layer), block.get_submodule(family.mlp_out))
                if kind == "mlp":
                    on_output((kind, layer), block.get_submodule(family.mlp_out))
                if kind == "mlp.write":
                    on_output((kind, layer), block.get_submodule(family.mlp_post_norm))
        return hooks

    def _begin(self, module, args, kwargs) -> None:
        """Before every forward pass: which columns of which sequence is this, and what was its prompt?"""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            ids = kwargs["inputs_embeds"][..., 0]
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        total = past + ids.shape[1]
        mask = kwargs.get("attention_mask")
        if mask is None or mask.dim() != 2:
            mask = torch.ones(ids.shape[0], total, dtype=torch.long, device=ids.device)
        if past == 0:
            self._prompt = mask[:, : self.prompt_width or total]
        elif self._prompt is None or self._prompt.shape[0] != ids.shape[0]:
            self._prompt = mask[:, :past]
        self._run = (ids.shape[0], past, total, Chosen(self._prompt, mask))

    def _input(self, point, module, args):
        new = self._at(point, args[0])
        return None if new is args[0] else (new, *args[1:])

    def _output(self, point, module, args, output):
        new = self._at(point, output)
        return None if new is output else new

    # -- values --------------------------------------------------------------------------------------------------

    def _at(self, point, tensor: Tensor) -> Tensor:
        """Run the taps of one hook point. OPT's FFN works on [B * T, d]; everything here has the two axes apart."""
        rows, past, total, _ = self._run
        if tensor.dim() == 2:
            apart = tensor.view(-1, total - past, tensor.shape[-1])
            new = self._process(point, apart)
            return tensor if new is apart else new.flatten(0, 1)
        if tensor.shape[0] != rows and point[0] == "pos":  # position embeddings may come once for all rows
            tensor = tensor.expand(rows, -1, -1)
        kind, layer = point
        if kind == "attn":
            tensor = self._results(layer, tensor)
        new = self._process(point, tensor)
        if kind == "x" and ("mid", layer) in self._by_port:
            self._kept[point] = new
        if kind == "z" and any(port[:2] == ("result", layer) for port in self._by_port):
            self._kept[point] = new
        if ("mid", layer) in self._by_port and kind == ("attn.write" if self.model.family.attn_post_norm else "attn"):
            mid = self._kept.pop(("x", layer))[: len(new)] + new  # a partial run may leave its last rows out
            changed = self._process(("mid", layer), mid)
            new = new if changed is mid else new + (changed - mid)
        return new

    def _results(self, layer: int, output: Tensor) -> Tensor:
        """Taps on results z W_O, written into the block output as output + (new - old)."""
        heads = [port[2] for port in self._by_port if port[:2] == ("result", layer)]
        if not heads:
            return output
        z = self._kept.pop(("z", layer)).unflatten(-1, (self.model.n_heads, -1))
        W_O = weights.attention(self.model, layer).W_O
        changed = {}
        for head in sorted(h for h in heads if h is not None):
            old = z[:, :, head] @ W_O[head]
            new = self._process(("result", layer, head), old)
            if new is not old:
                changed[head] = new
                output = output + (new - old)
        if None in heads:
            old = torch.stack([changed.get(h, z[:, :, h] @ W_O[h]) for h in range(self.model.n_heads)], dim=2)
            new = self._process(("result", layer, None), old)
            output = output if new is old else output + (new - old).sum(2)
        return output

    def _tap_attention(self, layer: int, name: str, tensor: Tensor) -> Tensor:
        return self._process((name, layer), tensor)

    def _process(self, port, tensor: Tensor) -> Tensor:
        entries = self._by_port.get(port)
        if not entries:
            return tensor
        _, past, total, chosen = self._run
        # keys and values come with the cached past (a sliding window may have dropped its beginning)
        start = total - tensor.shape[1] if port[0] in ("k", "v") else past
        original = tensor
        for slot, tap, rows in entries:
            part = tensor if rows is None else tensor[rows.index]
            old = slot.read(part)
            new = tap(old, Where(chosen if rows is None else rows.chosen, slot.axis, start, total))
            if new is old:
                continue
            if rows is None:
                tensor = slot.write(tensor, new)
            else:
                tensor = tensor.clone() if tensor is original else tensor  # one copy for all the rows
                tensor[rows.index] = slot.write(part, new)
        return tensor


def resolve(model, site: Site) -> Slot:
    """The slot of a site in this model. Raises SiteError when the model has no such object, saying what it has."""
    _check(model, site)
    family, layer = model.family, site.layer
    if site.kind == "feature":
        return _feature_slot(model, site)
    if site.kind == "head":
        return _head_slot(model, site)
    if site.kind == "neuron":
        if site.part in ("gate", "up") and family.gate_up is not None:
            start = 0 if site.part == "gate" else model.d_ffn
            index = slice(start, start + model.d_ffn) if site.index is None else start + site.index
            return _slot(("gate_up", layer), (..., index))
        return _slot((site.part, layer), None if site.index is None else (..., site.index))
    if site.part == "write":
        has_post_norm = family.attn_post_norm if site.kind == "attn" else family.mlp_post_norm
        return _slot((f"{site.kind}.write" if has_post_norm else site.kind, layer))
    return _slot((site.kind, layer))


def _slot(port, index: tuple | None = None, axis: int = 1, heads: int | None = None) -> Slot:
    """A slot that is the tensor itself, or the part tensor[index]; `heads` first splits the last axis by head."""

    def split(tensor):
        return tensor if heads is None else tensor.unflatten(-1, (heads, -1))

    def join(tensor):
        return tensor if heads is None else tensor.flatten(-2)

    def read(tensor):
        return split(tensor) if index is None else split(tensor)[index]

    def write(tensor, new):
        if index is None:
            return join(new)
        whole = split(tensor).clone()
        whole[index] = new
        return join(whole)

    return Slot(port, read, write, axis)


def _head_slot(model, site: Site) -> Slot:
    layer, head, part = site.layer, site.index, site.part
    if part == "result":
        return _slot(("result", layer, head))
    if part == "z":
        return _slot(("z", layer), None if head is None else (slice(None), slice(None), head), heads=model.n_heads)
    if part in ("scores", "pattern"):
        return _slot((part, layer), axis=2) if head is None else _slot((part, layer), (slice(None), head))
    if head is not None and part in ("k", "v"):
        head = head // (model.n_heads // model.n_kv_heads)
    return _slot((part, layer), None if head is None else (slice(None), slice(None), head))


def _feature_slot(model, site: Site) -> Slot:
    """SAE features of the site that the SAE reads. Writing keeps the error term: x + (decode(new) - decode(old))."""
    sae = model.saes[site.sae]
    where = Site.parse(sae.site)
    base = resolve(model, where)
    if where.kind == "head" and where.index is None and where.part == "z":
        base = _slot(base.port)  # an SAE of z reads all heads side by side, [B, T, H * d_head]
    index = (...,) if site.index is None else (..., site.index)

    def read(tensor):
        return sae.encode(base.read(tensor))[index]

    def write(tensor, new):
        x = base.read(tensor)
        old_features = sae.encode(x)
        features = old_features.clone()
        features[index] = new
        return base.write(tensor, x + (sae.decode(features) - sae.decode(old_features)))

    return Slot(base.port, read, write, base.axis)


def _check(model, site: Site) -> None:
    family = model.family
    if site.kind == "logits":
        raise SiteError("'logits' is the model's output; use cache.logits, or the return value of model(prompts)")
    if site.kind == "feature":
        if site.sae not in model.saes:
            raise SiteError(
                f"site '{site}': no SAE is called {site.sae!r} (model.saes has {', '.join(model.saes) or 'none'}); "
                f"attach one with model.saes[{site.sae!r}] = sae"
            )
        return
    thing = site.part if site.kind in ("head", "neuron") else site.kind
    why = absent(family, model.config, thing)
    if why:
        raise SiteError(f"site '{site}' does not exist in {family.name}: {why}; mi.matrix() lists what does")
    highest = model.n_layers if site.kind == "x" else model.n_layers - 1
    if site.layer is not None and not 0 <= site.layer <= highest:
        raise SiteError(f"site '{site}': layer {site.layer} is out of range; {model.name} has 0 to {highest}")
    count, what = {"head": (model.n_heads, "heads"), "neuron": (model.d_ffn, "neurons")}.get(site.kind, (None, None))
    if site.index is not None and not 0 <= site.index < count:
        raise SiteError(f"site '{site}': {model.name} has {what} 0 to {count - 1} in every layer")
