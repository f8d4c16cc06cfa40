//! What was fetched from each store, those included that have been closed since.

use std::collections::BTreeMap;
use std::sync::Arc;

use inlay_prefetch::scheduler::LinkEstimate;
use inlay_prefetch::{FetchFigures, Fetcher};
use parking_lot::Mutex;

use crate::daemon::api::StoreRef;

/// How many stores are told apart; those that come later are one.
const LABELS_MAX: usize = 256;
/// What those are called.
const OTHERS: &str = "others";
/// The store inside the state.
const EMBEDDED: &str = "embedded";
/// The longest label, in characters.
const LABEL_LEN_MAX: usize = 512;

/// The books of all stores of a daemon. Clones share everything.
#[derive(Clone, Default)]
pub(in crate::daemon) struct Books {
    books: Arc<Mutex<BTreeMap<String, Book>>>,
}

/// Of one URL. It may be open more than once, with and without a cache.
#[derive(Default)]
struct Book {
    closed: FetchFigures,
    open: Vec<(u64, Fetcher)>,
    next: u64,
}

/// An open store's entry.
pub(in crate::daemon) struct Entry {
    books: Books,
    label: String,
    number: u64,
}

/// What is known of one store.
pub(super) struct Fetched {
    pub(super) store: String,
    pub(super) figures: FetchFigures,
    /// If it is open.
    pub(super) link: Option<LinkEstimate>,
}

impl Books {
    /// A store is opened.
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

    /// All stores, by their labels.
    pub(super) fn all(&self) -> Vec<Fetched> {
        let books = self.books.lock();
        let fetched = books.iter().map(|(store, book)| {
            let mut figures = book.closed;
            let mut link: Option<LinkEstimate> = None;
            for (_, fetcher) in &book.open {
                figures.add(&fetcher.figures());
                let more = fetcher.link();
                link = Some(link.map_or(more, |link| joined(link, more)));
            }
            Fetched { store: store.clone(), figures, link }
        });
        fetched.collect()
    }
}

impl Entry {
    /// The store is closed: nothing more will be fetched. What was stays in the books.
    pub(in crate::daemon) fn close(&self) {
        let mut books = self.books.books.lock();
        let Some(book) = books.get_mut(&self.label) else { return };
        if let Some(place) = book.open.iter().position(|(number, _)| *number == self.number) {
            let (_, fetcher) = book.open.swap_remove(place);
            book.closed.add(&fetcher.figures().done());
        }
    }
}

/// Two views of one link.
fn joined(one: LinkEstimate, other: LinkEstimate) -> LinkEstimate {
    LinkEstimate {
        round_trip: [one.round_trip, other.round_trip].into_iter().flatten().min(),
        rate: [one.rate, other.rate].into_iter().flatten().reduce(f64::max),
        share: one.share.min(other.share),
    }
}

/// The store's URL without what may be secret in it.
fn label(store: &StoreRef) -> String {
    let Some(url) = &store.url else { return EMBEDDED.to_owned() };
    let shown = match url.split_once("://") {
        None => url.clone(),
        Some((scheme, rest)) => {
            let rest = rest.split(['?', '#']).next().unwrap_or_default();
            let (host, path) = match rest.find('/') {
                Some(slash) => rest.split_at(slash),
                None => (rest, ""),
            };
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{}", path.trim_end_matches('/'))
        }
    };
    shown.chars().take(LABEL_LEN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_no_secrets() {
        for (url, shown) in [
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("https://user:pass@host:9/p@th?sig=x#y", "https://host:9/p@th"),
            ("https://user:p@ss@host", "https://host"),
            ("https://host?token=x", "https://host"),
            ("/srv/images?x", "/srv/images?x"),
        ] {
            let store = StoreRef { url: Some(url.to_owned()), plain_http: false };
            assert_eq!(label(&store), shown);
        }
        assert_eq!(label(&StoreRef { url: None, plain_http: false }), EMBEDDED);
    }
}
