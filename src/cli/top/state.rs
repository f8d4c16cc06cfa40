//! State of the live view, and its key bindings.

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

/// Sort key of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sort {
    /// Order of the daemon: oldest first.
    #[default]
    Age,
    /// By name or path.
    Name,
    /// Highest CPU use, or least prefetch progress, first.
    Use,
    /// Most memory, or most bytes fetched, first.
    Size,
}

impl Sort {
    const ALL: [Self; 4] = [Self::Age, Self::Name, Self::Use, Self::Size];

    fn next(self) -> Self {
        let place = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL.get(place + 1).copied().unwrap_or_default()
    }

    /// Name in the title of a table.
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

/// Connection to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Link {
    #[default]
    Up,
    /// The daemon did not respond, for this reason.
    Gone(String),
}

/// State of the live view.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ViewState {
    pub(super) table: Table,
    /// Selected row of each table.
    pub(super) marked: [usize; 2],
    pub(super) sorts: [Sort; 2],
    pub(super) paused: bool,
    pub(super) help: bool,
    pub(super) link: Link,
}

/// Effect of a key.
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

impl ViewState {
    pub(super) fn sort(&self, table: Table) -> Sort {
        self.sorts.get(table.place()).copied().unwrap_or_default()
    }

    /// Returns the selected row of a table with `rows` rows; the last row if the table became shorter.
    pub(super) fn mark(&self, table: Table, rows: usize) -> usize {
        let mark = self.marked.get(table.place()).copied().unwrap_or(0);
        mark.min(rows.saturating_sub(1))
    }

    /// Handles a key event.
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
        // Snapshots without prefetching have no progress and sort last.
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

/// Orders descending, unknown values last.
fn most(one: Option<f64>, other: Option<f64>) -> Ordering {
    other.unwrap_or(-1.0).total_cmp(&one.unwrap_or(-1.0))
}
