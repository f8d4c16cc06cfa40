# What inlay says itself of this kernel.
inlay help doctor >/dev/null 2>&1 || { note "there is no such command yet"; exit 0; }
inlay doctor
