//! The tree that is captured: the shape of a project with its dependencies, the same every time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How many files, and how many bytes they have together: about 1.4 GiB.
pub(crate) const FILES: u32 = 152_314;
/// Files in a directory, on average.
const PER_DIR: u32 = 10;

/// A small generator of numbers (xorshift64*: Marsaglia, "Xorshift RNGs", 2003; Vigna, 2016).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Where file `number` is.
pub(crate) fn path(root: &Path, number: u32) -> PathBuf {
    let dir = number / PER_DIR;
    let (package, part) = (dir / 24, dir % 24);
    root.join(format!("node_modules/package-{package:03}/lib/part-{part:02}/module-{number:06}.js"))
}

/// Most files are small, some large: the mean is 9.7 KiB.
fn size(random: &mut Random) -> usize {
    let exponent = 8 + random.below(6) + u64::from(random.below(20) == 0) * random.below(6);
    let base = 1u64 << exponent;
    usize::try_from(base + random.below(base * 3)).unwrap()
}

/// Text that compresses about as source code does.
pub(crate) fn contents(random: &mut Random, len: usize, out: &mut Vec<u8>) {
    const WORDS: [&str; 16] = [
        "function",
        "return",
        "const",
        "exports",
        "require",
        "module",
        "this",
        "undefined",
        "prototype",
        "length",
        "if (",
        ") {\n  ",
        "};\n",
        " = ",
        ".call(",
        "null",
    ];
    out.clear();
    while out.len() < len {
        if random.below(3) == 0 {
            write!(out, "{:x} ", random.below(1 << 32)).unwrap();
        } else {
            let word = WORDS[usize::try_from(random.below(16)).unwrap()];
            out.extend_from_slice(word.as_bytes());
            out.push(b' ');
        }
    }
    out.truncate(len);
}

/// Makes the tree in `root`. Returns the bytes of all files.
pub(crate) fn make(root: &Path, files: u32) -> io::Result<u64> {
    let mut random = Random::new(7);
    let mut bytes = Vec::new();
    let mut total = 0;
    let mut last = PathBuf::new();
    for number in 0..files {
        let path = path(root, number);
        let dir = path.parent().unwrap_or(root);
        if dir != last {
            fs::create_dir_all(dir)?;
            dir.clone_into(&mut last);
        }
        let len = size(&mut random);
        contents(&mut random, len, &mut bytes);
        File::create(&path)?.write_all(&bytes)?;
        total += bytes.len() as u64;
    }
    Ok(total)
}

/// Writes `count` files anew, each with other contents. Returns their bytes.
pub(crate) fn change(root: &Path, files: u32, count: u32, seed: u64) -> io::Result<u64> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::new();
    let mut total = 0;
    for number in 0..count {
        let path = path(root, (number * (files / count)).min(files - 1));
        let len = size(&mut random);
        contents(&mut random, len, &mut bytes);
        fs::write(path, &bytes)?;
        total += bytes.len() as u64;
    }
    Ok(total)
}
