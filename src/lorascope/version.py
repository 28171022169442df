"""The version of lorascope, for programs that must not import all of it."""

__version__ = "0.1.0"
