"""Mutation testing, by hand: `python -m tests.mutate`. Which one-line faults of the source does no test notice?

A mutation is a text of one file, part of it in «marks», and what takes that part's place (`listed/`, an op to a file).
All mutations of C++ and CUDA go into one build of a copy of the tree, each behind a switch that an environment variable
throws when the module is loaded; the copy has the baseline instruction set alone. Those of Python are written into the
copy for their run. Each runs its own tests until one fails, for so many seconds at most, and is

- killed: a test fails, or crashes, which passes without it;
- survived: all its tests pass;
- undecided: neither, in that time.

The outcomes are in `results.md`, which a run rewrites for the mutations it was asked for. A survivor either gets a test
or says in the list why none can tell it from the original.
"""
