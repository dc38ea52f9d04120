"""Calls drawn at random: valid ones must be right, wrong ones must be refused, none may corrupt memory.

A case is an op and a seed, and nothing else: `python -m tests.fuzz --op rqs --case 7` runs it again.

| file | what it knows |
|---|---|
| `draw.py` | numbers, shapes and memory layouts from a seed |
| `calls.py` | a call as a value: its arguments as a tree, run on a backend |
| `maps.py`, `nets.py` | a generator of valid calls of each op |
| `faults.py` | what can be wrong with one argument |
| `rule.py` | how far results may be from the truth |
| `check.py` | what must hold of a call |
| `cases.py` | calls that were wrong once |
| `workers.py`, `__main__.py` | many calls, in processes that may crash |
"""
