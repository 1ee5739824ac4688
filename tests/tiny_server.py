"""A local server that serves, truncates or refuses downloads by plan."""

import dataclasses
import hashlib
import http.server
import re
import threading

from vit_jax.data import prepare
from vit_jax.data.prepare import download


class Server:
    """Serve `files`; `plan` lists the fate of the next requests, `ranges` records their ranges.

    A fate is an HTTP status, "cut" (half of the response, then nothing), "whole" (the range is
    ignored) or "unsized" (without a length).
    """

    def __init__(self):
        self.files, self.plan, self.ranges = {}, [], []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *args):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}/"
        self.thread = threading.Thread(target=self.httpd.serve_forever, args=(0.02,))
        self.thread.start()

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.ranges.append(wanted)
        act = self.plan.pop(0) if self.plan else None
        content = self.files.get(handler.path.strip("/"))
        if content is None or isinstance(act, int):
            handler.send_error(404 if content is None else act)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and act != "whole" else 0
        body = content[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if act == "cut" else body)

    def stop(self):
        self.httpd.shutdown()
        self.thread.join()
        self.httpd.server_close()


def served(server, name, files):
    """The dataset `name`, with its official files replaced by `files` on the server."""
    server.files |= files
    archives = tuple(
        download.Archive((server.url + file,), hashlib.sha256(content).hexdigest(), len(content))
        for file, content in files.items()
    )
    return dataclasses.replace(prepare.DATASETS[name], archives=archives)
