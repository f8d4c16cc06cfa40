//! From an entry's directory to a place in the tree.
//!
//! A component that the same layer has given as a symbolic link is followed, as unpacking the layer
//! by itself would do, but never out of the tree: `..` ends at the root, absolute targets begin
//! there. A symbolic link of another layer is not followed: a directory above it hides it, and what
//! lies below one of a layer above is hidden.

use inlay_store::tree::{Meta, NodeId, NodeKind};

use super::Wrong;
use super::hidden::Target;
use super::pass::Pass;
use super::path::{Marker, components, join};
use crate::import::Markers;

/// As many as Linux follows.
const LINKS_MAX: u32 = 40;

/// What is done with directories that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// They are made, without metadata of their own.
    Make,
    /// Nothing can be found below them.
    Leave,
}

/// A directory: its normalised path, and its place, if it is in the tree and not hidden.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    pub(super) path: Vec<u8>,
    pub(super) dir: Option<NodeId>,
}

/// What a component turned out to be.
enum Step {
    Into(Option<NodeId>),
    Follow(Box<[u8]>),
}

impl Pass<'_> {
    /// The place of the directory `dir`, as an entry's name has it.
    pub(super) fn walk(&mut self, dir: &[u8], missing: Missing) -> Result<Spot, Wrong> {
        let mut at = Spot { path: Vec::new(), dir: Some(NodeId::ROOT) };
        // The way back, for `..` in links.
        let mut above: Vec<(usize, Option<NodeId>)> = Vec::new();
        let mut todo: Vec<Box<[u8]>> = components(dir)?.into_iter().rev().map(Box::from).collect();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            if &*component == b".." {
                if let Some((len, dir)) = above.pop() {
                    at.path.truncate(len);
                    at.dir = dir;
                }
                continue;
            }
            let path = join(&at.path, &component);
            match self.step(&at, &component, &path, missing)? {
                Step::Into(dir) => {
                    above.push((at.path.len(), at.dir));
                    at = Spot { path, dir };
                }
                Step::Follow(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        let why = format!("more than {LINKS_MAX} symbolic links on its way");
                        return Err(Wrong::Entry(why));
                    }
                    if target.starts_with(b"/") {
                        at = Spot { path: Vec::new(), dir: Some(NodeId::ROOT) };
                        above.clear();
                    }
                    let parts = target.split(|&b| b == b'/').rev();
                    todo.extend(parts.filter(|p| !matches!(*p, b"" | b".")).map(Box::from));
                }
            }
        }
        Ok(at)
    }

    fn step(
        &mut self,
        at: &Spot,
        name: &[u8],
        path: &[u8],
        missing: Missing,
    ) -> Result<Step, Wrong> {
        if let Some(target) = self.hidden.get(path) {
            let kind = match target {
                Target::Placed(node) => Some(self.ground.tree.kind(node)),
                Target::Hidden(place) => self.hidden.inode(place).map(|inode| &inode.kind),
            };
            return follow(kind.unwrap_or(&NodeKind::Directory), path);
        }
        let Some(dir) = at.dir else { return Ok(Step::Into(None)) };
        if self.markers == Markers::Apply {
            match Marker::of(name)? {
                Marker::Whiteout(_) => {
                    return Err(Wrong::Entry("it lies below a whiteout".into()));
                }
                Marker::Meta | Marker::Opaque => return Ok(Step::Into(None)),
                Marker::None => {}
            }
        }
        if self.ground.hides(&at.path, path) {
            return Ok(Step::Into(None));
        }
        match self.ground.tree.child(dir, name) {
            Some(node) if matches!(self.ground.tree.kind(node), NodeKind::Directory) => {
                if missing == Missing::Make && !self.is_own(node) {
                    self.touched.insert(node);
                }
                Ok(Step::Into(Some(node)))
            }
            Some(node) if self.is_own(node) => follow(self.ground.tree.kind(node), path),
            Some(_) => Ok(Step::Into(None)),
            None if missing == Missing::Leave => Ok(Step::Into(None)),
            None => {
                let meta = Meta { perm: 0o755, ..Meta::default() };
                let node = self.ground.tree.insert(dir, name, meta, NodeKind::Directory)?;
                self.ground.implicit.insert(node);
                Ok(Step::Into(Some(node)))
            }
        }
    }
}

/// Follows what is no directory, if it is a symbolic link.
fn follow(kind: &NodeKind, path: &[u8]) -> Result<Step, Wrong> {
    match kind {
        NodeKind::Symlink(target) => Ok(Step::Follow(target.clone())),
        _ => Err(Wrong::Entry(format!(
            "it lies below '{}', which is no directory",
            path.escape_ascii()
        ))),
    }
}
