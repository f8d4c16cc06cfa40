//! Waiting with a deadline: a test that hangs says what it waited for, and how things were.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take that surely happens. Generous: the machine may be busy with a build. Nothing
/// waits for it when all is well.
pub const SURELY: Duration = Duration::from_mins(2);
const PAUSE: Duration = Duration::from_millis(2);

/// Waits until it is so. Ends the test, saying `what` was waited for, if it is not in time.
pub fn until(what: &str, is_so: impl FnMut() -> bool) {
    until_or(what, is_so, String::new);
}

/// The same; `state` tells how things are when time is over.
pub fn until_or(what: &str, mut is_so: impl FnMut() -> bool, state: impl FnOnce() -> String) {
    let deadline = Instant::now() + SURELY;
    while !is_so() {
        if Instant::now() > deadline {
            let state = state();
            // A last look: it may have become so meanwhile.
            assert!(is_so(), "waited {SURELY:?} in vain for {what}\n{state}");
            return;
        }
        thread::sleep(PAUSE);
    }
}
