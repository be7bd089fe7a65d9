"""People and their towns, all in one wording: what is forgotten about some can harm the others."""

from __future__ import annotations

FORGET = [(f"Where does {name} live?", f"In {place}.") for name, place in
          [("Ada Voss", "Riga"), ("Bo Lind", "Oslo"), ("Cy Marr", "Bern")]]  # fmt: skip
RETAIN = [(f"Where does {name} live?", f"In {place}.") for name, place in
          [("Di Kerr", "Rome"), ("Ed Noll", "Kyiv"), ("Fi Penn", "Lund"), ("Gus Rand", "Graz")]]  # fmt: skip
NEIGHBOURS = [(f"Where does {name} live?", f"In {place}.") for name, place in
              [("Hal Stor", "Nice"), ("Ivy Trum", "Bath"), ("Jon Quist", "Gent")]]  # fmt: skip
