//! Bounds the resident memory of this process that is of no use: pages of indexes, and freed heap.

use std::fs;

use inlay_base::heap;

/// Resident file-backed bytes above which indexes release their pages. Released pages fault in
/// again from the page cache, or from disk.
pub(super) const FILE_PAGES_MAX: u64 = 64 << 20;

/// Resident anonymous bytes above which freed heap is returned to the kernel.
const HEAP_MAX: u64 = 128 << 20;

/// Returns freed heap to the kernel when there may be much of it.
#[derive(Debug)]
pub(super) struct HeapTrimmer {
    /// Trim above this many anonymous bytes.
    above: u64,
}

impl HeapTrimmer {
    pub(super) fn new() -> Self {
        Self { above: HEAP_MAX }
    }

    /// Trims the heap if it has grown since the last time. Blocks for milliseconds then.
    pub(super) fn trim(&mut self) {
        let resident = || resident(&fs::read_to_string("/proc/self/status").ok()?, "RssAnon:");
        self.trim_with(resident, heap::trim);
    }

    fn trim_with(&mut self, resident: impl Fn() -> Option<u64>, trim: impl FnOnce()) {
        if resident().is_some_and(|bytes| bytes > self.above) {
            trim();
            // In use: not again before there is a quarter more.
            let left = resident().unwrap_or_default();
            self.above = left.saturating_add(left / 4).max(HEAP_MAX);
        }
    }
}

/// Returns the resident file-backed bytes of this process; `None` if /proc does not tell.
pub(super) fn file_pages() -> Option<u64> {
    resident(&fs::read_to_string("/proc/self/status").ok()?, "RssFile:")
}

fn resident(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_kernels_number_is_read() {
        assert_eq!(resident("Name:\tx\nRssFile:\t    5300 kB\n", "RssFile:"), Some(5300 << 10));
        assert_eq!(resident("Name:\tx\n", "RssFile:"), None);
        assert!(file_pages().unwrap() > 0);
    }

    #[test]
    fn a_heap_is_trimmed_when_it_has_grown() {
        let mut trimmer = HeapTrimmer::new();
        let mut trims = |before: u64, after: u64| {
            let now = Cell::new(before);
            trimmer.trim_with(|| Some(now.get()), || now.set(after));
            now.get() != before
        };
        assert!(!trims(128 << 20, 0));
        assert!(trims(500 << 20, 400 << 20));
        assert!(!trims(450 << 20, 0), "it is in use");
        assert!(trims(600 << 20, 20 << 20));
        assert!(!trims(100 << 20, 0) && trims(129 << 20, 20 << 20));
    }
}
