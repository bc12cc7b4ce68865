"""What runs inside a codebase's interpreter: standard library and numpy only, Python 3.8 or newer."""

PROTOCOL_VERSION = 1
