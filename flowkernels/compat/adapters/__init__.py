"""What `accelerate` knows of each library: one file per library, named like its top-level package in lower case.

A file registers itself by being here. It has a `LIBRARY` with `match(module)`, which gives a layer of methods for
`swap`, a reason to leave the module alone, or None for a module that is none of the library's transforms, and `rows()`,
the lines of README's table. `flowkernels.compat.library.Library` makes one from a table of classes. A file names the
classes it knows and imports none of them: it is asked only about models that have them, and loads without the library.
"""
