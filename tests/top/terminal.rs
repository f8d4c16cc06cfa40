//! A terminal with a program in it: what is on its screen, and what is typed.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

/// Generous: nothing waits for it when all is well.
const WITHIN: Duration = Duration::from_mins(1);

pub(crate) struct Terminal {
    outside: File,
    inside: OwnedFd,
    /// What the program has written.
    pub(crate) written: Vec<u8>,
}

impl Terminal {
    pub(crate) fn new(columns: u16, rows: u16) -> Self {
        let outside = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&outside).unwrap();
        unlockpt(&outside).unwrap();
        let name = ptsname(&outside, Vec::new()).unwrap();
        let inside = open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let terminal = Self { outside: outside.into(), inside, written: Vec::new() };
        terminal.resize(columns, rows);
        terminal
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.outside, size).unwrap();
    }

    /// How keys are treated.
    pub(crate) fn modes(&self) -> String {
        format!("{:?}", tcgetattr(&self.inside).unwrap())
    }

    pub(crate) fn spawn(&self, command: &mut Command) -> Child {
        let end = || self.inside.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm").spawn().unwrap()
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.outside.write_all(keys.as_bytes()).unwrap();
    }

    /// Takes what was written until now.
    pub(crate) fn read(&mut self) {
        let wait = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        loop {
            let mut wanted = [PollFd::new(&self.outside, PollFlags::IN)];
            if poll(&mut wanted, Some(&wait)).unwrap() == 0 {
                return;
            }
            let mut bytes = [0; 4096];
            let count = self.outside.read(&mut bytes).unwrap();
            self.written.extend(&bytes[..count]);
        }
    }

    /// The lines on the screen, after what was written so far.
    pub(crate) fn screen(&self) -> Vec<String> {
        let mut screen = Screen { cells: vec![vec![' '; 300]; 100], at: (0, 0) };
        screen.show(&String::from_utf8_lossy(&self.written));
        screen.cells.into_iter().map(|row| row.into_iter().collect::<String>()).collect()
    }

    /// Waits until the screen has `text` somewhere in a line.
    pub(crate) fn wait_for(&mut self, text: &str) {
        self.wait_until(text, |lines| lines.iter().any(|line| line.contains(text)));
    }

    pub(crate) fn wait_until(&mut self, what: &str, is_so: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + WITHIN;
        loop {
            self.read();
            let lines = self.screen();
            if is_so(&lines) {
                return;
            }
            assert!(Instant::now() < deadline, "{what} is not shown:\n{}", lines.join("\n"));
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// As much of a terminal as is needed to see where text is.
struct Screen {
    cells: Vec<Vec<char>>,
    at: (usize, usize),
}

impl Screen {
    fn show(&mut self, text: &str) {
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match (c, rest.strip_prefix('[')) {
                ('\x1b', Some(sequence)) => {
                    let is_end = |c: char| ('@'..='~').contains(&c);
                    let Some(end) = sequence.find(is_end) else { return };
                    self.act(&sequence[..end], &sequence[end..=end]);
                    rest = &sequence[end + 1..];
                }
                ('\r', _) => self.at.1 = 0,
                ('\n', _) => self.at.0 += 1,
                _ => {
                    let (row, column) = self.at;
                    if let Some(cell) = self.cells.get_mut(row).and_then(|row| row.get_mut(column))
                    {
                        *cell = c;
                    }
                    self.at.1 += 1;
                }
            }
        }
    }

    fn act(&mut self, numbers: &str, what: &str) {
        match what {
            "H" => {
                let mut numbers = numbers.split(';').map(|number| number.parse().unwrap_or(1));
                let mut next = || numbers.next().unwrap_or(1_usize).saturating_sub(1);
                self.at = (next(), next());
            }
            "J" => self.cells.iter_mut().for_each(|row| row.fill(' ')),
            _ => {}
        }
    }
}
