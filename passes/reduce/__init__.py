"""Reduce: write a schedule's scores and reducers into the graph and mend every shape downstream."""

from tcompile.passes.reduce.apply import ReducedGraph, reduce_graph

__all__ = ["ReducedGraph", "reduce_graph"]
