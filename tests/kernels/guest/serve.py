"""serve.py ADDRESS PORT DIR: serves the directory over HTTP, ranges included."""

import http.server
import os
import re
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        try:
            with open(self.translate_path(self.path), 'rb') as file:
                data = file.read()
        except OSError:
            self.send_error(404)
            return
        wanted = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
        begin, end, code = 0, len(data), 200
        if wanted:
            first, last = wanted.groups()
            begin = int(first) if first else max(0, len(data) - int(last))
            end = min(len(data), int(last) + 1) if first and last else len(data)
            code = 206 if begin < end else 416
        self.send_response(code)
        if code == 206:
            self.send_header('Content-Range', f'bytes {begin}-{end - 1}/{len(data)}')
        elif code == 416:
            self.send_header('Content-Range', f'bytes */{len(data)}')
            begin = end
        self.send_header('Content-Length', str(end - begin))
        self.end_headers()
        self.wfile.write(data[begin:end])

    def log_message(self, *_):
        pass


address, port, directory = sys.argv[1:]
os.chdir(directory)
http.server.ThreadingHTTPServer((address, int(port)), Handler).serve_forever()
