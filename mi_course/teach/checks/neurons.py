"""Chapter 03, FFN neurons as memories: checks of its exercises.

Key and value of a neuron, the FFN as a sum over neurons, the gated form, a table read off weights, what a neuron adds
to an answer, knocking neurons out, and neurons as detectors. The functions without an underscore are the references
that the chapter uses while an exercise is open.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as nn

from ..exercises import NotYet, Probe, exercise

if TYPE_CHECKING:
    from mi_course.models import Model
    from mi_course.models.weights import FFN
    from mi_course.objects import Task


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- 1. key and value ------------------------------------------------------------------------------------------------


def key_and_value(mlp_in: torch.nn.Module, mlp_out: torch.nn.Module, j: int) -> tuple[Tensor, Tensor]:
    """Key and value of neuron j, [d] each: column j of W_in [d, d_ffn] and row j of W_out [d_ffn, d] (audit A9).

    The modules are `nn.Linear`, which stores its matrix transposed ([out, in]), or GPT-2's `Conv1D` ([in, out]).
    """
    W_in, W_out = (m.weight.T if isinstance(m, torch.nn.Linear) else m.weight for m in (mlp_in, mlp_out))
    return W_in[:, j], W_out[j]


@exercise(
    "neurons.key_and_value",
    reference=key_and_value,
    hints=(
        "The key is multiplied with the state, and the value is added to the state, so both have as many numbers as "
        "the state, d. Which slices of W_in [d, d_ffn] and of W_out [d_ffn, d] have that length?",
        "`nn.Linear` computes x W^T + b: what it calls `weight` is [out, in], the transpose of our W. `Conv1D` keeps "
        "W as it is. The shape does not tell you which one you have when d = d_ffn, the type of the module does.",
        "Sketch: W_in = mlp_in.weight, transposed if isinstance(mlp_in, torch.nn.Linear); W_out in the same way; "
        "return column j of W_in and row j of W_out.",
    ),
    expected="Two vectors [d]. The key is what the neuron reads: x . key + bias is its pre-activation. The value is "
    "what it writes.",
)
def _check_key_and_value() -> Iterator[Probe | Callable]:
    W_in = torch.tensor([[0.0, 1, 2, 3, 4], [10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])
    W_out = torch.arange(15.0).view(5, 3) + 100
    key, value = W_in[:, 1], W_out[1]
    yield Probe(
        tried="two Conv1D modules with W_in of shape [3, 5] and W_out of shape [5, 3] (d = 3, d_ffn = 5), j = 1",
        args=(_conv1d(W_in), _conv1d(W_out), 1),
        expected=(key, value),
        diagnose={
            "This is a row of W_in and a column of W_out, as the survey's text says. They have length d_ffn = 5; what "
            "reads and writes the state must have length d = 3.": (W_in[1], W_out[:, 1]),
            "The key is right. The value is a row of W_out: what the neuron adds to the state.": lambda got: (
                torch.equal(got[0], key) and not torch.equal(got[1], value)
            ),
            "The value is right. The key is a column of W_in: what is multiplied with the state.": lambda got: (
                torch.equal(got[1], value) and not torch.equal(got[0], key)
            ),
            "Key and value are swapped: return (key, value).": (value, key),
            "The neurons are counted from 0: this is another neuron.": lambda got: any(
                torch.equal(got[0], W_in[:, i]) for i in (0, 2)
            ),
        },
    )
    yield Probe(
        tried="the same neuron stored in two nn.Linear modules, whose weights are [out, in]",
        args=(_linear(W_in), _linear(W_out), 1),
        expected=(key, value),
        diagnose={
            "nn.Linear keeps its matrix transposed: its weight is [out, in]. Here a column of W_in is a row of the "
            "weight.": lambda got: len(got[0]) == 5 or len(got[1]) == 5,
        },
    )
    square_in, square_out = _random(4, 4), _random(4, 4, seed=1)
    for make, other in ((_linear, "Conv1D"), (_conv1d, "nn.Linear")):
        yield Probe(
            tried=f"{'nn.Linear' if make is _linear else 'Conv1D'} modules with d = d_ffn = 4, j = 2",
            args=(make(square_in), make(square_out), 2),
            expected=(square_in[:, 2], square_out[2]),
            diagnose={
                f"These modules were read as if they were {other}. With d = d_ffn the shape cannot tell you the "
                "storage; ask for the type: isinstance(module, torch.nn.Linear).": (square_in[2], square_out[:, 2]),
            },
        )

    def what_the_neuron_does(answer: Callable) -> None:
        """x . key + bias, and the value, against the modules themselves, for every neuron of a random FFN"""
        mlp_in, mlp_out, x = _linear(_random(6, 9)), _linear(_random(9, 6)), _random(5, 6, seed=2)
        pre, b_out = mlp_in(x) - mlp_in.bias, mlp_out.bias
        for j in range(9):
            key, value = answer(mlp_in, mlp_out, j)
            if not torch.allclose(x @ key, pre[:, j], atol=1e-4):
                raise NotYet(
                    answer.tried, f"x . key + bias gives the pre-activation of neuron {j}", likely="A wrong key."
                )
            if not torch.allclose(value + b_out, mlp_out(torch.eye(9)[j]), atol=1e-4):
                raise NotYet(answer.tried, f"neuron {j}, alone on with 1, writes its value", likely="A wrong value.")

    yield what_the_neuron_does


def _conv1d(W: Tensor) -> torch.nn.Module:
    from transformers.pytorch_utils import Conv1D

    module = Conv1D(W.shape[1], W.shape[0])
    module.weight.data, module.bias.data = W.clone(), _random(W.shape[1], seed=7)
    return module.requires_grad_(False)


def _linear(W: Tensor) -> torch.nn.Module:
    module = torch.nn.Linear(W.shape[0], W.shape[1])
    module.weight.data, module.bias.data = W.T.clone(), _random(W.shape[1], seed=7)
    return module.requires_grad_(False)


# --- 2. a sum over neurons -------------------------------------------------------------------------------------------


def partial_output(x: Tensor, ffn: FFN, keep: Tensor) -> Tensor:
    """What an ungated FFN writes when only the neurons in `keep` are on: x [..., d], keep bool [d_ffn] -> [..., d].

    sum over kept j of s_j v_j, plus b_out, with s = act(x W_in + b_in) and v_j row j of W_out (Eq. 6 with its biases).
    """
    s = ffn.act(x @ ffn.W_in + ffn.b_in)
    return (s * keep) @ ffn.W_out + ffn.b_out


@exercise(
    "neurons.partial_output",
    reference=partial_output,
    hints=(
        "First the activations of all neurons, s = act(x W_in + b_in). Then each kept neuron adds s_j times its value. "
        "What does the FFN write when no neuron is on at all?",
        "A matrix product s @ W_out is that sum over all neurons. A neuron is switched off by setting its activation "
        "s_j to 0: multiply s by `keep`. b_out belongs to no neuron and is added once.",
        "Sketch: s = ffn.act(x @ W_in + b_in); s = s times keep; return s @ W_out + b_out.",
    ),
    expected="With all neurons kept, exactly what the FFN writes. With none, b_out.",
)
def _check_partial_output() -> Iterator[Probe]:
    x, keep = torch.tensor([[1.0, 2.0]]), torch.tensor([True, False, True])
    W_in, b_in = torch.tensor([[1.0, 0, 1], [0, 1, -1]]), torch.tensor([1.0, 1.0, 0.5])
    W_out, b_out = torch.tensor([[1.0, 0], [0, 1], [5, 5]]), torch.tensor([10.0, 20.0])
    ffn = _ffn(W_in, b_in, W_out, b_out, torch.relu)
    yield Probe(
        tried="x = [1, 2] and three neurons with pre-activations 2, 3 and -0.5 (ReLU); the first and the third are "
        "kept; values [1, 0], [0, 1], [5, 5]; b_out = [10, 20]",
        args=(x, ffn, keep),
        expected=torch.tensor([[12.0, 20.0]]),
        means="2 [1, 0] + 0 [5, 5] + [10, 20] = [12, 20]",
        diagnose={
            "b_out is missing. It belongs to no neuron and is always written.": torch.tensor([[2.0, 0.0]]),
            "b_out was added once for each neuron; it is added once.": lambda got: any(
                torch.allclose(got, torch.tensor([[2.0, 0.0]]) + n * b_out) for n in (2, 3)
            ),
            "All neurons were summed: those outside `keep` must be left out.": torch.tensor([[12.0, 23.0]]),
            "The wrong ones were left out: `keep` is True for the neurons that stay.": torch.tensor([[10.0, 23.0]]),
            "The pre-activation was used. s is what comes after the activation function.": torch.tensor([[9.5, 17.5]]),
            "b_in is missing: s = act(x W_in + b_in).": torch.tensor([[11.0, 20.0]]),
            "The activation function was applied to the output; it acts on each neuron, before W_out.": lambda got: (
                torch.allclose(got, torch.tensor([[9.5, 17.5]]).relu(), atol=1e-4)
            ),
        },
    )
    x, keep = _random(2, 3, 4), torch.tensor([True, False, False, True])
    parts = [_random(4, 4, seed=i) for i in (1, 2)]
    ffn = _ffn(parts[0], _random(4, seed=3), parts[1], _random(4, seed=4), nn.softplus)
    pre = x @ ffn.W_in + ffn.b_in
    s = nn.softplus(pre)
    right = torch.einsum("bjn,nd->bjd", s[..., keep], ffn.W_out[keep]) + ffn.b_out
    yield Probe(
        tried="x of shape [2, 3, 4] with d = d_ffn = 4 and softplus, an activation function that is not 0 at 0",
        args=(x, ffn, keep),
        expected=right,
        diagnose={
            "The neurons were switched off before the activation function, which turns 0 into softplus(0) = 0.69. Set "
            "s_j to 0, after it.": nn.softplus(pre * keep) @ ffn.W_out + ffn.b_out,
            "W_in was transposed. Key j is column j of W_in.": (nn.softplus(x @ ffn.W_in.T + ffn.b_in) * keep)
            @ ffn.W_out
            + ffn.b_out,
            "W_out was transposed. Value j is row j of W_out.": (s * keep) @ ffn.W_out.T + ffn.b_out,
            "`keep` was applied to the dimensions of the output; it chooses neurons.": (s @ ffn.W_out + ffn.b_out)
            * keep,
            "The sum runs over the wrong axis: add up over the neurons, and keep batch and position.": lambda got: (
                got.shape != right.shape
            ),
        },
    )
    yield Probe(
        tried="no neuron kept",
        args=(x, ffn, torch.zeros(4, dtype=torch.bool)),
        expected=ffn.b_out.expand(2, 3, 4),
        means="b_out at every position",
        diagnose={"With no neuron on, b_out is still written.": torch.zeros(2, 3, 4)},
    )
    wide = _ffn(_random(4, 9), _random(9, seed=1), _random(9, 4, seed=2), _random(4, seed=3), nn.gelu)
    yield Probe(
        tried="x of shape [4], nine neurons with GELU, all kept",
        args=(x[0, 0], wide, torch.ones(9, dtype=torch.bool)),
        expected=nn.linear(nn.gelu(nn.linear(x[0, 0], wide.W_in.T, wide.b_in)), wide.W_out.T, wide.b_out),
    )


def _ffn(W_in: Tensor, b_in: Tensor, W_out: Tensor, b_out: Tensor, act: Callable) -> FFN:
    from mi_course.models.weights import FFN

    return FFN(W_in=W_in, b_in=b_in, W_gate=None, b_gate=None, W_up=None, b_up=None, W_out=W_out, b_out=b_out, act=act)


# --- 3. two keys -----------------------------------------------------------------------------------------------------


def gated_activation(x: Tensor, ffn: FFN) -> Tensor:
    """Activations of a gated FFN: s = act(x W_gate + b_gate) * (x W_up + b_up); [..., d] -> [..., d_ffn] (audit A8)."""
    return ffn.act(x @ ffn.W_gate + ffn.b_gate) * (x @ ffn.W_up + ffn.b_up)


@exercise(
    "neurons.gated_activation",
    reference=gated_activation,
    hints=(
        "Each neuron reads the state twice, with two keys. One reading decides whether it is on, the other how much it "
        "writes, and with which sign. What is done with the two numbers?",
        "Only the gate goes through the activation function. The product is neuron by neuron, so it is `*`, not `@`.",
        "Sketch: gate = ffn.act(x @ W_gate + b_gate); up = x @ W_up + b_up; return gate * up.",
    ),
    expected="A tensor [..., d_ffn], of both signs: a negative up reading turns the neuron's value round.",
)
def _check_gated_activation() -> Iterator[Probe]:
    x = torch.tensor([[1.0, 2.0]])
    ffn = _gated([[1.0, -1], [1, 0]], [[0.0, 1], [-1, 3]], zeros=True, act=torch.relu)
    yield Probe(
        tried="x = [1, 2]; two neurons with gate readings 3 and -1, up readings -2 and 7; ReLU",
        args=(x, ffn),
        expected=torch.tensor([[-6.0, 0.0]]),
        means="relu(3) * (-2) = -6 and relu(-1) * 7 = 0",
        diagnose={
            "Gate and up are swapped: the activation function belongs to the gate.": torch.tensor([[0.0, -7.0]]),
            "The activation function is missing.": torch.tensor([[-6.0, -7.0]]),
            "This is the gate alone.": torch.tensor([[3.0, 0.0]]),
            "This is the up reading alone.": torch.tensor([[-2.0, 7.0]]),
            "The two were added. The gate multiplies the up reading.": torch.tensor([[1.0, 7.0]]),
            "The sign was lost. In a gated FFN an activation may be negative.": torch.tensor([[6.0, 0.0]]),
            "No negative activation is left: the activation function also hit the up reading, or the product. It "
            "belongs to the gate alone.": torch.zeros(1, 2),
        },
    )
    x = _random(2, 3, 4)
    ffn = _gated(_random(4, 4, seed=1), _random(4, 4, seed=2), zeros=False, act=nn.silu)
    gate, up = x @ ffn.W_gate + ffn.b_gate, x @ ffn.W_up + ffn.b_up
    yield Probe(
        tried="x of shape [2, 3, 4] with d = d_ffn = 4, SiLU, and biases",
        args=(x, ffn),
        expected=nn.silu(gate) * up,
        diagnose={
            "Gate and up are swapped: the activation function belongs to the gate.": gate * nn.silu(up),
            "The activation function hit both readings; it belongs to the gate alone.": nn.silu(gate) * nn.silu(up),
            "The activation function was applied to the product; it belongs to the gate alone.": nn.silu(gate * up),
            "The biases are missing.": nn.silu(x @ ffn.W_gate) * (x @ ffn.W_up),
            "A sigmoid was used in place of the model's own activation function, ffn.act.": torch.sigmoid(gate) * up,
            "The matrices were transposed: keys are columns.": nn.silu(x @ ffn.W_gate.T + ffn.b_gate)
            * (x @ ffn.W_up.T + ffn.b_up),
        },
    )
    wide = _gated(_random(4, 7, seed=3), _random(4, 7, seed=4), zeros=False, act=torch.tanh)
    yield Probe(
        tried="x of shape [4], seven neurons, another activation function (tanh)",
        args=(x[0, 0], wide),
        expected=torch.tanh(nn.linear(x[0, 0], wide.W_gate.T, wide.b_gate))
        * nn.linear(x[0, 0], wide.W_up.T, wide.b_up),
    )


def _gated(W_gate, W_up, zeros: bool, act: Callable) -> FFN:
    from mi_course.models.weights import FFN

    W_gate, W_up = torch.as_tensor(W_gate), torch.as_tensor(W_up)
    d, width = W_gate.shape
    b_gate, b_up = (torch.zeros(width) if zeros else _random(width, seed=seed) for seed in (8, 9))
    return FFN(None, None, W_gate, b_gate, W_up, b_up, W_out=_random(width, d, seed=10), b_out=torch.zeros(d), act=act)


# --- 4. a table in the weights ---------------------------------------------------------------------------------------


def read_memory(keys: Tensor, values: Tensor, E: Tensor, U: Tensor) -> tuple[Tensor, Tensor]:
    """For every neuron the token that its key answers to most, and the token that its value promotes most: ([m], [m]).

    keys, values [m, d]; E [V, d], what each token looks like to a key; U [d, V], what reads a value as tokens.
    """
    return (keys @ E.T).argmax(-1), (values @ U).argmax(-1)


@exercise(
    "neurons.read_memory",
    reference=read_memory,
    hints=(
        "A key answers to a state by a dot product, and each token is one state, a row of E. Which dot products do you "
        "need for one neuron, and which of them is the answer? The value is read by U in the same way.",
        "`keys @ E.T` is [m, V]: neuron by token. For each neuron (row) you want the index of the largest number. "
        "`values @ U` is [m, V] as well.",
        "Sketch: inputs = argmax over the last axis of keys times E transposed; outputs = argmax over the last axis of "
        "values times U; return both.",
    ),
    expected="Two lists of token ids, one entry per neuron: what it looks for, and what it says.",
)
def _check_read_memory() -> Iterator[Probe]:
    basis = torch.linalg.qr(_random(8, 8))[0]
    E, U = basis, torch.linalg.qr(_random(8, 8, seed=1))[0]
    asked, said = torch.tensor([3, 0, 5]), torch.tensor([6, 2, 1])
    keys, values = E[asked], U.T[said]
    keys = keys - 2.0 * E[7]  # a token that these neurons turn away from, more than they look for theirs
    yield Probe(
        tried="three neurons over a vocabulary of 8: their keys look for tokens 3, 0, 5 and their values write 6, 2, 1",
        args=(keys, values, E, U),
        expected=(asked, said),
        diagnose={
            "The two lists are swapped: first what the keys look for, then what the values write.": (said, asked),
            "For each token the best neuron was taken. Take for each neuron the best token: argmax over the last axis "
            "of [m, V].": lambda got: len(got[0]) == 8 or len(got[1]) == 8,
            "A large negative product was taken for a match. A neuron turns away from that token; take the largest, "
            "with its sign.": lambda got: bool((got[0] == 7).any()),
            "Keys were read with U, or values with E. Keys meet what comes in, E; values go out by U.": lambda got: (
                torch.equal(got[0], (keys @ U).argmax(-1)) or torch.equal(got[1], (values @ E.T).argmax(-1))
            ),
            "E and U have different layouts: E is [V, d], U is [d, V].": lambda got: (
                torch.equal(got[0], (keys @ E).argmax(-1)) or torch.equal(got[1], (values @ U.T).argmax(-1))
            ),
        },
    )
    E = torch.tensor([[1.0, 0.0], [3.0, 3.0], [-5.0, 0.0]])
    yield Probe(
        tried="a key [1, 0] and the tokens [1, 0], [3, 3] and [-5, 0]",
        args=(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), E, E.T.contiguous()),
        expected=(torch.tensor([1]), torch.tensor([1])),
        means="token 1 twice: its dot products with key and value are 3",
        diagnose={
            "A cosine or a normalised vector was used. A neuron computes a dot product, in which the length of the "
            "token's vector counts.": (torch.tensor([0]), torch.tensor([1])),
            "A large negative product was taken for a match.": lambda got: int(got[0]) == 2,
        },
    )


# --- 5. what a neuron adds to an answer ------------------------------------------------------------------------------


def direct_contribution(s: Tensor, V: Tensor, u: Tensor, scale: Tensor) -> Tensor:
    """s_j (v_j . u) * scale, in logits: s [B, m], V [m, d], u [B, d], scale [B, 1] -> [B, m]."""
    return s * (u @ V.T) * scale


@exercise(
    "neurons.direct_contribution",
    reference=direct_contribution,
    hints=(
        "Neuron j writes s_j v_j into the state. How much of that points along the direction u that the answer's logit "
        "reads? Each item has its own u.",
        "The dot products of all values with all u are one matrix product. Its shape must be [B, m] to be multiplied "
        "with s. The final norm multiplies everything by `scale`.",
        "Sketch: read = u times V transposed, [B, m]; return s * read * scale.",
    ),
    expected="A tensor [B, m] in logits. Its sum over neurons is what the layer, without b_out, adds to the answer.",
)
def _check_direct_contribution() -> Iterator[Probe | Callable]:
    s, V = torch.tensor([[2.0, -3.0, 1.0]]), torch.tensor([[1.0, 0.0], [4.0, 3.0], [0.0, -1.0]])
    u, scale = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5]])
    yield Probe(
        tried="activations 2, -3 and 1, values [1, 0], [4, 3] and [0, -1], u = [1, 2], scale 0.5",
        args=(s, V, u, scale),
        expected=torch.tensor([[1.0, -15.0, -1.0]]),
        means="2 * 1 * 0.5 = 1, -3 * 10 * 0.5 = -15 and 1 * (-2) * 0.5 = -1",
        diagnose={
            "The activation is missing: a neuron that is off writes nothing, whatever its value says.": torch.tensor(
                [[0.5, 5.0, -1.0]]
            ),
            "The scale of the final norm is missing.": torch.tensor([[2.0, -30.0, -2.0]]),
            "It was divided by the scale; `scale` is already 1 / (standard deviation). Multiply.": torch.tensor(
                [[4.0, -60.0, -4.0]]
            ),
            "The sign of the activation was lost: a negative activation writes minus the value.": torch.tensor(
                [[1.0, 15.0, -1.0]]
            ),
            "All signs were lost: a neuron may speak against the answer.": torch.tensor([[1.0, 15.0, 1.0]]),
            "This is how much each neuron writes, |s_j| |v_j|, not how much of it points along u.": lambda got: (
                _near(got, torch.tensor([[2.0, 15.0, 1.0]])) or _near(got, torch.tensor([[1.0, 7.5, 0.5]]))
            ),
            "A cosine was used. Lengths count here: the logit is a dot product.": lambda got: bool(
                (got.abs() <= s.abs() * scale + 1e-4).all()
            ),
        },
    )
    s, V, u, scale = _random(3, 3), _random(3, 3, seed=1), _random(3, 3, seed=2), _random(3, 1, seed=3).abs() + 0.1
    right = torch.stack([torch.stack([s[b, j] * (V[j] @ u[b]) * scale[b, 0] for j in range(3)]) for b in range(3)])
    yield Probe(
        tried="three items, three neurons, d = 3, so that wrong axes fit as well",
        args=(s, V, u, scale),
        expected=right,
        diagnose={
            "V @ u.T is [neuron, item] and s is [item, neuron]. With as many items as neurons torch does not complain: "
            "transpose one of them.": s * (V @ u.T) * scale,
            "V was transposed. Value j is row j of V.": s * (u @ V) * scale,
            "One direction u was used for all items; each has its own answer.": lambda got: any(
                _near(got, s * (u[b] @ V.T) * scale) for b in range(3)
            ),
            "The scale belongs to the item (row), not to the neuron.": s * (u @ V.T) * scale.T,
        },
    )

    def the_sum_over_neurons(answer: Callable) -> None:
        """5 items, 11 neurons: the sum over the neurons against (s V) . u * scale"""
        s, V, u, scale = _random(5, 11), _random(11, 4, seed=1), _random(5, 4, seed=2), torch.full((5, 1), 0.3)
        got = answer(s, V, u, scale)
        if got.shape != (5, 11):
            raise NotYet(answer.tried, "a tensor [5, 11]", f"shape {list(got.shape)}", "Keep both axes: item, neuron.")
        if not torch.allclose(got.sum(1), ((s @ V) * u).sum(1) * 0.3, atol=1e-4):
            raise NotYet(answer.tried, "the parts add up to what the layer adds", likely="A part is lost or doubled.")

    yield the_sum_over_neurons


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


# --- 6. knock neurons out --------------------------------------------------------------------------------------------


def ablation_effect(model: Model, task: Task, chosen: Tensor) -> Tensor:
    """F(ablated) - F(base) of each item, [n], with the neurons `chosen` for that item set to zero at all positions.

    chosen: bool [n, n_layers, d_ffn]. F is the metric of the task, `task.measure(model)`.
    """
    from mi_course.models import edit, intervene

    base = task.measure(model)
    edits = [
        edit(f"neurons{layer}", lambda s, off=chosen[:, layer, None]: s.masked_fill(off, 0.0))
        for layer in range(model.n_layers)
    ]
    with intervene(model, *edits):
        return task.measure(model) - base


@exercise(
    "neurons.ablation_effect",
    reference=ablation_effect,
    hints=(
        "You need the metric twice, without and with the neurons. Each item has its own list of neurons, but all items "
        "run in one batch: what shape has the activation of a layer, and where does the item axis stand?",
        '`mi.edit("neurons2", f)` replaces the activations of layer 2, a tensor [n, T, d_ffn], by f of them. '
        "`chosen[:, 2, None]` is [n, 1, d_ffn]: it fits, and counts for all positions. Make one edit per layer. Beware "
        "of lambdas in a loop: they look up the loop variable when they are called.",
        "Sketch: base = task.measure(model); edits = [mi.edit(site of the layer, lambda s, off=mask of the layer: s "
        "with 0 where off) for each layer]; inside `with mi.intervene(model, *edits):` measure again; return the "
        "difference, intervened - base.",
    ),
    expected="One number per item. Negative: without these neurons the right answer is less preferred.",
)
def _check_ablation_effect() -> Iterator[Probe]:
    model, task = _tiny_model_and_task()
    chosen = torch.rand(4, 2, 10, generator=torch.Generator().manual_seed(5)) < 0.4
    truth = _effects_by_erasing_rows(model, task, chosen)
    base = task.measure(model)

    def like(wrong: Tensor) -> Callable:
        return lambda got: _near(got, _effects_by_erasing_rows(model, task, wrong))

    yield Probe(
        tried="a random model of 2 layers x 10 neurons, 4 prompts; compared with erasing rows of W_out, item by item",
        args=(model, task, chosen),
        expected=truth,
        tolerance=1e-3,
        diagnose={
            "The sign is turned round: an effect is F(intervened) - F(base).": -truth,
            "The base was not taken away.": truth + base,
            "The items were averaged; return one number per item.": lambda got: got.numel() == 1,
            "The chosen neurons were kept and the others removed.": like(~chosen),
            "The neurons of the first item were removed for all items; each item has its own.": like(
                chosen[:1].expand(4, -1, -1)
            ),
            "The neurons that are chosen for any item were removed for all items.": like(
                chosen.any(0, keepdim=True).expand(4, -1, -1)
            ),
            "All layers got the neurons of the last layer. A lambda in a loop looks up the loop variable when it is "
            "called, and by then the loop is over: give it as a default, `lambda s, off=...:`.": like(
                chosen[:, -1:].expand(-1, 2, -1)
            ),
            "Only one layer was changed; `chosen` has an axis for the layers.": lambda got: any(
                like(chosen * (torch.arange(2) == layer)[:, None])(got) for layer in range(2)
            ),
            "Only the last position was changed. Remove the neurons at all positions.": lambda got: _near(
                got, _effects_at_last_position(model, task, chosen)
            ),
            "The effect was divided by the base. Leave it in the units of the metric.": lambda got: _near(
                got * base, truth
            ),
        },
    )
    model, task = _tiny_model_and_task(n_layers=3, d_ffn=6)
    chosen = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(6)) < 0.5
    yield Probe(
        tried="another random model, of 3 layers x 6 neurons",
        args=(model, task, chosen),
        expected=_effects_by_erasing_rows(model, task, chosen),
        tolerance=1e-3,
    )


def _tiny_model_and_task(n_layers: int = 2, d_ffn: int = 10) -> tuple[Model, Task]:
    """A random GPT-2 with loud neurons and attention, and four items for it."""
    import transformers

    import mi_course as mi

    config = transformers.GPT2Config(
        vocab_size=20, n_embd=12, n_layer=n_layers, n_head=2, n_inner=d_ffn, n_positions=16, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    hf = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "ln_" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * (0.8 if "mlp" in name else 0.4))
    prompts = torch.randint(1, 20, (4, 6), generator=g).tolist()
    return mi.wrap(hf), mi.Task("tiny", prompts, targets=[3, 4, 5, 6], foils=[7, 8, 9, 10])


@torch.no_grad()
def _effects_by_erasing_rows(model: Model, task: Task, chosen: Tensor) -> Tensor:
    """The effects without any hook: for each item erase its neurons' rows of W_out in a copy, and run it alone."""
    effects = []
    for i, (prompt, target, foil) in enumerate(zip(task.prompts, task.targets, task.foils)):
        erased = copy.deepcopy(model.hf)
        for layer, block in enumerate(erased.transformer.h):
            block.mlp.c_proj.weight[chosen[i, layer]] = 0
        before, after = (hf(torch.tensor([prompt])).logits[0, -1] for hf in (model.hf, erased))
        effects.append((after[target] - after[foil]) - (before[target] - before[foil]))
    return torch.stack(effects)


def _effects_at_last_position(model: Model, task: Task, chosen: Tensor) -> Tensor:
    from mi_course.models import edit, intervene

    base = task.measure(model)
    edits = [
        edit(f"neurons{layer}", lambda s, off=chosen[:, layer, None]: s.masked_fill(off, 0.0), positions="last")
        for layer in range(model.n_layers)
    ]
    with intervene(model, *edits):
        return task.measure(model) - base


# --- 7. neurons as detectors -----------------------------------------------------------------------------------------


@exercise(
    "neurons.detector_auroc",
    reference="mi_course.objects.neurons:auroc",
    hints=(
        "Take one item with the label and one without it. When does the neuron rank them in the right order? AUROC is "
        "the share of all such pairs in which it does.",
        "Split the rows into positives [p, m] and negatives [q, m]. Compare each positive with all negatives, neuron "
        "by neuron; a tie counts as half a win. To save memory, loop over the positives.",
        "Sketch: wins = 0; for each positive row: wins += (row > negatives) summed over the negatives, plus half of "
        "(row == negatives); return wins / (number of positives * number of negatives), shape [m].",
    ),
    expected="One number per neuron: 1 is a perfect detector, 0.5 is guessing, 0 detects the opposite perfectly.",
)
def _check_detector_auroc() -> Iterator[Probe | Callable]:
    labels = torch.tensor([True, True, False, False, False])
    values = torch.tensor([[4.0], [1.0], [2.0], [0.0], [-9.0]])
    yield Probe(
        tried="one neuron: 4 and 1 on the two items with the label; 2, 0 and -9 on the three without",
        args=(values, labels),
        expected=torch.tensor([5 / 6]),
        means="5 of the 6 pairs are in the right order: 5/6 = 0.8333",
        diagnose={
            "The label is turned round: count the pairs in which the item with the label has the larger value.": (
                torch.tensor([1 / 6])
            ),
            "This is the accuracy at a threshold. AUROC needs none: it counts pairs.": lambda got: any(
                abs(float(got) - share) < 1e-4 for share in (3 / 5, 4 / 5)
            ),
            "The number of pairs is positives times negatives, here 6.": lambda got: any(
                abs(float(got) - 5 / n) < 1e-4 for n in (10, 20, 25, 3, 2, 5, 4)
            ),
            "This is the number of pairs won; divide by the number of pairs.": torch.tensor([5.0]),
            "This is a difference of means, which one large value decides.": torch.tensor([2.5 + 7 / 3]),
            "This is a correlation.": lambda got: abs(float(got) - _correlation(values[:, 0], labels)) < 1e-3,
        },
    )
    labels = torch.tensor([True, False, True, False, False])
    tied = torch.zeros(5, 2)
    tied[0, 1] = 1
    yield Probe(
        tried="two neurons: one always 0, one that fires on a single item with the label and is else 0",
        args=(tied, labels),
        expected=torch.tensor([0.5, 0.75]),
        means="0.5 (a neuron that is always off knows nothing) and 0.75",
        diagnose={
            "A tie was counted as a lost pair, so a neuron that is always off looks like a detector of the opposite. "
            "Ties count half.": torch.tensor([0.0, 0.5]),
            "A tie was counted as a won pair. Ties count half.": torch.tensor([1.0, 1.0]),
            "Ranks were given to equal values in the order of the items. Equal values must share their mean rank (or "
            "count pairs).": lambda got: got.shape == (2,) and not _near(got, torch.tensor([0.5, 0.75])),
        },
    )
    square, half = _random(6, 6), torch.tensor([True, False, True, True, False, False])
    right = _by_pairs(square, half)
    yield Probe(
        tried="six items and six neurons",
        args=(square, half),
        expected=right,
        diagnose={
            "The axes are swapped: items are rows, neurons are columns.": _by_pairs(square.T, half),
            "All neurons were pooled; each has its own number.": lambda got: got.numel() == 1,
        },
    )

    def a_change_of_scale(answer: Callable) -> None:
        """the same values stretched by a growing function, exp(3 x)"""
        values, labels = _random(20, 3, seed=4), torch.arange(20) % 4 == 0
        if not torch.allclose(answer(values, labels), answer((3 * values).exp(), labels), atol=1e-4):
            raise NotYet(
                answer.tried,
                "no change: the order of the items is the same",
                likely="The result depends on the size of the values. AUROC depends on their order alone.",
            )

    yield a_change_of_scale


def _by_pairs(values: Tensor, labels: Tensor) -> Tensor:
    gap = values[labels][:, None] - values[~labels][None]
    return ((gap > 0).float() + (gap == 0).float() / 2).mean((0, 1))


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b.float() - b.float().mean()
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))
