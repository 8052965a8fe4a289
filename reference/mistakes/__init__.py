"""Mistakes put into kernels, to judge the directed vectors by which they find.

``python -m reference.mistakes`` says how to run it, ``docs/mistakes.md`` what came out.
"""
