"""What the command line does; each file is one command or one thing commands share.

Like ``cli.py`` these may import every room: they are the front door, not part of the vocabulary.
"""
