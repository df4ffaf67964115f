"""Constrained generation: p(Z⊤ | X)^{1/T} · 1[Z satisfies the constraint].

The likelihood is that of a tempered continuation; the constraint lives in the legal moves, so that
neither policy nor posterior gives mass to a Z that breaks it. Masking the base LM the same way at every
step is not this posterior: it ignores how hard each prefix is to complete.
"""

from __future__ import annotations

from posteriori.problems.tempered import terms

__all__ = ["terms"]
