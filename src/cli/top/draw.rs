//! Draws the view. Control characters in names are escaped, so they cannot act on the terminal.

use std::fmt::{Arguments, Write as _};

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Block, Cell, Clear, Paragraph, Row, StatefulWidget, Table as Grid, TableState, Widget,
};

use super::super::output::{bytes, escaped};
use super::state::{Link, Table, ViewState};
use super::view::{MountRow, SandboxRow, StoreRow, TIERS, View};

/// Number of stores with a separate line.
const STORES_MAX: usize = 4;
/// Width of bars, in columns.
const BAR: usize = 10;
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);

/// A column of a table: heading, width, minimum width of the table to show it, and cell text.
type Column<R> = (&'static str, Constraint, u16, fn(&R) -> String);

const SANDBOXES: [Column<SandboxRow>; 7] = [
    ("NAME", Constraint::Fill(2), 0, |row| escaped(row.name.as_bytes())),
    ("STATE", Constraint::Length(8), 0, |row| row.state.clone()),
    ("IMAGE", Constraint::Fill(2), 60, |row| escaped(row.image.as_bytes())),
    ("UP", Constraint::Length(6), 40, |row| row.age_s.map_or_else(|| "-".to_owned(), age)),
    ("CPU", Constraint::Length(6), 30, |row| {
        row.cpu.map_or("-".to_owned(), |cpu| format!("{:.0}%", cpu * 100.0))
    }),
    ("MEM", Constraint::Length(6), 50, |row| row.memory_bytes.map_or("-".to_owned(), bytes)),
    ("MOUNTS", Constraint::Length(6), 80, |row| row.mounts.to_string()),
];

const MOUNTS: [Column<MountRow>; 7] = [
    ("PATH", Constraint::Fill(3), 0, |row| match &row.sandbox {
        Some(sandbox) => format!("{}:{}", escaped(sandbox.as_bytes()), row.path),
        None => row.path.clone(),
    }),
    ("SNAPSHOT", Constraint::Length(14), 70, |row| row.snapshot.chars().take(14).collect()),
    ("PHASE", Constraint::Length(9), 34, |row| escaped(row.phase.as_bytes())),
    ("LOADED", Constraint::Length(15), 48, |row| {
        row.progress.map_or("-".to_owned(), |done| format!("{} {:>3.0}%", bar(done), done * 100.0))
    }),
    ("FETCHED", Constraint::Length(7), 60, |row| bytes(row.fetched_bytes)),
    ("READ", Constraint::Length(6), 90, |row| bytes(row.read_bytes)),
    ("WAITING", Constraint::Length(7), 100, |row| row.store_readers_waiting.to_string()),
];

/// Draws the view into `area`.
pub(super) fn draw(view: &View, state: &ViewState, area: Rect, buffer: &mut Buffer) {
    let header = header(view, state);
    let height = u16::try_from(header.len()).unwrap_or(u16::MAX).min(area.height / 2);
    let rows = |rows: usize| u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(2);
    let [top, sandboxes, mounts, foot] = Layout::vertical([
        Constraint::Length(height),
        Constraint::Max(rows(view.sandboxes.len().max(1))),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    Paragraph::new(header).render(top, buffer);
    let sorted = state.sorted_sandboxes(view);
    table(Table::Sandboxes, &SANDBOXES, &sorted, state, sandboxes, buffer);
    let sorted = state.sorted_mounts(view);
    table(Table::Mounts, &MOUNTS, &sorted, state, mounts, buffer);
    foot_line(state).render(foot, buffer);
    if state.help {
        help(area, buffer);
    }
}

fn header(view: &View, state: &ViewState) -> Vec<Line<'static>> {
    let mut lines = vec![daemon(view)];
    if let Link::Gone(why) = &state.link {
        lines.push(Line::styled(format!("{}; waiting for one", escaped(why.as_bytes())), BAD));
    }
    lines.push(cache(view));
    lines.extend(view.stores.iter().take(STORES_MAX).map(store));
    if let Some(more) = view.stores.len().checked_sub(STORES_MAX).filter(|more| *more > 0) {
        lines.push(Line::raw(format!("store    {more} more")));
    }
    lines.push(waits(view));
    lines.push(fetch(view));
    lines
}

fn daemon(view: &View) -> Line<'static> {
    let of = &view.daemon;
    let mut text = format!(" pid {}", of.pid);
    if let Some(up) = of.uptime_s {
        add(&mut text, format_args!("  up {}", age(up)));
    }
    add(&mut text, format_args!("  {}", escaped(of.state.as_bytes())));
    let running = view.sandboxes.iter().filter(|row| row.state == "running").count();
    add(&mut text, format_args!("  {} mounts  {running} sandboxes run", view.mounts.len()));
    let mut spans = vec![Span::styled(format!("inlay {}", escaped(of.version.as_bytes())), BOLD)];
    spans.push(Span::raw(text));
    if of.sealed > 0 {
        spans.push(Span::styled(format!("  {} not durable", of.sealed), BAD));
    }
    Line::from(spans)
}

fn add(text: &mut String, more: Arguments<'_>) {
    // Writing to a string never fails.
    let _ = text.write_fmt(more);
}

fn cache(view: &View) -> Line<'static> {
    let of = &view.cache;
    let part = ratio(of.used_bytes, of.budget_bytes);
    let (used, budget) = (bytes(of.used_bytes), bytes(of.budget_bytes));
    let mut text = format!("cache    {} {used} of {budget} ({:.0}%)", bar(part), part * 100.0);
    if let Some(hits) = of.hits {
        add(&mut text, format_args!("  {:.0}% of lookups hit", hits * 100.0));
    }
    let mut spans = vec![Span::raw(text)];
    if of.disk_failing {
        spans.push(Span::styled("  its disk fails: nothing is stored", BAD));
    }
    Line::from(spans)
}

fn store(row: &StoreRow) -> Line<'static> {
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let trip = known(row.round_trip_ms.map(|ms| format!("{ms:.1} ms")));
    let rate = known(row.rate.map(per_second));
    let mut text = format!("store    {}  round trip {trip}  {rate}", escaped(row.store.as_bytes()));
    if row.share < 1.0 {
        add(&mut text, format_args!("  {:.0}% for prefetch", row.share * 100.0));
    }
    if row.queued > 0 {
        add(&mut text, format_args!("  {} groups queued", row.queued));
    }
    let mut spans = vec![Span::raw(text)];
    if row.readers_waiting > 0 {
        spans.push(Span::styled(format!("  {} readers wait", row.readers_waiting), BOLD));
    }
    Line::from(spans)
}

fn waits(view: &View) -> Line<'static> {
    let mut text = "waits   ".to_owned();
    for tier in TIERS {
        let Some(row) = view.waits.get(tier).filter(|row| row.reads > 0) else { continue };
        let millis = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.2}"));
        add(
            &mut text,
            format_args!(
                " {} {} reads p50 {} p99 {} ms ",
                tier.replace('_', " "),
                row.reads,
                millis(row.p50_ms),
                millis(row.p99_ms)
            ),
        );
    }
    if view.waits.values().all(|row| row.reads == 0) {
        text += " nothing was read";
    }
    Line::raw(text)
}

fn fetch(view: &View) -> Line<'static> {
    let mut text = "fetching".to_owned();
    for (class, rate) in view.fetch.iter().filter(|(_, rate)| **rate > 0.0) {
        add(&mut text, format_args!(" {} {} ", escaped(class.as_bytes()), per_second(*rate)));
    }
    if view.fetch.values().all(|rate| *rate <= 0.0) {
        text += " nothing";
    }
    Line::raw(text)
}

fn table<R>(
    which: Table,
    columns: &[Column<R>],
    rows: &[&R],
    state: &ViewState,
    area: Rect,
    buffer: &mut Buffer,
) {
    let columns: Vec<_> = columns.iter().filter(|column| column.2 <= area.width).collect();
    let name = match which {
        Table::Sandboxes => "sandboxes",
        Table::Mounts => "mounts",
    };
    let title = format!("── {name} ({}), by {} ", rows.len(), state.sort(which).name(which));
    let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let here = state.table == which;
    Line::styled(title, if here { BOLD } else { DIM }).render(head, buffer);
    if rows.is_empty() {
        return Line::styled("none", DIM).render(body, buffer);
    }
    let cells = |row: &&R| Row::new(columns.iter().map(|column| Cell::from(column.3(row))));
    let heads = Row::new(columns.iter().map(|column| column.0)).style(DIM);
    let grid = Grid::new(rows.iter().map(cells), columns.iter().map(|column| column.1))
        .header(heads)
        .column_spacing(1);
    let grid = if here { grid.row_highlight_style(Style::new().reversed()) } else { grid };
    let mut place = TableState::default().with_selected(state.mark(which, rows.len()));
    StatefulWidget::render(grid, body, buffer, &mut place);
}

fn foot_line(state: &ViewState) -> Line<'static> {
    let text = "q quit  tab other table  ↑↓ move  s sort  p pause  ? help";
    if state.paused {
        return Line::from(vec![Span::styled("PAUSED  ", BOLD), Span::styled(text, DIM)]);
    }
    Line::styled(text, DIM)
}

fn help(area: Rect, buffer: &mut Buffer) {
    const TEXT: &str = "\
q Esc Ctrl-C  quit
Tab ← →       the other table
↑ ↓ j k       the row above, below
PgUp PgDn     ten rows
s             sort by the next column
p Space       stand still, go on
?             this

waits, fetching: since the look before
LOADED: looked at ahead of readers
FETCHED, READ: ahead; of it, read
WAITING: readers of the same store
CPU: 100% is one processor";
    let width = 44.min(area.width);
    let height = 17.min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    Clear.render(place, buffer);
    Paragraph::new(TEXT).block(Block::bordered().title(" keys ")).render(place, buffer);
}

/// Formats a bar for a fraction from 0 to 1.
fn bar(part: f64) -> String {
    // Between 0 and BAR after the clamp.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let full = (part.clamp(0.0, 1.0) * BAR as f64) as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(BAR.saturating_sub(full)))
}

#[allow(clippy::cast_precision_loss)]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Formats a rate. Rates are far below 2^52: the cast only drops the fraction.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn per_second(rate: f64) -> String {
    format!("{}B/s", bytes(rate as u64))
}

/// Formats a duration as `59s`, `12m`, `5h` or `9d`.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Returns the view as lines of text, `width` columns wide, without the key help.
pub(super) fn text(view: &View, width: u16) -> Vec<String> {
    let rows = view.sandboxes.len() + view.mounts.len() + view.stores.len() + 16;
    let height = u16::try_from(rows).unwrap_or(u16::MAX).min(u16::MAX / width.max(1));
    let area = Rect { x: 0, y: 0, width, height };
    let mut buffer = Buffer::empty(area);
    draw(view, &ViewState::default(), area, &mut buffer);
    let mut lines: Vec<String> = (0..height)
        .map(|y| {
            let cells = (0..width).filter_map(|x| buffer.cell((x, y)));
            cells.map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
        })
        .collect();
    // Drop the key help.
    lines.pop();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}
