//! The remote store: immutable objects named by their content, and small records, in whatever
//! keeps objects.

mod body;
mod catalog;
mod changing;
mod client;
mod config;
mod endpoint;
mod error;
mod failure;
mod http;
mod key;
mod local;
mod near;
#[cfg(test)]
mod near_tests;
mod open;
mod profiles;
mod records;
mod retry;

pub use body::Arrivals;
pub use client::{PutOutcome, Remote};
pub use config::{OptionsRefresh, PlainHttp, StoreConfig};
pub use error::StoreError;
pub use failure::Failure;
pub use http::ServerAnswer;
pub use key::{Name, NameError, ObjectKey};
pub use near::{Near, Used, Writes};
pub use records::{NameRecord, RecordError, SnapshotRecord, TreeCounts};
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
