"""The commands, a file for each part. Each is a typed function, and its docstring is the help.

What a command needs is imported inside of it, so that `--help` waits for no model library.
"""
