//! Imports the snapshots of scenarios into the store once, and exports them as directories and OCI
//! layouts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::BenchError;
use super::inlay::Inlay;
use super::interrupt::Interrupt;
use super::scenario::{Scenario, Source};

/// A snapshot with its exported forms.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Name in the store and for adapters.
    pub(super) name: String,
    /// Directory with its files.
    pub(super) directory: PathBuf,
    /// OCI layout, if requested.
    pub(super) oci: Option<PathBuf>,
}

/// Tag of the OCI layouts for adapters.
const LAYOUT_TAG: &str = "bench";

/// Role of a snapshot in a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Root,
    Mounted,
}

/// Parts of all scenarios.
#[derive(Debug, Default)]
pub(super) struct Parts {
    all: BTreeMap<(Source, Role), Part>,
}

/// Whether OCI layouts are required.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layouts {
    /// At least one adapter is measured.
    Wanted,
    /// No adapter is measured.
    NotWanted,
}

#[derive(Deserialize)]
struct Imported {
    id: String,
}

impl Parts {
    /// Imports the sources of `scenario` into the store of `environment`, except those already
    /// prepared.
    pub(super) fn prepare(
        &mut self,
        scenario: &Scenario,
        inlay: &Inlay,
        environment: &BTreeMap<String, String>,
        layouts: Layouts,
        interrupt: &Interrupt,
    ) -> Result<(), BenchError> {
        for (source, role) in roles(scenario) {
            let key = (source.clone(), role);
            if self.all.contains_key(&key) {
                continue;
            }
            let number = self.all.len();
            let asking = Asking { inlay, environment, interrupt };
            let part = asking.part(number, &scenario.name, source, role, layouts)?;
            self.all.insert(key, part);
        }
        Ok(())
    }

    /// Returns the root of a scenario and its mounts, each with its path relative to the root.
    pub(super) fn of(&self, scenario: &Scenario) -> Result<Vec<(&Part, PathBuf)>, BenchError> {
        let paths = std::iter::once(PathBuf::new()).chain(
            scenario
                .mounts
                .iter()
                .map(|mount| mount.path.strip_prefix("/").unwrap_or(&mount.path).to_owned()),
        );
        let find = |((source, role), path): ((&Source, Role), PathBuf)| {
            let part = self.all.get(&(source.clone(), role));
            let name = &scenario.name;
            let part =
                part.ok_or_else(|| BenchError::Request(format!("{name} is not prepared")))?;
            Ok((part, path))
        };
        roles(scenario).zip(paths).map(find).collect()
    }

    /// All parts.
    pub(super) fn list(&self) -> impl Iterator<Item = &Part> {
        self.all.values()
    }
}

fn roles(scenario: &Scenario) -> impl Iterator<Item = (&Source, Role)> {
    let roles = std::iter::once(Role::Root).chain(std::iter::repeat(Role::Mounted));
    scenario.sources().zip(roles)
}

struct Asking<'a> {
    inlay: &'a Inlay,
    environment: &'a BTreeMap<String, String>,
    interrupt: &'a Interrupt,
}

impl Asking<'_> {
    fn part(
        &self,
        number: usize,
        scenario: &str,
        source: &Source,
        role: Role,
        layouts: Layouts,
    ) -> Result<Part, BenchError> {
        let below = self.inlay.work().join("parts").join(number.to_string());
        fs::create_dir_all(&below).map_err(BenchError::path("make", &below))?;
        let name = match source {
            Source::Snapshot(name) => name.clone(),
            Source::Directory(_) | Source::Import(_) => {
                self.import(&format!("{scenario}-{number}"), source, role)?
            }
        };
        let directory = match source {
            Source::Directory(path) => {
                path.canonicalize().map_err(BenchError::path("find", path))?
            }
            Source::Import(_) | Source::Snapshot(_) => {
                self.export(&name, "dir", &below.join("root"))?
            }
        };
        let oci = match layouts {
            // Mounted parts are directory snapshots, which `export` rejects as images: adapters get
            // a layout of the same tree.
            Layouts::Wanted => Some(self.layout(&name, role, &directory, &below)?),
            Layouts::NotWanted => None,
        };
        Ok(Part { name, directory, oci })
    }

    fn import(&self, name: &str, source: &Source, role: Role) -> Result<String, BenchError> {
        let source = match source {
            Source::Directory(path) => format!("dir:{}", path.display()),
            Source::Import(text) | Source::Snapshot(text) => text.clone(),
        };
        let kind = match role {
            Role::Root => "image",
            Role::Mounted => "directory",
        };
        let words = ["--quiet", "--json", "import", &source, "--name", name, "--kind", kind];
        let imported: Imported = self.inlay.ask(self.environment, &words).json(self.interrupt)?;
        tracing::info!(name, id = imported.id, "imported");
        Ok(name.to_owned())
    }

    fn export(&self, name: &str, kind: &str, to: &Path) -> Result<PathBuf, BenchError> {
        let target = format!("{kind}:{}", to.display());
        let words = ["--quiet", "export", name, &target];
        self.inlay.ask(self.environment, &words).output(self.interrupt)?;
        Ok(to.to_owned())
    }

    fn layout(
        &self,
        name: &str,
        role: Role,
        directory: &Path,
        below: &Path,
    ) -> Result<PathBuf, BenchError> {
        let name = match role {
            Role::Root => name.to_owned(),
            Role::Mounted => {
                // An image with the same contents, in the store of this command.
                let alike = format!("{name}-image");
                let source = format!("dir:{}", directory.display());
                let words = ["--quiet", "import", &source, "--name", &alike];
                self.inlay.ask(self.environment, &words).output(self.interrupt)?;
                alike
            }
        };
        let layout = self.export(&name, "oci", &below.join("oci"))?;
        tag(&layout.join("index.json"))?;
        Ok(layout)
    }
}

/// Sets the tag of the layout's only image to the one adapters expect.
fn tag(index: &Path) -> Result<(), BenchError> {
    let text = fs::read(index).map_err(BenchError::path("read", index))?;
    let wrong = |error: serde_json::Error| BenchError::path("read", index)(error.into());
    let mut value: serde_json::Value = serde_json::from_slice(&text).map_err(wrong)?;
    if let Some(name) =
        value.pointer_mut("/manifests/0/annotations/org.opencontainers.image.ref.name")
    {
        *name = LAYOUT_TAG.into();
    }
    fs::write(index, value.to_string()).map_err(BenchError::path("write", index))
}
