//! Accumulates fetch stats by store, including stores closed since.

use std::collections::BTreeMap;
use std::sync::Arc;

use inlay_prefetch::scheduler::LinkEstimate;
use inlay_prefetch::{FetchStats, Fetcher};
use parking_lot::Mutex;

use crate::daemon::api::StoreRef;
use crate::daemon::redacted::redacted;

/// Maximum number of stores told apart; later ones share one label.
const LABELS_MAX: usize = 256;
/// Label of stores beyond the limit.
const OTHERS: &str = "others";
/// Label of the store inside the state directory.
const EMBEDDED: &str = "embedded";
/// Maximum length of a label, in characters.
const LABEL_LEN_MAX: usize = 512;

/// Fetch stats of all stores. Clones share state.
#[derive(Clone, Default)]
pub(in crate::daemon) struct Books {
    books: Arc<Mutex<BTreeMap<String, Book>>>,
}

/// Stats of one URL. It may be open more than once, with and without a cache.
#[derive(Default)]
struct Book {
    closed: FetchStats,
    open: Vec<(u64, Fetcher)>,
    next: u64,
}

/// Entry of an open store.
pub(in crate::daemon) struct Entry {
    books: Books,
    label: String,
    number: u64,
}

/// Stats of one store.
pub(super) struct Fetched {
    pub(super) store: String,
    pub(super) stats: FetchStats,
    /// Estimate of the link, if the store is open.
    pub(super) link: Option<LinkEstimate>,
}

impl Books {
    /// Registers a store that was opened.
    pub(in crate::daemon) fn open(&self, store: &StoreRef, fetcher: Fetcher) -> Entry {
        let mut books = self.books.lock();
        let mut label = label(store);
        if books.len() >= LABELS_MAX && !books.contains_key(&label) {
            OTHERS.clone_into(&mut label);
        }
        let book = books.entry(label.clone()).or_default();
        let number = book.next;
        book.next += 1;
        book.open.push((number, fetcher));
        Entry { books: self.clone(), label, number }
    }

    /// Returns the stats of all stores, ordered by label.
    pub(super) fn all(&self) -> Vec<Fetched> {
        let books = self.books.lock();
        let fetched = books.iter().map(|(store, book)| {
            let mut stats = book.closed;
            let mut link: Option<LinkEstimate> = None;
            for (_, fetcher) in &book.open {
                stats.add(&fetcher.stats());
                let more = fetcher.link();
                link = Some(link.map_or(more, |link| joined(link, more)));
            }
            Fetched { store: store.clone(), stats, link }
        });
        fetched.collect()
    }
}

impl Entry {
    /// Moves the stats of a closed store to the totals. Idempotent.
    pub(in crate::daemon) fn close(&self) {
        let mut books = self.books.books.lock();
        let Some(book) = books.get_mut(&self.label) else { return };
        if let Some(place) = book.open.iter().position(|(number, _)| *number == self.number) {
            let (_, fetcher) = book.open.swap_remove(place);
            book.closed.add(&fetcher.stats().done());
        }
    }
}

/// Merges two estimates of one link.
fn joined(one: LinkEstimate, other: LinkEstimate) -> LinkEstimate {
    LinkEstimate {
        round_trip: [one.round_trip, other.round_trip].into_iter().flatten().min(),
        rate: [one.rate, other.rate].into_iter().flatten().reduce(f64::max),
        share: one.share.min(other.share),
    }
}

fn label(store: &StoreRef) -> String {
    let shown = store.url.as_deref().map_or_else(|| EMBEDDED.to_owned(), redacted);
    shown.chars().take(LABEL_LEN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short() {
        let store = |url: Option<String>| StoreRef { url, plain_http: false };
        assert_eq!(label(&store(None)), EMBEDDED);
        assert_eq!(label(&store(Some("/srv/images?x".to_owned()))), "/srv/images?x");
        let long = label(&store(Some("https://user:pass@".to_owned() + &"x".repeat(1000))));
        assert!(long.starts_with("https://xxx") && long.len() == LABEL_LEN_MAX);
    }
}
