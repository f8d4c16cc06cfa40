"""Other people's tests: each suite gives outcomes by name for one directory, which it may fill."""

import os
import subprocess

from system import Failed

# Enough to reach every kind of call, and not so much that a slow machine takes minutes.
FSX_OPERATIONS = 3000
STRESSOR_SECONDS = 2
STRESSOR_LIMIT = 90
STRESSOR_BYTES = {"hdd": "16m", "iomix": "16m", "fallocate": "16m", "copy-file": "128m",
                  "sync-file": "16m", "fiemap": "16m"}

_PJDFSTEST = """
[features]
posix_fallocate = {}
utime_now = {}
utimensat = {}
rename_ctime = {}
stat_st_birthtime = {}
[settings]
naptime = 0.05
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""


def _run(command, limit):
    """Exit status and output; a command that does not end has the status "too slow"."""
    child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             errors="replace", start_new_session=True)
    try:
        output, _ = child.communicate(timeout=limit)
        return child.returncode, output
    except subprocess.TimeoutExpired:
        return "too slow", ""
    finally:
        # Its own children, too, however this ends.
        try:
            os.killpg(child.pid, 9)
        except ProcessLookupError:
            pass
        child.wait()


def fsx(tree, case, scratch):
    file = {"new": "fsx.new", "small": "small.txt", "large": "large.bin"}[case]
    failures = []
    for seed in (1, 2, 3):
        status, output = _run(["fsx", "-N", str(FSX_OPERATIONS), "-S", str(seed), "-P", scratch,
                               os.path.join(tree, file)], 300)
        if status != 0:
            failures.append(f"seed {seed}: {status}: {output[-300:]}")
    return {case: "; ".join(failures) or "ok"}


def pjdfstest(tree, _case, scratch):
    configuration = os.path.join(scratch, "pjdfstest.toml")
    with open(configuration, "w") as out:
        out.write(_PJDFSTEST)
    where = os.path.join(tree, "dir")
    status, output = _run(["pjdfstest", "-c", configuration, "-p", where], 600)
    outcomes = {}
    for line in output.splitlines():
        words = line.split()
        if len(words) >= 2 and "::" in words[0] and words[1].lower() in ("ok", "failed", "skipped"):
            outcomes[words[0]] = words[1].lower()
    if not outcomes:
        raise Failed(f"pjdfstest did not run: {status}: {output[-500:]}")
    return outcomes


def stressor(tree, case, _scratch):
    return _stress(case, os.path.join(tree, "dir"))


def stat_stressor(tree, case, scratch):
    """What stress-ng can do where nothing can be written."""
    return _stress(case, scratch, "--fstat-dir", os.path.join(tree, "dir"))


def _stress(case, where, *more):
    command = ["stress-ng", f"--{case}", "1", "-t", str(STRESSOR_SECONDS), "--verify", "--oomable",
               "--temp-path", where, *more]
    if case in STRESSOR_BYTES:
        command += [f"--{case}-bytes", STRESSOR_BYTES[case]]
    status, output = _run(command, STRESSOR_LIMIT)
    if status == 1:
        raise Failed(f"stress-ng takes other words: {' '.join(command)}: {output[-500:]}")
    if "skipping" in output:
        return {case: "skipped"}
    outcome = {0: "ok", 3: "no resources", 4: "not implemented"}.get(status, f"failed ({status})")
    if outcome.startswith("failed"):
        print("\n".join(line for line in output.splitlines() if "fail" in line)[:500])
    return {case: outcome}


def stressors():
    """All that stress-ng has for filesystems."""
    _, output = _run(["stress-ng", "--class", "filesystem?"], 30)
    return set(output.partition("stressors:")[2].split())
