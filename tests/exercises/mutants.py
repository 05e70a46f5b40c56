"""Wrong answers made by machine: one operator, sign or number of a right answer is changed at a time."""

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterator

SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.NotIn: ast.In, ast.In: ast.NotIn}


def mutants(function: Callable) -> Iterator[tuple[str, Callable]]:
    """(what was changed, changed function) for every change that SWAPS and numbers allow. Needs a plain `def`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    defaults = {id(node) for node in ast.walk(tree.body[0].args)}  # a check gives the arguments that matter
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in defaults:
            continue
        for change in _changes(node):
            mutant = copy.deepcopy(tree)
            target = list(ast.walk(mutant))[index]
            before = ast.unparse(target)
            change(target)
            scope: dict = {}
            exec(
                compile(ast.fix_missing_locations(mutant), f"<mutant of {function.__name__}>", "exec"),
                function.__globals__,
                scope,
            )
            yield f"line {node.lineno}: {before} -> {ast.unparse(target)}", scope[function.__name__]


def _changes(node: ast.AST) -> list[Callable]:
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in SWAPS:
        return [lambda n: setattr(n, "op", SWAPS[type(n.op)]())]
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return [lambda n: setattr(n, "ops", [SWAPS[type(n.ops[0])]()])]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return [lambda n: setattr(n, "op", ast.UAdd())]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return [lambda n: setattr(n, "value", n.value + 1)]
    return []
