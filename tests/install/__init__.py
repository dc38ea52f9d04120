"""The package as users get it: sdist, wheel from it, an empty environment. `python -m tests.install`; by hand for the
whole matrix: `make install-matrix`."""
