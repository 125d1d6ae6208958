"""`Atoms`: the smallest pieces that can be cut, which of them go together, and which stay for what reason."""

from __future__ import annotations

import networkx as nx
import numpy as np
from numpy.typing import NDArray

# One array for each dimension of a tensor: the atom that each index belongs to. 0 is what is never cut.
Labels = tuple[NDArray[np.int64], ...]
FIXED = 0

_MEETS = "it meets sizes that stay, such as those of an input"


class Atoms:
    """A union-find structure over atoms, which are drawn in *families*: one for each dimension of a tensor.

    What is joined is cut together or not at all, and what is joined to atom 0 stays. A graph of the families,
    with an edge for each pair that something joined and one for each reason to stay, tells why.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1, np.int64)
        self._family = np.zeros(1, np.int64)
        self._names = ["what is fixed"]
        self._links: nx.Graph[int | str] = nx.Graph()
        self.held: set[str] = set()  # names of the families of which something was kept directly

    def __len__(self) -> int:
        return len(self._parent)

    def draw(self, count: int, name: str) -> NDArray[np.int64]:
        """New atoms, a family of that name."""
        start = len(self._parent)
        drawn = np.arange(start, start + count)
        self._parent = np.concatenate([self._parent, drawn])
        self._family = np.concatenate([self._family, np.full(count, len(self._names))])
        self._links.add_node(len(self._names))
        self._names.append(name)
        return drawn

    def roots(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """One atom for all that are joined; 0 for those that stay."""
        found = self._parent[labels]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[labels] = found
        return found

    def join(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        """Cut the atoms of two arrays of one shape together, pair by pair."""
        linked = False
        while True:
            one, other = self.roots(first).ravel(), self.roots(second).ravel()
            apart = one != other
            if not apart.any():
                break
            # of several that are to come above an atom, the least; the others meet it in the next round
            np.minimum.at(self._parent, np.maximum(one, other)[apart], np.minimum(one, other)[apart])
            linked = True
        if linked:
            self._connect(first, second)

    def keep(self, labels: NDArray[np.int64], reason: str) -> None:
        """Never cut these atoms."""
        roots = np.unique(self.roots(labels))
        roots = roots[roots != FIXED]
        if not len(roots):
            return
        for family in np.unique(self._family[labels.ravel()]):
            self._links.add_edge(int(family), reason)
            self.held.add(self._names[family])
        self._parent[roots] = FIXED

    def why(self, labels: NDArray[np.int64]) -> str:
        """The nearest reason why some of these atoms stay, ``""`` if none does."""
        if not (self.roots(labels) == FIXED).any():
            return ""
        start = int(self._family[labels.ravel()[0]])
        for found in nx.bfs_tree(self._links, start) if start in self._links else ():
            if isinstance(found, str):
                return found
            for reason in self._links[found]:
                if isinstance(reason, str):
                    return reason
        return ""

    def _connect(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        families = np.unique(np.stack([self._family[first].ravel(), self._family[second].ravel()]), axis=1)
        self._links.add_edges_from((int(a) or _MEETS, int(b) or _MEETS) for a, b in families.T if a or b)
