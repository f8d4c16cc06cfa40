//! Parses signal names and numbers.

/// The names of signals 1 to 31, without `SIG`, on the supported architectures.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The C library's SIGRTMIN and SIGRTMAX.
const REAL_TIME: (i32, i32) = (34, 64);

/// The default stop signal.
pub const SIGTERM: i32 = 15;
/// The signal that can't be caught.
pub(super) const SIGKILL: i32 = 9;
/// The signal for a closed terminal.
pub(super) const SIGHUP: i32 = 1;

/// Parses a signal given as `SIGTERM`, `term`, `15` or `RTMIN+3`.
pub fn signal_number(text: &str) -> Option<i32> {
    let (first, last) = REAL_TIME;
    if let Ok(number) = text.parse() {
        return (1..=last).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(place) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(place + 1).ok();
    }
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        first + offset(rest, '+')?
    } else {
        last - offset(name.strip_prefix("RTMAX")?, '-')?
    };
    (first..=last).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("KILL", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("RTMIN", 34),
            ("SIGSYS", 31),
        ] {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for wrong in ["", "0", "65", "-1", "SIG", "RTMIN+31", "RTMAX-31", "RTMIN3", "TERM "] {
            assert_eq!(signal_number(wrong), None, "{wrong}");
        }
    }
}
