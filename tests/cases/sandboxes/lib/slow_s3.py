# slow_s3.py DIR PORT FILE: an S3 server on loopback whose PUTs take as many seconds as FILE says.
import hashlib
import os
import re
import sys
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

ROOT, PORT, DELAY = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def etag(path):
    with open(path, "rb") as file:
        return '"%s"' % hashlib.md5(file.read()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def file(self):
        return os.path.join(ROOT, urllib.parse.unquote(self.path.split("?")[0]).lstrip("/"))

    def answer(self, status, body=b"", length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def list(self, query):
        top, prefix = self.file().rstrip("/"), query.get("prefix", [""])[0]
        keys = sorted(
            os.path.relpath(os.path.join(dir, name), top)
            for dir, _, names in os.walk(top)
            for name in names
            if not name.endswith(".part")
        )
        rows = "".join(
            "<Contents><Key>%s</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            "<ETag>%s</ETag><Size>%d</Size></Contents>"
            % (escape(key), escape(etag(f"{top}/{key}")), os.path.getsize(f"{top}/{key}"))
            for key in keys
            if key.startswith(prefix)
        )
        xml = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        self.answer(200, b'<?xml version="1.0"?>' + xml.encode(), Content_Type="application/xml")

    def do_GET(self):
        query = urllib.parse.parse_qs(self.path.partition("?")[2])
        if "list-type" in query:
            return self.list(query)
        path = self.file()
        if not os.path.isfile(path):
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        with open(path, "rb") as file:
            body = file.read()
        headers = {
            "ETag": etag(path),
            "Last_Modified": self.date_time_string(os.path.getmtime(path)),
            "Accept_Ranges": "bytes",
        }
        wanted = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self.answer(200, body, **headers)
        last = len(body) - 1
        if wanted[1]:
            first, last = int(wanted[1]), min(int(wanted[2]) if wanted[2] else last, last)
        else:
            first = len(body) - int(wanted[2])
        headers["Content_Range"] = f"bytes {first}-{last}/{len(body)}"
        self.answer(206, body[first : last + 1], **headers)

    do_HEAD = do_GET

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.file()
        try:
            with open(DELAY) as file:
                time.sleep(float(file.read()))
        except OSError:
            pass
        match = self.headers.get("If-Match")
        exists = os.path.exists(path)
        if (self.headers.get("If-None-Match") == "*" and exists) or (
            match and (not exists or etag(path) != match)
        ):
            return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = f"{path}.{id(self)}.part"
        with open(part, "wb") as file:
            file.write(body)
        os.rename(part, path)
        self.answer(200, ETag=etag(path))

    def do_DELETE(self):
        if os.path.exists(self.file()):
            os.unlink(self.file())
        self.answer(204)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


Server(("127.0.0.1", PORT), Handler).serve_forever()
