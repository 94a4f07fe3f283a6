"""The command line. Each module here that has a `command` is a command of that name; nothing else has to be edited.

A command module imports torch, diffusers and the packages that need them inside functions, since `--help` imports all.
"""
