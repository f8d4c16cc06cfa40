//! Compares the store variables in the environments of daemon and client, without revealing them.

use super::api::{Fingerprint, StatusAnswer};
use crate::config;

const KEY_LEN: usize = 32;

/// Returns the fingerprint of this process's store variables under a fresh random key.
pub(super) fn fingerprint() -> std::io::Result<Fingerprint> {
    let mut key = [0; KEY_LEN];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)?;
    Ok(Fingerprint { key: hex::encode(key), digest: digest(&key, &config::store_variables()) })
}

/// Returns whether this process has the daemon's store variables.
pub fn has_environment_of(status: &StatusAnswer) -> bool {
    is_ours(&status.environment)
}

/// Returns whether this process has the store variables that `theirs` was computed from. A
/// malformed fingerprint counts as equal: it does not justify a warning.
fn is_ours(theirs: &Fingerprint) -> bool {
    let mut key = [0; KEY_LEN];
    hex::decode_to_slice(&theirs.key, &mut key).is_err()
        || digest(&key, &config::store_variables()) == theirs.digest
}

fn digest(key: &[u8; KEY_LEN], variables: &[(String, String)]) -> String {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for text in variables.iter().flat_map(|(name, value)| [name, value]) {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_variables_have_the_same_digest_under_one_key_only() {
        let of = |key: u8, value: &str| {
            digest(&[key; KEY_LEN], &[("AWS_SECRET_ACCESS_KEY".into(), value.into())])
        };
        assert_eq!(of(1, "s"), of(1, "s"));
        assert_ne!(of(1, "s"), of(1, "t"));
        assert_ne!(of(1, "s"), of(2, "s"));
        assert!(is_ours(&fingerprint().unwrap()));
    }
}
