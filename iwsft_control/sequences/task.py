"""modchain: a verifiable reasoning task with two ways of answering, for a model of 100,000 parameters.

A problem is a digit and K operations on it, modulo 10: add 0 to 9, or multiply by 3, 7 or 9. The question is whether
the last digit is at least 5. There are two modes of answering it:

    think    T d_1 ... d_K Y|N EOS     every intermediate digit, then the verdict: learnable, and mostly right
    direct   D Y|N EOS                 the verdict at once: right half of the time, and a small model gets no better

The second mode is what makes importance weights matter. The reward is 1 where the verdict is right, so the curated
answers hold lucky direct ones, and imitating them does not make them less lucky: SFT keeps the mode at the share of D+
that it has, as in the paper's bandit (:mod:`experiments.bandit`), where iw-SFT goes on.

The corpus is of mixed quality: the mode is T or D by a fair coin, a direct verdict is another fair coin, and every
digit of a chain is replaced by a random one with probability 0.05, from which the chain goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from iwsft_control.base.errors import UserError, near, require

MULTIPLIERS, ADDENDS = np.array([3, 7, 9]), np.arange(10)
FACTORS = np.concatenate([np.ones(len(ADDENDS), int), MULTIPLIERS])  # an operation is x -> FACTORS x + SHIFTS
SHIFTS = np.concatenate([ADDENDS, np.zeros(len(MULTIPLIERS), int)])
OPERATIONS = len(FACTORS)
OPERATION = 10  # tokens: the digits 0 to 9, the operations, and then
BOS, ASK, THINK, DIRECT, YES, NO, EOS, PAD = range(OPERATION + OPERATIONS, OPERATION + OPERATIONS + 8)
VOCABULARY = PAD + 1
SIZES = (4, 8, 12, 16)
CORPUS_STREAM, HELD_OUT_STREAM, CURATION_STREAM = range(3)  # of random numbers


@dataclasses.dataclass(frozen=True)
class Task:
    """modchain with K operations, and how its corpus was written."""

    operations: int
    think_share: float = 0.5
    """Share of the corpus that thinks."""
    slip: float = 0.05
    """Probability that a digit of a chain is replaced by a random one."""

    @property
    def name(self) -> str:
        return f"modchain-{self.operations}"

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt: BOS, the digit, the operations, the question mark."""
        return self.operations + 3

    @property
    def answer_length(self) -> int:
        """Tokens of the longest answer: T, the digits, the verdict, EOS."""
        return self.operations + 3

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt_length + self.answer_length


def parse(name: str) -> Task:
    """The task of a name: modchain-8.

    Raises:
        UserError: there is no such task.
    """
    known = {Task(size).name: Task(size) for size in SIZES}
    if name not in known:
        raise UserError(f"unknown task {name!r}: {near(name, list(known))}")
    return known[name]


class Traces(NamedTuple):
    """N problems and their answers, padded with PAD after EOS, int32."""

    prompts: np.ndarray  # (N, P)
    answers: np.ndarray  # (N, R)


class Verdicts(NamedTuple):
    """What the verifier finds of N answers."""

    reward: np.ndarray  # (N,) 1.0 where the answer is well formed and its verdict right, else 0.0
    thinks: np.ndarray  # (N,) whether it begins with T
    well_formed: np.ndarray  # (N,)
    steps_right: np.ndarray  # (N,) share of the digits that follow from the digit before; of what does not think 0.0


def draw_problems(task: Task, n: int, rng: np.random.Generator) -> np.ndarray:
    """Prompts (n, P) of random problems."""
    start = rng.integers(10, size=(n, 1))
    operations = OPERATION + rng.integers(OPERATIONS, size=(n, task.operations))
    return np.concatenate([np.full((n, 1), BOS), start, operations, np.full((n, 1), ASK)], axis=1, dtype=np.int32)


def apply(operations: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """The digit after each operation token: (...), (...) -> (...)."""
    return (FACTORS[operations - OPERATION] * digits + SHIFTS[operations - OPERATION]) % 10


def chains(prompts: np.ndarray) -> np.ndarray:
    """The right intermediate digits of prompts (N, P): (N, K); the last one decides."""
    digits, found = prompts[:, 1], []
    for k in range(2, prompts.shape[1] - 1):
        digits = apply(prompts[:, k], digits)
        found.append(digits)
    return np.stack(found, axis=1)


def verdict(digits: np.ndarray) -> np.ndarray:
    """The verdict token that a last digit calls for."""
    return np.where(digits >= 5, YES, NO)


def corpus(task: Task, n: int) -> Traces:
    """The mixed-quality record that a model is pre-trained on, the same for every run."""
    rng = np.random.default_rng([CORPUS_STREAM, task.operations])
    prompts = draw_problems(task, n, rng)
    slips, random_digits = rng.random((n, task.operations)) < task.slip, rng.integers(10, size=(n, task.operations))
    thinks, luck = rng.random(n) < task.think_share, rng.random(n) < 0.5
    answers = np.full((n, task.answer_length), PAD, np.int32)
    digits = prompts[:, 1]
    for k in range(task.operations):
        digits = np.where(slips[:, k], random_digits[:, k], apply(prompts[:, 2 + k], digits))
        answers[:, 1 + k] = digits
    answers[:, 0], answers[:, -2], answers[:, -1] = THINK, verdict(digits), EOS
    answers[~thinks] = PAD
    answers[~thinks, :3] = np.stack([np.full(n, DIRECT), np.where(luck, YES, NO), np.full(n, EOS)], axis=1)[~thinks]
    return Traces(prompts, answers)


def held_out(task: Task, n: int, seen: np.ndarray) -> np.ndarray:
    """Prompts (n, P) of problems that are not among ``seen`` (N, P), the same for every run."""
    return _unseen(task, n, seen, np.random.default_rng([HELD_OUT_STREAM, task.operations]))


def to_curate(task: Task, n: int, seed: int, held_out: np.ndarray) -> np.ndarray:
    """Prompts (n, P) whose answers a run curates; none is a problem that it is evaluated on."""
    return _unseen(task, n, held_out, np.random.default_rng([CURATION_STREAM, task.operations, seed]))


def _unseen(task: Task, n: int, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    found = draw_problems(task, n + n // 4 + len(seen) // 16, rng)
    found = found[~np.isin(_codes(found), _codes(seen))][:n]
    require(len(found) == n, f"{task.name} has no {n:,} problems that were not seen before; ask for fewer.")
    return found


def _codes(prompts: np.ndarray) -> np.ndarray:
    """An integer of its own for every problem."""
    codes = prompts[:, 1].astype(np.int64)
    for k in range(2, prompts.shape[1] - 1):
        codes = codes * OPERATIONS + prompts[:, k] - OPERATION
    return codes


def verify(prompts: np.ndarray, answers: np.ndarray) -> Verdicts:
    """Check answers (N, R) to prompts (N, P) by integer arithmetic alone."""
    size = prompts.shape[1] - 3
    thinks, direct = answers[:, 0] == THINK, answers[:, 0] == DIRECT
    digits = answers[:, 1 : 1 + size]
    last = np.where(thinks, size + 1, 1)  # place of the verdict
    rows = np.arange(len(answers))
    given = answers[rows, last]
    ends = answers[rows, last + 1] == EOS
    shaped = np.where(thinks, (digits < 10).all(axis=1), direct) & ends & np.isin(given, (YES, NO))
    before = np.concatenate([prompts[:, 1:2], np.minimum(digits[:, :-1], 9)], axis=1)
    follows = digits == apply(prompts[:, 2:-1], before)
    reward = shaped & (given == verdict(chains(prompts)[:, -1]))
    return Verdicts(reward.astype(np.float32), thinks, shaped, np.where(thinks, follows.mean(axis=1), 0.0))


def lengths(answers: np.ndarray) -> np.ndarray:
    """Tokens of answers (N, R) up to EOS: (N,)."""
    return (answers != PAD).sum(axis=1)


def sha256(traces: Traces) -> str:
    """Digest of the content."""
    digest = hashlib.sha256()
    for array in traces:
        digest.update(np.ascontiguousarray(array, np.int32).data)
    return digest.hexdigest()


def in_words(tokens: np.ndarray) -> str:
    """Tokens as people read them: ``4 +7 *3 = T 1 3 N .``, padding left out."""
    names = [*map(str, range(10)), *(f"+{b}" for b in ADDENDS), *(f"*{a}" for a in MULTIPLIERS)]
    names += ["", "=", "T", "D", "Y", "N", ".", ""]
    return " ".join(filter(None, (names[t] for t in tokens)))
