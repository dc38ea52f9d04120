"""Digests of what every op, flow and accelerated layer returns on the CPU: a change of structure changes no bit.

`python -m tests.digests --write` writes `stored/` anew, `--add` adds the cases that have no digest yet.
`tests/test_digests.py` compares. What is stored is of one instruction set, AVX2, on one thread.
"""
