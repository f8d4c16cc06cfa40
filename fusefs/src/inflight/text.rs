//! A request as the kernel wrote it: a header of 40 bytes and its arguments.

/// Length of `struct fuse_in_header`.
pub(super) const HEADER_LEN: usize = 40;
/// Maximum length of a recorded request. Names have at most 255 bytes, and there are no writes.
pub(super) const TEXT_LEN_MAX: usize = 1000;

/// Opcodes that need no reply or that every server answers for itself: FORGET, INIT, INTERRUPT,
/// DESTROY, NOTIFY_REPLY and BATCH_FORGET of `include/uapi/linux/fuse.h`.
const NOT_KEPT: [u32; 6] = [2, 26, 36, 38, 41, 42];

/// Number of a request on its connection. The kernel never reuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Unique(pub(crate) u64);

/// A request that needs a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestText {
    unique: Unique,
    node: u64,
    bytes: Vec<u8>,
}

impl RequestText {
    /// Parses the request at the start of `bytes`. `None` if it is incomplete or needs no reply.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let len = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        if !(HEADER_LEN..=TEXT_LEN_MAX).contains(&len) {
            return None;
        }
        let bytes = bytes.get(..len)?;
        let opcode = u32::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let unique = u64::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
        let node = u64::from_ne_bytes(*bytes.get(16..)?.first_chunk()?);
        let kept = unique != 0 && opcode != 0 && !NOT_KEPT.contains(&opcode);
        kept.then(|| Self { unique: Unique(unique), node, bytes: bytes.to_vec() })
    }

    pub(crate) fn unique(&self) -> Unique {
        self.unique
    }

    /// Returns the node ID of the request.
    pub(crate) fn node(&self) -> u64 {
        self.node
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[cfg(test)]
    pub(super) fn for_tests(unique: u64, node: u64, opcode: u32) -> Self {
        let mut bytes = vec![0; HEADER_LEN + 8];
        let len = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
        bytes[16..24].copy_from_slice(&node.to_ne_bytes());
        Self::parse(&bytes).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_read_up_to_its_length() {
        let text = RequestText::for_tests(8, 3, 15);
        let mut longer = text.bytes().to_vec();
        longer.extend([1; 100]);
        assert_eq!(RequestText::parse(&longer), Some(text.clone()));
        assert_eq!((text.unique(), text.node()), (Unique(8), 3));
        assert_eq!(RequestText::parse(&text.bytes()[..40]), None);
    }

    #[test]
    fn requests_that_expect_no_reply_are_not_kept() {
        let mut forget = RequestText::for_tests(8, 3, 15).bytes().to_vec();
        forget[4..8].copy_from_slice(&2u32.to_ne_bytes());
        assert_eq!(RequestText::parse(&forget), None);
        assert_eq!(RequestText::parse(&[0; 4096]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_none(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = RequestText::parse(&bytes);
        }
    }
}
