"""Leak@k: the probability that at least one of k sampled answers reveals the forgotten answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from llm_forget.errors import UserError
from llm_forget.evaluation.intervals import mean_interval
from llm_forget.evaluation.metrics import Direction
from llm_forget.evaluation.metrics.rouge import rouge
from llm_forget.evaluation.tokens import Floats, as_floats


@dataclass(frozen=True)
class LeakAtK:
    """Leak@k of a set of prompts.

    Attributes:
        value: mean over prompts of the unbiased estimate from all samples of a prompt; NaN if no prompt has a score.
        n: number of prompts.
        n_nan: number of prompts whose answer has no word that ROUGE can read.
        low: lower end of the 95 % interval of the same mean over prompts. If k equals ``samples``, each prompt gives one yes
            or no, and it is Wilson's interval of ``leaked`` of ``n``.
        high: upper end of the interval.
        leaked: number of prompts for which one of the first k samples reveals the answer.
        k: number of samples that an attacker draws.
        samples: number of samples drawn per prompt.
    """

    value: float
    n: int
    n_nan: int
    low: float
    high: float
    leaked: int
    k: int
    samples: int

    paper: ClassVar[str] = "Chen et al. 2021, arXiv:2107.03374"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "low"


def reveals(references: Sequence[str], samples: Sequence[Sequence[str]], *, threshold: float) -> Floats:
    """Whether each sample reveals the answer: its ROUGE-L recall is at least the threshold.

    Args:
        references: (E) the answers that should be forgotten.
        samples: (E, n) sampled answers.
        threshold: lowest ROUGE-L recall that counts, in (0, 1]: the share of the answer's words in the sample, in order.

    Returns:
        (E, n) of 0 and 1; NaN in the row of a reference that ROUGE cannot read (see ``rouge``).
    """
    found = []
    for reference, said in zip(references, samples, strict=True):
        recall, _ = rouge([reference] * len(said), list(said), kind="rougeL")
        found.append(np.where(np.isnan(recall), np.nan, recall >= threshold - 1e-9))
    return np.array(found, dtype=np.float64).reshape(len(references), -1)


def leak_at_k(revealed: npt.ArrayLike, k: int) -> LeakAtK:
    """Estimate the probability that one of k samples reveals the answer, from n ≥ k samples of each prompt.

    For a prompt with c revealing samples among n, it is ``1 − C(n − c, k) / C(n, k)``: the share of k-subsets with at least
    one revealing sample.

    Args:
        revealed: (E, n) 1 for a sample that reveals the answer, 0 for one that does not, NaN for a prompt without a score.
        k: number of samples that an attacker draws.

    Returns:
        The estimate and its interval. For n = 4, c = 1 and k = 2 it is 1 − 3/6 = ½.

    Raises:
        UserError: k is below 1 or above n; an estimate for more samples than were drawn is not possible.

    Source: the estimator of pass@k, Chen et al. 2021, arXiv:2107.03374, equation 1.
    """
    revealed = as_floats(revealed)
    samples = revealed.shape[-1]
    if not 1 <= k <= samples:
        raise UserError(
            f"leak@{k} cannot be computed from {samples} samples per prompt; draw at least {max(k, 1)}, or give k from 1 to "
            f"{samples}"
        )
    known = revealed[~np.isnan(revealed).any(-1)]
    n, n_nan = len(known), len(revealed) - len(known)
    if n == 0:
        return LeakAtK(np.nan, 0, n_nan, np.nan, np.nan, 0, k, samples)
    leaked = int((known[:, :k] > 0).any(-1).sum())
    estimates = leak_estimates(known.sum(-1), samples, k)
    low, high = mean_interval(estimates, bounds=(0, 1))
    return LeakAtK(float(estimates.mean()), n, n_nan, low, high, leaked, k, samples)


def leak_estimates(counts: Floats, n: int, k: int) -> Floats:
    """(E,) leak@k of each prompt from its number of revealing samples among n.

    It is ``1 − C(n − c, k) / C(n, k)``, computed with logarithms: C(400, 64) exceeds the precision of a double.
    """
    # for n − c < k every subset has a revealing sample; np.where sets these to 1 below
    left = np.maximum(n - counts, k)
    logs = gammaln(left + 1) - gammaln(left - k + 1) - gammaln(n + 1) + gammaln(n - k + 1)
    return as_floats(np.where(n - counts < k, 1.0, np.maximum(0.0, -np.expm1(logs))))
