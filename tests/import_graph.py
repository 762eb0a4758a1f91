"""How the modules of hasten hang together: `make imports` prints folders, arrows and circles.

An arrow is an import, wherever it stands in a file: on top, in a function, or for types only. A circle is a
set of modules or folders of one folder that reach each other; what is inside a folder counts as that folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import grimp
import networkx as nx

HALVES = ({"diffusion"}, {"text", "drafters", "policies", "verify", "dropin"})
"""What shall know nothing of each other."""


def import_graph() -> nx.DiGraph:
    """Modules, and an arrow from each to what it imports."""
    found = grimp.build_graph("hasten", cache_dir=None)
    graph = nx.DiGraph()
    graph.add_nodes_from(found.modules)
    for module in found.modules:
        graph.add_edges_from((module, one) for one in found.find_modules_directly_imported_by(module))
    return graph


def folder_of(module: str, graph: nx.DiGraph) -> str:
    """A package's own ``__init__`` lies in its folder."""
    is_package = any(one.startswith(f"{module}.") for one in graph)
    return module if is_package else module.rpartition(".")[0]


def squashed(graph: nx.DiGraph, folder: str) -> nx.DiGraph:
    """The arrows between what lies in a folder, modules and folders."""
    found = nx.DiGraph()
    depth = folder.count(".") + 1

    def child(module: str) -> str | None:
        inside = module.startswith(f"{folder}.")
        return ".".join(module.split(".")[: depth + 1]) if inside else None

    for importer, imported in graph.edges:
        ends = child(importer), child(imported)
        if None not in ends and ends[0] != ends[1]:
            found.add_edge(*ends)
    return found


def circles(graph: nx.DiGraph) -> Iterator[list[str]]:
    """Each as its members, folder by folder."""
    for folder in sorted({folder_of(module, graph) for module in graph}):
        for members in nx.strongly_connected_components(squashed(graph, folder)):
            if len(members) > 1:
                yield sorted(members)


def between_halves(graph: nx.DiGraph) -> list[tuple[str, str]]:
    def half(module: str) -> int | None:
        top = module.split(".")[1:2]
        return next((index for index, one in enumerate(HALVES) if one & set(top)), None)

    return sorted(
        (importer, imported)
        for importer, imported in graph.edges
        if None not in (half(importer), half(imported)) and half(importer) != half(imported)
    )


def main() -> None:
    graph = import_graph()
    folders = {module: folder_of(module, graph) for module in graph}
    between = {(folders[a], folders[b]) for a, b in graph.edges if folders[a] != folders[b]}
    crossing, found = between_halves(graph), list(circles(graph))
    knots = [members for members in nx.strongly_connected_components(graph) if len(members) > 1]
    print(f"{len(graph)} modules in {len(set(folders.values()))} folders")
    print(f"{graph.number_of_edges()} arrows between modules")
    print(f"{len(between)} arrows between folders")
    print(f"{squashed(graph, 'hasten').number_of_edges()} arrows at the top level")
    print(f"{len(crossing)} arrows between the autoregressive and the diffusion half")
    for importer, imported in crossing:
        print(f"    {importer} -> {imported}")
    print(f"{len(knots)} circles of modules, of {sum(map(len, knots))} modules")
    print(f"{len(found)} circles in a folder")
    for members in found:
        print(f"    {', '.join(members)}")


if __name__ == "__main__":
    sys.exit(main())
