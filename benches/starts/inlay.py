"""The `inlay` command on hosts that have nothing yet: new states, each with a daemon of its own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import Optional

from system import Failed, run

# Daemons are ended here; this is for what is left if that can't be done.
IDLE_EXIT = "10m"
READY_S = 20


class Missing(Failed):
    """This `inlay` lacks something that was asked for."""


@dataclass(frozen=True)
class Fetching:
    """What a mount fetches unasked, and what is noted of it."""

    prefetch: str  # off, profile or all
    label: Optional[str] = None
    record: str = "off"  # whether a profile is recorded: on or off


class Inlay:
    """The command, and what it can do. Not every build has every option that is measured."""

    def __init__(self, command, work):
        self.command, self._work, self._open = command, work, []
        self._mount_help = run(command, "mount", "--help")

    def has(self, option):
        return option in self._mount_help

    def need(self, options, what):
        """Fails if an option of `inlay mount` is missing, and says which and what for."""
        for option in options:
            if not self.has(option):
                raise Missing(f"this inlay's mount has no option {option}, which {what} needs")

    def need_profiles(self, what):
        try:
            run(self.command, "profile", "--help")
        except Failed:
            raise Missing(f"this inlay has no command 'profile', which {what} needs") from None

    def words(self, fetching):
        """Options of a mount. A build that knows no prefetching has it off without being told."""
        if fetching.prefetch == "off" and not self.has("--prefetch"):
            return []
        self.need(["--prefetch"], f"--prefetch {fetching.prefetch}")
        words = ["--prefetch", fetching.prefetch]
        if fetching.label is not None:
            self.need(["--label"], "a profile")
            words += ["--label", fetching.label]
        if fetching.record == "off":
            self.need(["--record-profile"], "a mount whose profile is not kept")
            words += ["--record-profile", "off"]
        return words

    def ask(self, environment, *words):
        """What a command that needs no host says, as JSON. It gets a state that is thrown away."""
        with tempfile.TemporaryDirectory(prefix="asking-", dir=self._work) as state:
            answer = run(self.command, "--quiet", "--json", *words, env={**_ours(environment), "INLAY_STATE": state})
        return json.loads(answer)

    @contextlib.contextmanager
    def host(self, environment):
        """A host that has nothing of any image, its daemon running."""
        host = Host(self, tempfile.mkdtemp(prefix="host-", dir=self._work), environment)
        self._open.append(host)
        try:
            host.wait_until_ready()
            yield host
        finally:
            host.end()
            self._open.remove(host)

    def end(self):
        """Ends hosts whose end was interrupted."""
        for host in self._open:
            host.end()


class Host:
    def __init__(self, inlay, state, environment):
        self._inlay, self._state = inlay, state
        self._environment = {**_ours(environment), "INLAY_STATE": state}
        self._keeper = None
        # In a session of its own: an interrupt from the terminal is not for it.
        self._daemon = subprocess.Popen(
            [inlay.command, "daemon", "--idle-exit", IDLE_EXIT], env=self._environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)

    def _run(self, *words):
        return run(self._inlay.command, *words, env=self._environment)

    def wait_until_ready(self):
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self._keeper = json.loads(self._run("daemon", "status", "--json"))["keeper"]
                return
            except Failed:
                if self._daemon.poll() is not None:
                    raise Failed(f"inlay daemon has ended with {self._daemon.returncode}") from None
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def mount(self, name, point, fetching, *views):
        os.makedirs(point, exist_ok=True)
        self._run("mount", *views, *self._inlay.words(fetching), name, point)

    def umount(self, point):
        self._run("umount", point)

    def end(self):
        """Ends mounts, daemon and keeper, and removes the state. Does nothing the second time."""
        if not os.path.isdir(self._state):
            return
        try:
            if self._keeper is not None or self._daemon.poll() is None:
                self._run("daemon", "stop", "--force")
            self._daemon.wait(30)
        except (Failed, subprocess.TimeoutExpired):
            # The keeper goes first: it would start the next daemon.
            if self._keeper is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._keeper, signal.SIGKILL)
            self._daemon.kill()
            self._daemon.wait()
            raise
        shutil.rmtree(self._state)


def _ours(environment):
    """This process's environment with these variables, and nothing else about stores."""
    kept = {
        name: value for name, value in os.environ.items()
        if not name.startswith(("AWS_", "GOOGLE_", "AZURE_", "INLAY_"))
    }
    return {**kept, **environment}
