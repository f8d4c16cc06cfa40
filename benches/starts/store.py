"""An S3 server behind a shaped link: the test kit's program `shaped-store`, which is told what to do."""

import json
import select
import subprocess

from system import Failed

# It starts a server first.
READY_S = 60
ANSWER_S = 30


class ShapedStore:
    """The running program. Its answers are dictionaries, as it gives them."""

    def __init__(self, program):
        # In a session of its own, so that an interrupt from the terminal lets it end in its turn. If
        # this process dies, it sees the end of its input.
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._rest = b""
        try:
            said = self._answer(READY_S)
            self._environment = dict(said["environment"])
            self._direct, self._bucket = said["direct"], said["bucket"]
        except BaseException:
            self.end()
            raise

    def _answer(self, limit_s):
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], limit_s)[0]:
                raise Failed(f"shaped-store says nothing for {limit_s} s")
            piece = self._process.stdout.read1(1 << 20)
            if not piece:
                raise Failed("shaped-store has ended")
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise Failed(f"shaped-store: {answer['error']}")
        return answer

    def ask(self, *words):
        try:
            self._process.stdin.write(f"{' '.join(map(str, words))}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed("shaped-store has ended") from None
        return self._answer(ANSWER_S)

    def shape(self, link):
        """From now on, what goes through the link takes as long as on this one; counting begins anew."""
        self.ask("link", link.name)
        self.ask("forget")

    def passed(self):
        """Bytes that came through the link since counting began, and requests."""
        stats = self.ask("stats")
        return stats["bytes_down"], stats["requests"]

    def environment(self, prefix):
        """With it, `inlay` uses a store of this name, through the link."""
        return {**self._environment, "INLAY_STORE": f"s3://{self._bucket}/{prefix}"}

    def environment_direct(self, prefix):
        """The same store, past the link: nothing is slow, nothing is counted."""
        direct = self._direct if "://" in self._direct else f"http://{self._direct}"
        return {**self.environment(prefix), "AWS_ENDPOINT_URL": direct}

    def end(self):
        """Ends it, also if it does not answer any more."""
        try:
            self._process.stdin.write(b"quit\n")
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
