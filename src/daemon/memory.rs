//! How much of what is resident are pages of files, mostly of indexes.

use std::fs;

/// When more than this is resident, indexes give their pages back. They come again from the page
/// cache, or from disk, when they are looked at.
pub(super) const FILE_PAGES_MAX: u64 = 64 << 20;

/// Bytes of files that are resident in this process.
pub(super) fn file_pages() -> Option<u64> {
    resident(&fs::read_to_string("/proc/self/status").ok()?)
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_number_is_read() {
        assert_eq!(resident("Name:\tx\nRssFile:\t    5300 kB\n"), Some(5300 << 10));
        assert_eq!(resident("Name:\tx\n"), None);
        assert!(file_pages().unwrap() > 0);
    }
}
