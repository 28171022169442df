"""An architecture that lorascope does not know by itself."""

TOY = {"query": "q", "value": "v"}
