"""Adapters of authors' code that run in guest environments.

Each file holds one codec over the modules of its authors' repository, which the user checks out and names by `path:` of an
experiment's environment. The files run in the interpreter of that environment and not in icmbench's, so they import nothing of
icmbench and need Python 3.8, numpy and the libraries that the authors ask for, no more.
"""
