"""Direct logit attribution (survey section 3.5, L5c to L5e): what each object adds straight to the answer's logit.

    split_logit      a logit, or the difference of two, as an exact sum over objects; one number per prompt
    direct_effects   the same for chosen sites, averaged over a task: Scores

    value = (write, centred) * gain * frozen scale . (W_U[:, target] - W_U[:, foil])      (audit A2)

Only the last position's writes reach the last logit directly, so z, neurons and block outputs are recorded there and
nowhere else, and heads are read as z (W_O u) without forming their results: the cost is one forward. The definition,
with every write of every position, is `objects.decompose.direct_logit_attribution`; the tests compare the two.

"Direct" leaves out all that later layers make of a write. A head that moves information for a later head, or works at
an earlier token, has its effect there and about 0 here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mi_course.models import Site, SiteError, record
from mi_course.models import weights as parts
from mi_course.objects import Scores, Task
from mi_course.objects.decompose import LogitAttribution, _ids

UNITS = ("blocks", "heads", "neurons")


@torch.no_grad()
def split_logit(model, prompts, tokens, foils=None, units: str = "heads", rest: bool = True) -> LogitAttribution:
    """logit(token) - logit(foil) at the last token of each prompt, before any soft-cap, as a sum over objects.

    units says how finely; the entries always sum to the logit.
        "blocks"     embed, pos, attn0, mlp0, attn1, ...
        "heads"      embed, pos, L0H0, ..., attn0.bias (b_O), mlp0, ...
        "neurons"    embed, pos, attn0, L0N0, ..., mlp0.bias (b_out), ...
        an SAE's name, as in `model.saes`: its features ("saeF7"), "sae.error" (what it fails to reconstruct),
                     "sae.bias" (b_dec), and the blocks that it does not cover
    "bias" is what the final norm's bias and the unembedding's bias add.
    tokens, foils: one per prompt, text or ids. Active interventions apply. Cost: one forward. rest: False leaves out
    what these units do not take apart (embedding, other blocks), and with it the recording; then the sum is not whole.
    """
    batch = model.tokenize(prompts)
    sae = model.saes.get(units)
    if sae is None and units not in UNITS:
        known = ", ".join([*UNITS, *model.saes])
        raise ValueError(f"units={units!r} is unknown; choose one of {known}, or attach an SAE to model.saes")
    where = Site.parse(sae.site) if sae is not None else None
    sites = _sites(model, units, where, rest)
    cache = record(model, batch, sites, logits=False)
    final = cache[f"x{model.n_layers}@-1"]
    reader, bias = answer_reader(model, final, tokens, foils, len(batch))
    names, values = [], []

    def put(name: str, value: Tensor) -> None:
        """One entry [B], or with `name` ending in * one for each column of value [B, n]."""
        columns = value.T if value.dim() == 2 else value[None]
        names.extend([name[:-1] + str(i) for i in range(len(columns))] if name.endswith("*") else [name])
        values.append(columns)

    def put_whole(name: str, site: str) -> None:
        if rest:
            put(name, (cache[f"{site}@-1"] * reader).sum(-1))

    first = _first_block(where)  # an SAE of x^l stands for the embedding and all blocks below l
    if first is None:
        put_whole("embed", "embed")
        if model.family.pos is not None:
            put_whole("pos", "pos")
    else:
        _features(model, sae, units, where, cache, reader, put)
    for layer in range(model.n_layers):
        for branch in ("attn", "mlp"):
            if first is not None and (layer, branch) < first:
                continue
            if sae is not None and first is None and (layer, branch) == (where.layer, _branch(where)):
                _features(model, sae, units, where, cache, reader, put)
            elif units == "heads" and branch == "attn":
                u = through_post_norm(model, layer, "attn", cache, reader)
                W_O, b_O = parts.attention_output(model, layer)
                put(f"L{layer}H*", _heads(cache[f"z{layer}@-1"], W_O, u))
                put(f"attn{layer}.bias", u @ b_O)
            elif units == "neurons" and branch == "mlp":
                w, u = parts.ffn(model, layer), through_post_norm(model, layer, "mlp", cache, reader)
                put(f"L{layer}N*", cache[f"neurons{layer}@-1"] * (u @ w.W_out.T))
                put(f"mlp{layer}.bias", u @ w.b_out)
            else:
                put_whole(f"{branch}{layer}", f"{branch}{layer}.write")
    put("bias", bias)
    return LogitAttribution(names, torch.cat(values).float(), (final * reader).sum(-1) + bias)


def direct_effects(model, task: Task, sites: Sequence[str] | None = None, on: str = "clean") -> Scores:
    """Mean over the task's items of what each site adds directly to logit(target) - logit(foil): Scores, "magnitude".

    sites: heads ("L3H5"; "L3H5.z" is the same object), blocks ("attn2", "mlp2", "embed", "pos"), neurons ("L2N117")
    and features ("saeF7"), in any mixture; default all heads. Without foils it is the logit of the target alone.
    Positive: pushes towards the target. Removing the site takes this much away, if nothing downstream reads it and the
    final norm's scale stays: predicted ablation effect = minus the score.
    """
    started = time.perf_counter()
    task.validate(model)
    if sites is None:
        sites = [f"L{layer}H{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
    names = [str(site) for site in sites]
    units = {name: _units_of(Site.parse(name)) for name in names}
    batch = model.tokenize(task.prompts if on == "clean" else task.corrupted)
    foils = None if task.foils is None else task.foil_ids(model).tolist()
    found = {}
    kinds = dict.fromkeys(units.values())
    for kind in kinds:
        split = split_logit(model, batch, task.target_ids(model).tolist(), foils, kind, rest=kind == "blocks")
        found[kind] = dict(zip(split.names, split.values.mean(1).tolist(), strict=True))
    values = []
    for name in names:
        entry = found[units[name]].get(name.removesuffix(".z").removesuffix(".write"))
        if entry is None:
            raise SiteError(
                f"site '{name}' has no direct effect of its own in {model.name}; its parts are, for "
                f"instance, {', '.join(list(found[units[name]])[:4])}"
            )
        values.append(entry)
    return Scores(
        names,
        values,
        "direct logit attribution",
        "magnitude",
        forwards=len(batch) * len(kinds),
        seconds=time.perf_counter() - started,
    )


def answer_reader(model, final: Tensor, tokens, foils, n: int) -> tuple[Tensor, Tensor]:
    """(reader [B, d], bias [B]) with logit(token) - logit(foil) = write . reader, summed over writes, + bias.

    final [B, d]: the states x^L whose norm scale is frozen. Only the columns of W_U that are asked for are touched.
    """
    u = parts.unembedding(model)
    token = _ids(tokens, "tokens", n, model)
    column, bias = u.W_U.T[token], u.b_U[token]
    if foils is not None:
        foil = _ids(foils, "foils", n, model)
        column, bias = column - u.W_U.T[foil], bias - u.b_U[foil]
    return u.norm.centre(u.norm.gain * column) * u.norm.scale(final), column @ u.norm.bias + bias


def through_post_norm(model, layer: int, branch: str, cache, reader: Tensor) -> Tensor:
    """The reader [B, d] of a part of a block output: the post-norm's gain and frozen scale folded in, where there is
    one (Gemma 2). Needs `<branch><layer>@-1` in the cache then."""
    post = parts.post_norm(model, layer, branch)
    return reader if post is None else reader * post.gain * post.scale(cache[f"{branch}{layer}@-1"])


def _heads(z: Tensor, W_O: Tensor, reader: Tensor) -> Tensor:
    """z [B, H, d_head], reader [B, d] -> [B, H]: (z W_O) . reader, without forming z W_O."""
    return (z * (reader @ W_O.flatten(0, 1).T).view_as(z)).sum(-1)


def _sites(model, units: str, where: Site | None, rest: bool) -> list[str]:
    """What has to be recorded, at the last position."""
    sites = [f"x{model.n_layers}"]
    if rest:
        sites += ["embed"] + ["pos"] * (model.family.pos is not None)
    for layer in range(model.n_layers):
        for branch, split_by, state in (("attn", "heads", "z"), ("mlp", "neurons", "neurons")):
            if units == split_by:
                sites.append(f"{state}{layer}")
            elif rest:
                sites.append(f"{branch}{layer}.write")
            inside = where is not None and where.layer == layer and where.kind not in ("x", "mid")
            if (units == split_by or inside) and parts.post_norm(model, layer, branch) is not None:
                sites.append(f"{branch}{layer}")  # its scale is needed
    if where is not None:
        sites.append(str(where))
    return list(dict.fromkeys(f"{site}@-1" for site in sites))


def _first_block(where: Site | None) -> tuple[int, str] | None:
    """(layer, branch) of the first write that an SAE of a residual state does not cover; None for other SAEs."""
    if where is None or where.kind not in ("x", "mid"):
        return None
    return (where.layer, "attn" if where.kind == "x" else "mlp")


def _branch(where: Site) -> str:
    """Which block output an SAE takes apart."""
    if where.kind in ("attn", "mlp"):
        return where.kind
    if where.kind == "head" and where.part == "z" and where.index is None:
        return "attn"
    if where.kind == "neuron" and where.part == "neurons" and where.index is None:
        return "mlp"
    raise SiteError(
        f"units: an SAE at '{where}' writes nothing to the stream by itself; use one of x, mid, attn, mlp, neurons or z"
    )


def _features(model, sae, name: str, where: Site, cache, reader: Tensor, put) -> None:
    """Entries of an SAE: its features, its error, its b_dec, and the bias of the block where it reads inside one."""
    value = cache[f"{where}@-1"].flatten(1)  # z: the heads side by side
    u = reader
    if where.kind not in ("x", "mid"):
        branch = _branch(where)
        inside = where.kind in ("head", "neuron")
        if where.part != "write":
            u = through_post_norm(model, where.layer, branch, cache, reader)
        if inside and branch == "attn":
            W_O, b_O = parts.attention_output(model, where.layer)
            put(f"attn{where.layer}.bias", u @ b_O)
            u = u @ W_O.flatten(0, 1).T
        elif inside:
            w = parts.ffn(model, where.layer)
            put(f"mlp{where.layer}.bias", u @ w.b_out)
            u = u @ w.W_out.T
    a = sae.encode(value)
    put(f"{name}F*", a * (u @ sae.W_dec.T))
    put(f"{name}.error", ((value - sae.decode(a)) * u).sum(-1))
    put(f"{name}.bias", u @ sae.b_dec)


def _units_of(site: Site) -> str:
    """The split in which a site is an entry of its own."""
    if site.position is not None:
        raise SiteError(f"site '{site}': a direct effect is that of the last token; leave the position out")
    if site.kind == "head" and site.index is not None and site.part in ("result", "z"):
        return "heads"
    if site.kind == "neuron" and site.index is not None and site.part == "neurons":
        return "neurons"
    if site.kind == "feature" and site.index is not None:
        return site.sae
    if site.kind in ("attn", "mlp", "embed", "pos"):
        return "blocks"
    raise SiteError(
        f"site '{site}' writes nothing by itself; choose heads (L3H5), blocks (attn2, mlp2, embed, pos), "
        "neurons (L2N117) or features (saeF7)"
    )
