//! Reads the extended attributes of an object.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr};

/// All extended attributes that the caller may see, access control lists among them. Symbolic
/// links are not followed.
pub fn read(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    // The kernel's own limits: 64 KiB for the list of names, 64 KiB for a value.
    let mut list = Vec::with_capacity(64 << 10);
    match llistxattr(path, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    }
    let mut attributes = BTreeMap::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        let mut value = Vec::with_capacity(64 << 10);
        lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value))?;
        attributes.insert(name.to_owned(), value);
    }
    Ok(attributes)
}
