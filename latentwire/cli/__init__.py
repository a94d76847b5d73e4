"""The commands, one file per system. Each is a typed function, and its docstring is the help.

What a command needs is imported inside of it, so that `--help` waits for no model library.
command_line.py parses arguments, trains a recipe and prints; read it first.
"""
