"""Audit a forgotten model: attacks on every form in which it may be served, compared with the target and the oracle.

``attack.py`` has the contract of an attack, ``attacks/`` one file per attack, ``subject.py`` what an attack may do with a model.
"""
