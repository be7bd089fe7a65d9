"""Small words that decide where a name begins and ends."""

from __future__ import annotations

_JOINING = "abu af al ap av ben bin da dal das de del della den der di do dos du el ibn la le ten ter van von y zu"
_OPENING = """
    a after an and are as at before but by can could describe did do does for from had has have he her his how if in is it its may
    my name no of on or our please she should so tell that the their there these they this those to was we were what when where
    which while who whom whose why will with would yes you your
"""

PARTICLES = frozenset(_JOINING.split())
"""Words that join the parts of a name, as in "Ana de la Cruz"."""

OPENERS = frozenset(_OPENING.split())
"""English words that open questions and sentences. Small sets of rows do not show that they are no names."""
