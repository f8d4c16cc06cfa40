//! Checks this host: requirements of mounts and sandboxes, optional features, and their fallbacks.

mod clock;
mod kernel;
mod store;
mod system;

use std::path::Path;

use inlay_store::remote::PlainHttp;
use serde::Serialize;

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Present.
    Ok,
    /// Replaced by a fallback, or soon exhausted.
    Degraded,
    /// Absent, without a fallback.
    Missing,
}

/// Whether all mounts require a check to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Nothing can be mounted without it.
    Required,
    /// Only some commands need it.
    Optional,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Name, stable across versions.
    pub name: String,
    /// Outcome.
    pub health: Health,
    /// Whether all mounts require it.
    pub need: Need,
    /// Finding, or the fallback in use.
    pub found: String,
    /// How to fix it, unless it is ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// All checks of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In order of dependency.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether a required check is missing, so that nothing can be mounted.
    pub fn is_unusable(&self) -> bool {
        let is_fatal =
            |check: &Check| check.need == Need::Required && check.health == Health::Missing;
        self.checks.iter().any(is_fatal)
    }
}

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        let (name, found) = (name.to_owned(), found.into());
        Self { name, health: Health::Ok, need: Need::Optional, found, fix: None }
    }

    fn degraded(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { health: Health::Degraded, fix: Some(fix.into()), ..Self::ok(name, found) }
    }

    fn missing(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { health: Health::Missing, fix: Some(fix.into()), ..Self::ok(name, found) }
    }

    fn required(self) -> Self {
        Self { need: Need::Required, ..self }
    }
}

/// Runs all checks: kernel, system, the state directory `state`, and the store at `store` (default: the
/// embedded one). Changes nothing. Each request to the store times out after 10 s.
pub fn examine(state: &Path, store: Option<&str>, plain: PlainHttp) -> Report {
    let mut report = examine_host(state);
    report.checks.extend(store::checks(store, plain));
    report
}

/// Checks the kernel and this system, without requests to a store.
pub fn examine_host(state: &Path) -> Report {
    let mut checks = kernel::checks();
    checks.extend(system::checks(state));
    Report { checks }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_requirement_makes_a_host_unusable() {
        let with = |check: Check| Report { checks: vec![Check::ok("a", ""), check] }.is_unusable();
        assert!(!with(Check::missing("runtime", "", "")));
        assert!(!with(Check::degraded("kernel", "", "").required()));
        assert!(with(Check::missing("fuse", "", "").required()));
    }

    #[test]
    fn this_host_can_mount() {
        let state = tempfile::tempdir().unwrap();
        let report = examine_host(state.path());
        assert!(!report.is_unusable(), "{report:#?}");
        let names: Vec<_> = report.checks.iter().map(|check| check.name.as_str()).collect();
        let mut apart = names.clone();
        apart.sort_unstable();
        apart.dedup();
        assert_eq!(apart.len(), names.len(), "{names:?}");
    }
}
