"""The order in which rows are trained on: whole steps, dealt to the ranks so that none waits for another.

Shape suffixes: R rows, M micro-steps, S shards of the data, B rows of a micro-batch.
"""

import numpy as np
import numpy.typing as npt


def micro_batches(
    costs_R: npt.NDArray[np.float64], batch_size: int, num_shards: int, accumulate: int, balance: bool = True
) -> npt.NDArray[np.int64]:
    """The rows of each micro-batch, by micro-step and shard: [M, S, B].

    Rows are taken in order: each optimizer step has the next ``accumulate * num_shards * batch_size``, whatever they
    cost; the last step may have fewer micro-steps, and rows that fill no micro-step are left for another epoch. Inside
    a step the micro-batches are sorted by cost, the dearest first, and dealt to and fro: the shards' micro-batches of
    one micro-step cost about the same, which matters where ranks wait for each other in each (FSDP), and so do their
    sums, which matters where they wait once a step (DDP). The gradient is the mean over the step's targets either way.
    (Sorting as in ProLong: Gao et al., 2024, https://arxiv.org/abs/2410.02660, appendix A, within a rank; dealing
    is ours.)

    Args:
        costs_R: what each row costs.
        batch_size: rows of a micro-batch.
        num_shards: ranks along the data axis.
        accumulate: micro-steps of an optimizer step.
        balance: if not, rows stay in order.
    """
    num_steps = len(costs_R) // (batch_size * num_shards)
    batches = np.arange(num_steps * num_shards * batch_size).reshape(num_steps * num_shards, batch_size)
    if not balance:
        return batches.reshape(num_steps, num_shards, batch_size)
    costs = costs_R[batches].sum(axis=1)
    to_and_fro = np.arange(num_shards)
    dealt = np.empty((num_steps, num_shards, batch_size), np.int64)
    for first in range(0, num_steps, accumulate):
        last = min(first + accumulate, num_steps)
        step = slice(first * num_shards, last * num_shards)
        # A stable sort: equal costs keep their order, so that nothing moves where there is nothing to gain.
        by_cost = batches[step][np.argsort(-costs[step], kind="stable")].reshape(last - first, num_shards, batch_size)
        for micro in range(last - first):
            dealt[first + micro] = by_cost[micro][to_and_fro if micro % 2 == 0 else to_and_fro[::-1]]
    return dealt
