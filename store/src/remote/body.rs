//! Reads the body of a response: exactly the requested bytes, or a failure.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use object_store::{GetResult, GetResultPayload};
use tokio::time::timeout;

use super::failure::Failure;

/// The maximum buffer reserved before any byte has arrived, in bytes: a content length is only a
/// promise.
const RESERVE_MAX: u64 = 1 << 20;

/// Receives progress of a transfer.
pub trait Arrivals: Send + Sync {
    /// Called when `bytes` more have arrived. Runs on a runtime thread and must not block.
    fn came(&self, bytes: u64);
}

/// Ignores progress.
pub(super) struct Unwatched;

impl Arrivals for Unwatched {
    fn came(&self, _bytes: u64) {}
}

/// Reads the whole body of `answer`, which must have exactly `want` bytes. Fails if no byte arrives
/// for longer than `stall`.
pub(super) async fn read(
    answer: GetResult,
    want: u64,
    stall: Duration,
    arrivals: &dyn Arrivals,
) -> Result<Bytes, Failure> {
    let promised = answer.range.end.saturating_sub(answer.range.start);
    if matches!(answer.payload, GetResultPayload::File(..)) && promised < want {
        return Err(Failure::Truncated(answer.meta.size));
    }
    check(want, promised)?;
    let mut stream = match answer.payload {
        GetResultPayload::Stream(stream) => stream,
        // `bytes` reads a file in one piece, the stream would read it in small ones.
        GetResultPayload::File(..) => {
            let bytes = timeout(stall, answer.bytes()).await;
            let bytes = bytes.map_err(|_| Failure::Timeout(stall))??;
            arrivals.came(bytes.len() as u64);
            return check(want, bytes.len() as u64).map(|()| bytes);
        }
    };
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    let mut got = 0u64;
    while let Some(piece) =
        timeout(stall, stream.next()).await.map_err(|_| Failure::Timeout(stall))?
    {
        let piece = piece?;
        got = got.saturating_add(piece.len() as u64);
        if got > want {
            return Err(Failure::Long(want));
        }
        arrivals.came(piece.len() as u64);
        // Usually the body is a single piece, which is returned without copying.
        if first.is_empty() {
            first = piece;
        } else {
            rest.get_or_insert_with(|| gathered(&first, want)).extend_from_slice(&piece);
        }
    }
    check(want, got)?;
    Ok(rest.map_or(first, BytesMut::freeze))
}

/// Creates a buffer for a body in several pieces, which starts with `first`.
fn gathered(first: &Bytes, want: u64) -> BytesMut {
    let reserve = usize::try_from(want.min(RESERVE_MAX)).unwrap_or_default();
    let mut all = BytesMut::with_capacity(reserve.max(first.len()));
    all.extend_from_slice(first);
    all
}

fn check(want: u64, got: u64) -> Result<(), Failure> {
    match got {
        _ if got < want => Err(Failure::Short { want, got }),
        _ if got > want => Err(Failure::Long(want)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use object_store::path::Path;
    use object_store::{Attributes, Extensions, ObjectMeta};

    use super::*;

    #[tokio::test]
    async fn a_body_without_end_is_left_once_it_is_too_long() {
        let meta = ObjectMeta {
            location: Path::from("x"),
            last_modified: std::time::SystemTime::UNIX_EPOCH.into(),
            size: 25,
            e_tag: None,
            version: None,
        };
        let pieces = (0..).map(|number| {
            assert!(number < 3, "more was read than could be wanted");
            Ok(Bytes::from_static(&[0; 10]))
        });
        let answer = GetResult {
            payload: GetResultPayload::Stream(stream::iter(pieces).boxed()),
            range: 0..25,
            meta,
            attributes: Attributes::default(),
            extensions: Extensions::default(),
        };
        let failure = read(answer, 25, Duration::from_secs(1), &Unwatched).await.unwrap_err();
        assert_eq!(failure, Failure::Long(25));
    }
}
