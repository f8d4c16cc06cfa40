//! Measures the resident file-backed memory of this process, mostly pages of indexes.

use std::fs;

/// Resident file-backed bytes above which indexes release their pages. Released pages fault in
/// again from the page cache, or from disk.
pub(super) const FILE_PAGES_MAX: u64 = 64 << 20;

/// Returns the resident file-backed bytes of this process; `None` if /proc does not tell.
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
