//! Returns freed memory to the kernel.
#![allow(unsafe_code, reason = "no safe crate wraps malloc_trim(3)")]

/// Returns the allocator's free pages to the kernel. Blocks for milliseconds with a large heap.
///
/// glibc itself trims only the top of an arena, so after a capture of millions of files a few small
/// allocations would pin hundreds of megabytes. A no-op with other C libraries.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the locks of the allocator and has no other preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use super::*;

    fn anonymous_bytes() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    #[test]
    fn pages_between_small_allocations_go_back_to_the_kernel() {
        const COUNT: usize = 4096;
        const LEN: usize = 64 << 10;
        let before = anonymous_bytes();
        // Every 64th stays, so that no arena can shrink from its end.
        let mut kept: Vec<_> = (0..COUNT)
            .map(|n| vec![u8::try_from(n % 255).unwrap() + 1; LEN].into_boxed_slice())
            .collect();
        let mut number = 0;
        kept.retain(|_| {
            number += 1;
            number % 64 == 0
        });
        trim();
        let left = anonymous_bytes().saturating_sub(before);
        assert!(left < COUNT * LEN / 4, "{left}");
        assert_eq!(kept.len(), COUNT / 64);
    }
}
