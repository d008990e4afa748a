"""A server of files on loopback."""

import functools
import http.server
import os
import threading

import pytest


@pytest.fixture
def serve(monkeypatch):
    """A function that serves a folder, and returns the address and the list of the requests to come. No proxy is set."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    running = []

    def start(folder):
        requests = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments):
                requests.append(arguments[1])

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}", requests

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()
