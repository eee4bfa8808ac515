"""The daemon: keeps each mount's device, starts and replaces the workers that serve it, answers commands.

It never serves file data, never opens the index, never parses a ModelKit, and never touches a path below a mount.
"""
