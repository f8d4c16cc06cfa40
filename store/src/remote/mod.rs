//! The remote store: immutable content-addressed objects and small mutable records, in any object
//! store.

mod body;
mod catalog;
mod changing;
mod client;
mod config;
mod endpoint;
mod error;
mod failure;
mod http;
mod immutable;
mod key;
mod local;
mod open;
mod outbox_dir;
#[cfg(test)]
mod outbox_dir_tests;
mod profiles;
mod records;
mod redirect;
mod retry;

pub use body::Arrivals;
pub use catalog::{ListedSnapshot, NameMove};
pub use client::Remote;
pub use config::{OptionsRefresh, PlainHttp, StoreConfig};
pub use error::StoreError;
pub use failure::Failure;
pub use http::ServerAnswer;
pub use immutable::{Existing, PutOutcome};
pub use key::{Name, NameError, ObjectKey};
pub use outbox_dir::{NameSeen, OutboxDir, Used};
pub use records::{NameRecord, RecordError, SnapshotRecord, TreeCounts, VERSION as RECORD_VERSION};
pub use redirect::{Redirects, RefusedRedirect};
pub use retry::{Jitter, Operation, RetryBudget, RetryPolicy};

#[cfg(test)]
mod conformance_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod http_server;
#[cfg(test)]
mod http_tests;
#[cfg(test)]
mod profiles_tests;
