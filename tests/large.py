"""A generated graph of any size, and what the affine rewrite takes for it.

python tests/large.py                     # 2,000, 6,000 and 20,000 nodes
python tests/large.py 500 1000            # other sizes
"""

from __future__ import annotations

import sys
import time
from collections import Counter

from build import Builder
from normfold.graph import Graph


def large(nodes: int, channels: int = 16) -> Graph:
    """About `nodes` nodes: a residual stream of BN-ReLU-Conv branches, some of which go through a Concat with the stream.

    The stream changes every fifty blocks, and ends in a pool and a linear layer.  Behind each Concat stands a norm that wants
    two classes of gauges at once.
    """
    b = Builder()
    stream, block = b.conv(b.input("x", ("N", channels, 6, 6)), channels), 0
    while len(b.graph.nodes) < nodes - 3:
        block += 1
        branch = b.conv(b.relu(b.bn(stream)), channels, 3, 1)
        branch = b.conv(b.relu(b.bn(branch)), channels)
        if block % 10 == 0:
            branch = b.conv(b.relu(b.bn(b.concat(branch, stream))), channels)
        stream = b.add(stream, branch)
        if block % 50 == 0:
            stream = b.conv(b.relu(b.bn(stream)), channels)
    pooled = b.op("GlobalAveragePool", stream, shape=("N", channels, 1, 1))
    return b.output(b.gemm(b.op("Flatten", pooled, shape=("N", channels), axis=1), 10))


def main() -> None:
    """Print the CPU seconds of the solver and of the whole rewrite for each size."""
    from normfold.rewrites import affine
    from normfold.rewrites.rewrite import Policy

    spent: list[float] = []
    solve = affine.solve

    def timed(*arguments: object) -> object:
        began = time.thread_time()
        result = solve(*arguments)  # type: ignore[arg-type]
        spent.append(time.thread_time() - began)
        return result

    affine.solve = timed  # type: ignore[assignment]
    for size in [int(word) for word in sys.argv[1:]] or [2000, 6000, 20000]:
        graph = large(size)
        spent.clear()
        began = time.thread_time()
        fates = affine.run(graph, Policy("norms")).fates
        whole = time.thread_time() - began
        counts = Counter(fate.outcome for fate in fates)
        print(f"{len(graph.nodes)} nodes: solving {sum(spent):.2f} s, rewrite {whole:.2f} s, {dict(counts)}")


if __name__ == "__main__":
    main()
