"""An S3 server on this machine (moto), as a process of its own: `python object_server.py` prints its port.

It deals with one request at a time, so that a conditional PUT is the atomic act which it is at S3: moto itself looks first
and writes then.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def in_turn(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with turn:
            return list(moto(environ, start_response))

    server = make_server("127.0.0.1", 0, in_turn, threaded=True, request_handler=MotoRequestHandler)
    print(server.port, flush=True)
    server.serve_forever()


@contextmanager
def object_server(bucket: str) -> Iterator[dict[str, str]]:
    """A server that holds an empty bucket; the environment variables with which it is found."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(process.stdout.readline())}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        make = f"import fsspec; fsspec.filesystem('s3').mkdir({bucket!r})"
        subprocess.run([sys.executable, "-c", make], env={**os.environ, **found}, check=True)
        yield found
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    serve()
