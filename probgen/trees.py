"""Nested containers of arrays: parameters, states, batches.

A tree is a dict, list, tuple or NamedTuple whose leaves are anything else; None is an empty tree.
Dicts are walked in sorted key order, so that two backends flatten one tree alike. Nothing here
knows a framework: JAX's and torch's own tree utilities see the same containers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Tree = Any


def tree_map(fn: Callable, tree: Tree, *rest: Tree) -> Tree:
    """`fn` over corresponding leaves; the result has the containers of the first tree."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {k: tree_map(fn, tree[k], *(r[k] for r in rest)) for k in sorted(tree)}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(fn, *leaves) for leaves in zip(tree, *rest, strict=True)))
    if isinstance(tree, list | tuple):
        return type(tree)(tree_map(fn, *leaves) for leaves in zip(tree, *rest, strict=True))
    return fn(tree, *rest)


def tree_leaves(tree: Tree) -> list:
    """The leaves, in the order in which `tree_map` visits them."""
    return [leaf for _, leaf in tree_items(tree)]


def tree_items(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, leaf) pairs; a path is made of dict keys, field names and positions as text."""
    if tree is None:
        return
    if isinstance(tree, dict):
        children: Any = ((str(k), tree[k]) for k in sorted(tree))
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        children = zip(tree._fields, tree, strict=True)
    elif isinstance(tree, list | tuple):
        children = ((str(i), v) for i, v in enumerate(tree))
    else:
        yield path, tree
        return
    for name, child in children:
        yield from tree_items(child, (*path, name))


def tree_like(tree: Tree, leaves: list) -> Tree:
    """The containers of `tree` filled with `leaves`, the inverse of `tree_leaves`."""
    feed = iter(leaves)
    return tree_map(lambda _: next(feed), tree)
