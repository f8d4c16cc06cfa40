//! Converts failures to errors for readers.

use inlay_fusefs::ContentError;
use inlay_prefetch::FetchError;
use inlay_store::format::FormatError;
use inlay_store::ids::BlobId;

pub(super) fn damaged_index(error: &FormatError) -> ContentError {
    ContentError::Corrupt { object: "the snapshot's index".into(), why: error.to_string() }
}

pub(super) fn fetch_failed(error: &FetchError) -> ContentError {
    match error {
        FetchError::Store { blob, offset, source } => {
            let object = place(blob, *offset);
            if source.is_not_found() {
                ContentError::NotFound { object }
            } else {
                ContentError::Unavailable { object, why: source.to_string() }
            }
        }
        FetchError::Corrupt { blob, offset, source, .. } => {
            ContentError::Corrupt { object: place(blob, *offset), why: source.to_string() }
        }
        FetchError::Deadline { blob, offset, .. } => {
            ContentError::Timeout { object: place(blob, *offset) }
        }
        FetchError::Panicked { blob, offset } => ContentError::Unavailable {
            object: place(blob, *offset),
            why: "the fetch panicked; the log has the reason".into(),
        },
        FetchError::Shutdown => ContentError::Shutdown,
    }
}

fn place(blob: &BlobId, offset: u64) -> String {
    format!("blob {blob} at byte {offset}")
}
