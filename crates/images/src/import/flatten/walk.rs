//! Resolves an entry's directory to a position in the tree.
//!
//! A component that the same layer has as a symbolic link is followed, as when unpacking the layer
//! alone, but never out of the tree: `..` stops at the root, and absolute targets start there.
//! Symbolic links of other layers are not followed: an upper directory hides one in a lower layer,
//! and an upper link hides everything below its path.

use inlay_store::tree::{Meta, NodeId, NodeKind};

use super::Wrong;
use super::hidden::HiddenTarget;
use super::pass::Pass;
use super::path::{WhiteoutMarker, components, join};
use crate::import::Markers;

/// Maximum symbolic links followed, as in Linux.
const LINKS_MAX: u32 = 40;

/// Treatment of missing directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Create them without explicit metadata.
    Make,
    /// Resolve to nothing.
    Leave,
}

/// A resolved directory: its normalised path, and its node if it is in the tree and visible.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    pub(super) path: Vec<u8>,
    pub(super) dir: Option<NodeId>,
}

/// Result of resolving one component.
enum ComponentStep {
    Into(Option<NodeId>),
    Follow(Box<[u8]>),
}

impl Pass<'_> {
    /// Resolves the directory `dir`, given as in an entry's name.
    pub(super) fn walk(&mut self, dir: &[u8], missing: Missing) -> Result<Spot, Wrong> {
        let mut at = Spot { path: Vec::new(), dir: Some(NodeId::ROOT) };
        // Ancestors, for `..` in links.
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
                ComponentStep::Into(dir) => {
                    above.push((at.path.len(), at.dir));
                    at = Spot { path, dir };
                }
                ComponentStep::Follow(target) => {
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
    ) -> Result<ComponentStep, Wrong> {
        if let Some(target) = self.hidden.get(path) {
            let kind = match target {
                HiddenTarget::Placed(node) => Some(self.ground.tree.kind(node)),
                HiddenTarget::Hidden(place) => self.hidden.inode(place).map(|inode| &inode.kind),
            };
            return follow(kind.unwrap_or(&NodeKind::Directory), path);
        }
        let Some(dir) = at.dir else { return Ok(ComponentStep::Into(None)) };
        if self.markers == Markers::Apply {
            match WhiteoutMarker::of(name)? {
                WhiteoutMarker::Whiteout(_) => {
                    return Err(Wrong::Entry("it lies below a whiteout".into()));
                }
                WhiteoutMarker::Meta | WhiteoutMarker::Opaque => {
                    return Ok(ComponentStep::Into(None));
                }
                WhiteoutMarker::None => {}
            }
        }
        if self.ground.hides(&at.path, path) {
            return Ok(ComponentStep::Into(None));
        }
        match self.ground.tree.child(dir, name) {
            Some(node) if matches!(self.ground.tree.kind(node), NodeKind::Directory) => {
                if missing == Missing::Make && !self.is_own(node) {
                    self.touched.insert(node);
                }
                Ok(ComponentStep::Into(Some(node)))
            }
            Some(node) if self.is_own(node) => follow(self.ground.tree.kind(node), path),
            Some(_) => Ok(ComponentStep::Into(None)),
            None if missing == Missing::Leave => Ok(ComponentStep::Into(None)),
            None => {
                let meta = Meta { perm: 0o755, ..Meta::default() };
                let node = self.ground.tree.insert(dir, name, meta, NodeKind::Directory)?;
                self.ground.implicit.insert(node);
                Ok(ComponentStep::Into(Some(node)))
            }
        }
    }
}

/// Follows a symbolic link; fails on any other non-directory.
fn follow(kind: &NodeKind, path: &[u8]) -> Result<ComponentStep, Wrong> {
    match kind {
        NodeKind::Symlink(target) => Ok(ComponentStep::Follow(target.clone())),
        _ => Err(Wrong::Entry(format!(
            "it lies below '{}', which is no directory",
            path.escape_ascii()
        ))),
    }
}
