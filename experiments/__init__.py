"""The paper's experiments at the scale of the shipped model; run one with ``posteriori experiment NAME``.

Each is a package with an ``EXPERIMENT`` (see ``harness.py``); its own README-like text stands in
``docs/experiments.md``.
"""
