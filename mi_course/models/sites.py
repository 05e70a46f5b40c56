"""Site: the address of one interpretable object, written short and read back from that string.

    grammar                    object (survey symbol)                                shape when recorded
    x4                         residual state x^4, input of block 4; x0 ... xL       [B, T, d]
    mid2                       state between attention and FFN of block 2            [B, T, d]
    attn2, mlp2                block output: sum of results + b_O; s W_out + b_out   [B, T, d]
    attn2.write, mlp2.write    what reaches the stream (differs only under post-norms)  [B, T, d]
    embed, pos                 token and position embedding as they enter x0         [B, T, d]
    L3H5                       result of head 5 in layer 3: z W_O (O7)               [B, T, d]
    L3H5.z .q .k .v            per-head states; q and k as the score multiplies them [B, T, d_head]
    L3H5.scores .pattern       before the mask and softmax; after (O6)               [B, T, T]
    L2N117                     neuron activation s_117 (O13)                         [B, T]
    L2N117.gate .up            its two pre-activations in a gated FFN                [B, T]
    z3 q3 k3 v3 result3        all heads of layer 3 (k3, v3: its key-value heads)    [B, T, H, ...]
    scores3 pattern3           all heads of layer 3                                  [B, H, T, T]
    neurons2 gate2 up2         all neurons of layer 2                                [B, T, d_ffn]
    <sae>F123, <sae>F*         feature 123, or all, of the SAE `model.saes["<sae>"]` [B, T], [B, T, d_SAE]
    logits                     the model's output; an end of edges only
    ...@-1, ...@3              the same at one position of the prompt: the position axis goes

Layers, heads, neurons and features count from 0. Positions count real tokens (never padding), negative ones from the
end of the prompt. Keys and values of a query head are those of its group: reading `L3H5.k` returns the group's key,
writing it changes the key for every query head of the group.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

WHOLE = {"x", "mid", "attn", "mlp", "embed", "pos", "logits"}
HEAD_PARTS = ("result", "z", "q", "k", "v", "scores", "pattern")
NEURON_PARTS = ("neurons", "gate", "up")


class SiteError(ValueError):
    """A site that cannot be parsed, or that this model does not have. The message gives the remedy."""


@dataclass(frozen=True)
class Site:
    """Address of one object. Make it with `Site.parse`, `Site.head` or `Site.neuron`; `str(site)` round-trips.

    kind: x mid attn mlp embed pos logits | head | neuron | feature
    part: for heads and neurons which state; for attn and mlp None or "write"
    index: head, neuron or feature; None means all of the layer
    position: one position of the prompt, or None
    sae: name of the dictionary, for features
    """

    kind: str
    layer: int | None = None
    index: int | None = None
    part: str | None = None
    position: int | None = None
    sae: str | None = None

    @classmethod
    def head(cls, layer: int, head: int | None, part: str = "result") -> "Site":
        """Head `head` of `layer` (None: all heads); part is result, z, q, k, v, scores or pattern."""
        if part not in HEAD_PARTS:
            raise SiteError(f"part {part!r} of a head does not exist; choose one of {', '.join(HEAD_PARTS)}")
        return cls("head", layer, head, part)

    @classmethod
    def neuron(cls, layer: int, neuron: int | None, part: str = "neurons") -> "Site":
        """Neuron `neuron` of `layer` (None: all); part is neurons (the activation), gate or up."""
        if part not in NEURON_PARTS:
            raise SiteError(f"part {part!r} of a neuron does not exist; choose one of {', '.join(NEURON_PARTS)}")
        return cls("neuron", layer, neuron, part)

    @classmethod
    def parse(cls, text: "str | Site") -> "Site":
        """Read a site from its string; a Site passes through. Raises SiteError with the grammar's examples."""
        if isinstance(text, Site):
            return text
        if not isinstance(text, str):
            raise SiteError(f"site {text!r} is a {type(text).__name__}; give a string such as 'x4' or 'L3H5.z'")
        return _parse_text(text)

    def at(self, position: int | None) -> "Site":
        """The same object at one position of the prompt."""
        return replace(self, position=position)

    def __str__(self) -> str:
        return self._body() + ("" if self.position is None else f"@{self.position}")

    def _body(self) -> str:
        if self.kind == "feature":
            return f"{self.sae}F{'*' if self.index is None else self.index}"
        if self.kind == "head" and self.index is not None:
            return f"L{self.layer}H{self.index}" + ("" if self.part == "result" else f".{self.part}")
        if self.kind == "neuron" and self.index is not None:
            return f"L{self.layer}N{self.index}" + ("" if self.part == "neurons" else f".{self.part}")
        if self.kind in ("head", "neuron"):
            return f"{self.part}{self.layer}"
        return self.kind + ("" if self.layer is None else str(self.layer)) + (f".{self.part}" if self.part else "")


_PATTERNS = [
    (r"(embed|pos|logits)", lambda kind: Site(kind)),
    (r"(x|mid)(\d+)", lambda kind, layer: Site(kind, int(layer))),
    (r"(attn|mlp)(\d+)(?:\.(write))?", lambda kind, layer, part: Site(kind, int(layer), part=part)),
    (
        rf"L(\d+)H(\d+)(?:\.({'|'.join(HEAD_PARTS)}))?",
        lambda layer, head, part: Site("head", int(layer), int(head), part or "result"),
    ),
    (
        r"L(\d+)N(\d+)(?:\.(gate|up))?",
        lambda layer, neuron, part: Site("neuron", int(layer), int(neuron), part or "neurons"),
    ),
    (rf"({'|'.join(HEAD_PARTS)})(\d+)", lambda part, layer: Site("head", int(layer), None, part)),
    (rf"({'|'.join(NEURON_PARTS)})(\d+)", lambda part, layer: Site("neuron", int(layer), None, part)),
    (
        r"([A-Za-z_][\w.\-]*?)F(\d+|\*)",
        lambda sae, index: Site("feature", None, None if index == "*" else int(index), sae=sae),
    ),
]
_PATTERNS = [(re.compile(pattern), make) for pattern, make in _PATTERNS]


@lru_cache(maxsize=100_000)  # sweeps name the same sites again and again
def _parse_text(text: str) -> Site:
    body, at, position = text.strip().partition("@")
    if at and not re.fullmatch(r"-?\d+", position):
        raise SiteError(f"site {text!r}: the position after '@' must be one integer, as in 'x4@-1'")
    site = _parse_body(body)
    if site is None:
        raise SiteError(
            f"site {text!r} is not in the grammar; write for instance x4, mid2, attn2, mlp2, embed, pos, L3H5, "
            "L3H5.z, L3H5.pattern, L2N117, z3, pattern3, neurons2, <sae>F123, or with a position as in x4@-1"
        )
    return replace(site, position=int(position)) if at else site


def _parse_body(body: str) -> Site | None:
    for pattern, make in _PATTERNS:
        found = pattern.fullmatch(body)
        if found:
            return make(*found.groups())
    return None


@dataclass(frozen=True)
class Edge:
    """What one object sends to another: `L0H1->L3H5.q`, `mlp2->logits`. The receiver is the input of that object."""

    sender: Site
    receiver: Site

    @classmethod
    def parse(cls, text: "str | Edge") -> "Edge":
        """Read an edge from `sender->receiver`. Raises SiteError."""
        if isinstance(text, Edge):
            return text
        sender, arrow, receiver = str(text).partition("->")
        if not arrow:
            raise SiteError(f"edge {text!r} has no arrow; write sender->receiver, as in 'L0H1->L3H5.q'")
        return cls(Site.parse(sender), Site.parse(receiver))

    def __str__(self) -> str:
        return f"{self.sender}->{self.receiver}"


def parse_sites(sites) -> list[Site]:
    """A site, a string or a list of either, as a list of Sites. Raises SiteError, also for an empty list."""
    if isinstance(sites, (str, Site)):
        sites = [sites]
    parsed = [Site.parse(site) for site in sites]
    if not parsed:
        raise SiteError("sites is empty; name at least one object, for instance ['x4', 'L3H5.z']")
    return parsed
