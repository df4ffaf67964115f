"""posteriori: fast, verified samples from intractable posteriors of language models.

What users import is here; the other top-level packages are rooms of the service.
"""

__version__ = "0.1.0"
