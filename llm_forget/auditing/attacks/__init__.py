"""One file per attack: a frozen dataclass that derives from ``auditing.attack.Attack``. The file name is the attack's name.

``tests/auditing/test_attack_contract.py`` finds every file. A test of the attack plants a leak that it alone must find.
"""
