"""Unigram and bigram models: what a language model must beat."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Integer
from scipy import sparse

# Tokens that are counted at once.
AT_ONCE = 2**20
WEIGHTS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclasses.dataclass(frozen=True)
class Ngrams:
    """Smoothed unigram and bigram models of a row of tokens.

    ::

        unigram(w)    = (count(w) + 1) / (tokens + d_vocab)
        bigram(w | v) = weight * count(v w) / count(v) + (1 - weight) * unigram(w)

    where ``v`` was never followed by anything, ``bigram`` is ``unigram``
    (Jelinek and Mercer 1980, with one weight).

    Attributes:
        unigram: probability of each token.
        pairs: ``[before, token]``, how often each pair occurs; sparse.
        weight: of the pairs.

    Examples:
        >>> model = Ngrams.counted(np.array([0, 1, 0, 1, 1]), 2)
        >>> model.unigram.round(2).tolist(), model.pairs.toarray().tolist()
        ([0.43, 0.57], [[0, 2], [1, 1]])
    """

    unigram: Float[np.ndarray, " d_vocab"]
    pairs: sparse.csr_array
    weight: float = 0.7

    @classmethod
    def counted(cls, tokens: Integer[np.ndarray, " token"], d_vocab: int) -> "Ngrams":
        """The models of ``tokens``, read a stretch at a time."""
        single = np.zeros(d_vocab, dtype=np.int64)
        pairs = sparse.csr_array((d_vocab, d_vocab), dtype=np.int64)
        for start in range(0, len(tokens), AT_ONCE):
            # One more, for the pair across the end of the stretch.
            part = np.asarray(tokens[start : start + AT_ONCE + 1], dtype=np.int64)
            single += np.bincount(part[:AT_ONCE], minlength=d_vocab)
            ones = np.ones(len(part) - 1, dtype=np.int64)
            pairs = pairs + sparse.coo_array((ones, (part[:-1], part[1:])), shape=pairs.shape)
        unigram = (single + 1) / (single.sum() + d_vocab)
        return cls(unigram, sparse.csr_array(pairs))

    def fitted(self, sequences: Iterable[Integer[np.ndarray, "batch pos"]]) -> "Ngrams":
        """The same with the weight, of a few, that predicts ``sequences`` best."""
        known = list(sequences)
        tried = [dataclasses.replace(self, weight=weight) for weight in WEIGHTS]
        losses = [np.mean(np.concatenate([m.losses(x)[1].ravel() for x in known])) for m in tried]
        return tried[int(np.argmin(losses))]

    def losses(
        self, tokens: Integer[np.ndarray, "batch pos"]
    ) -> tuple[Float[np.ndarray, "batch rest"], Float[np.ndarray, "batch rest"]]:
        """Cross-entropy in nats of every token but each sequence's first: unigram and bigram."""
        before, token = tokens[:, :-1].ravel(), tokens[:, 1:].ravel()
        alone = self.unigram[token]
        followed = np.asarray(self.pairs.sum(1)).ravel()[before]
        together = np.asarray(self.pairs[before, token]).ravel()
        share = self.weight * together / np.maximum(followed, 1)
        mixed = np.where(followed > 0, share + (1 - self.weight) * alone, alone)
        shape = (len(tokens), -1)
        return -np.log(alone).reshape(shape), -np.log(mixed).reshape(shape)
