//! The snapshots that scenarios are made of: put into the store once, and given to those who need them as
//! a directory or as an OCI layout.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::BenchError;
use super::inlay::Inlay;
use super::interrupt::Interrupt;
use super::scenario::{Scenario, Source};

/// One snapshot, in all the forms that anybody needs.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// What the store and adapters call it.
    pub(super) name: String,
    /// Its files.
    pub(super) directory: PathBuf,
    /// As an OCI layout, if somebody wanted one.
    pub(super) oci: Option<PathBuf>,
}

/// The tag of layouts that adapters are given.
const LAYOUT_TAG: &str = "bench";

/// What a snapshot is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Root,
    Mounted,
}

/// All parts of all scenarios.
#[derive(Debug, Default)]
pub(super) struct Parts {
    all: BTreeMap<(Source, Role), Part>,
}

/// Who wants OCI layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layouts {
    /// Somebody.
    Wanted,
    /// Nobody.
    NotWanted,
}

#[derive(Deserialize)]
struct Imported {
    id: String,
}

impl Parts {
    /// Puts what `scenario` needs into the store of `environment`, unless it is there.
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

    /// The root of a scenario and what is mounted on it, each with its path below the root.
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

    /// All.
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
            // What is mounted on a root is a directory snapshot, which is no image to `export`: adapters
            // get a layout of the same tree.
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
                // An image with the same contents, in this command's own store.
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

/// Calls the only image of a layout what adapters look for.
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
