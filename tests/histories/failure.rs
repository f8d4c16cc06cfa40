//! Why an operation or a look did not end as it should.

use std::fmt;

/// What went wrong.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It did not succeed, which a fault excuses.
    Failed(String),
    /// It contradicts the model or itself, which nothing excuses.
    Wrong(String),
}

impl Failure {
    /// The same, `what` ahead of it.
    pub(crate) fn of(self, what: &str) -> Self {
        match self {
            Self::Failed(why) => Self::Failed(format!("{what}: {why}")),
            Self::Wrong(why) => Self::Wrong(format!("{what}: {why}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Wrong(why) => write!(f, "wrong: {why}"),
        }
    }
}

/// Where nothing is excused.
impl From<Failure> for String {
    fn from(failure: Failure) -> Self {
        failure.to_string()
    }
}
