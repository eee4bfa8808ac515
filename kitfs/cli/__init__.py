"""The command line: one file per group of verbs. Parses, calls, prints, and picks the exit code.

The only package that knows click, rich and environment variables. Nothing imports it.
"""
