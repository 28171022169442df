"""An architecture that lorascope does not know by itself."""

from lorascope.models.architectures import Architecture, Spelling

TOY = Architecture(
    (
        Spelling(
            blocks="layers",
            roles={"query": "attend.q", "value": "attend.v"},
            attention="attend",
            mlp="mlp",
            attending="attend",
            norms=("norm",),
            embeddings=("embed",),
        ),
    )
)
