//! What the user of the live view has chosen, and what keys do to it.

use std::cmp::Ordering;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::view::{MountRow, SandboxRow, View};

/// A table of the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Table {
    #[default]
    Sandboxes,
    Mounts,
}

/// What a table is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sort {
    /// As the daemon lists it: the oldest first.
    #[default]
    Age,
    /// By name or path.
    Name,
    /// What needs most first: processors, or loading that is not done.
    Use,
    /// What takes most first: memory, or bytes fetched.
    Size,
}

impl Sort {
    const ALL: [Self; 4] = [Self::Age, Self::Name, Self::Use, Self::Size];

    fn next(self) -> Self {
        let place = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL.get(place + 1).copied().unwrap_or_default()
    }

    /// What it is called above a table.
    pub(super) fn name(self, of: Table) -> &'static str {
        match (self, of) {
            (Self::Age, _) => "age",
            (Self::Name, Table::Sandboxes) => "name",
            (Self::Name, Table::Mounts) => "path",
            (Self::Use, Table::Sandboxes) => "cpu",
            (Self::Use, Table::Mounts) => "progress",
            (Self::Size, Table::Sandboxes) => "memory",
            (Self::Size, Table::Mounts) => "fetched",
        }
    }
}

/// The daemon, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Link {
    #[default]
    Up,
    /// It did not answer, for this reason.
    Gone(String),
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct State {
    pub(super) table: Table,
    /// The marked row of each table.
    pub(super) marked: [usize; 2],
    pub(super) sorts: [Sort; 2],
    pub(super) paused: bool,
    pub(super) help: bool,
    pub(super) link: Link,
}

/// What comes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Continue,
    Quit,
}

impl Table {
    pub(super) fn place(self) -> usize {
        match self {
            Self::Sandboxes => 0,
            Self::Mounts => 1,
        }
    }
}

impl State {
    pub(super) fn sort(&self, table: Table) -> Sort {
        self.sorts.get(table.place()).copied().unwrap_or_default()
    }

    /// The marked row of a table that has `rows` of them.
    pub(super) fn mark(&self, table: Table, rows: usize) -> usize {
        let mark = self.marked.get(table.place()).copied().unwrap_or(0);
        mark.min(rows.saturating_sub(1))
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyEvent, view: &View) -> Then {
        if key.kind == KeyEventKind::Release {
            return Then::Continue;
        }
        let interrupt = key.modifiers.contains(KeyModifiers::CONTROL)
            && matches!(key.code, KeyCode::Char('c' | 'd'));
        if interrupt || key.code == KeyCode::Char('q') {
            return Then::Quit;
        }
        if self.help {
            self.help = false;
            return Then::Continue;
        }
        match key.code {
            KeyCode::Esc => return Then::Quit,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('s') => {
                if let Some(sort) = self.sorts.get_mut(self.table.place()) {
                    *sort = sort.next();
                }
            }
            KeyCode::Tab | KeyCode::BackTab | KeyCode::Left | KeyCode::Right => {
                self.table = match self.table {
                    Table::Sandboxes => Table::Mounts,
                    Table::Mounts => Table::Sandboxes,
                };
            }
            KeyCode::Up | KeyCode::Char('k') => self.go(view, -1),
            KeyCode::Down | KeyCode::Char('j') => self.go(view, 1),
            KeyCode::PageUp => self.go(view, -10),
            KeyCode::PageDown => self.go(view, 10),
            KeyCode::Home => self.go(view, isize::MIN),
            KeyCode::End => self.go(view, isize::MAX),
            _ => {}
        }
        Then::Continue
    }

    fn go(&mut self, view: &View, by: isize) {
        let rows = match self.table {
            Table::Sandboxes => view.sandboxes.len(),
            Table::Mounts => view.mounts.len(),
        };
        let to = self.mark(self.table, rows).saturating_add_signed(by);
        if let Some(mark) = self.marked.get_mut(self.table.place()) {
            *mark = to.min(rows.saturating_sub(1));
        }
    }

    pub(super) fn sorted_sandboxes<'v>(&self, view: &'v View) -> Vec<&'v SandboxRow> {
        let mut rows: Vec<_> = view.sandboxes.iter().collect();
        match self.sort(Table::Sandboxes) {
            Sort::Age => {}
            Sort::Name => rows.sort_by(|one, other| one.name.cmp(&other.name)),
            Sort::Use => rows.sort_by(|one, other| most(one.cpu, other.cpu)),
            Sort::Size => rows.sort_by_key(|row| std::cmp::Reverse(row.memory_bytes)),
        }
        rows
    }

    pub(super) fn sorted_mounts<'v>(&self, view: &'v View) -> Vec<&'v MountRow> {
        let mut rows: Vec<_> = view.mounts.iter().collect();
        // What is not loaded at all counts as done.
        let left = |row: &MountRow| row.progress.map(|done| 1.0 - done);
        match self.sort(Table::Mounts) {
            Sort::Age => {}
            Sort::Name => {
                rows.sort_by(|one, other| {
                    (&one.sandbox, &one.path).cmp(&(&other.sandbox, &other.path))
                });
            }
            Sort::Use => rows.sort_by(|one, other| most(left(one), left(other))),
            Sort::Size => rows.sort_by_key(|row| std::cmp::Reverse(row.fetched_bytes)),
        }
        rows
    }
}

/// The greater first, what is not known last.
fn most(one: Option<f64>, other: Option<f64>) -> Ordering {
    other.unwrap_or(-1.0).total_cmp(&one.unwrap_or(-1.0))
}
