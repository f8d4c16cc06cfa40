//! Which of several images is meant: by its name, by its platform.

use std::collections::BTreeSet;

use super::manifest::{Document, ImageIndex, RawPlatform};
use super::{Descriptor, ImageError, ImageManifest};
use crate::import::Platform;

/// How deep indexes may stand in indexes. Real ones have one level, or two in a layout.
const NESTING_MAX: usize = 4;

/// Where indexes and manifests are.
pub(in crate::import) trait Manifests {
    /// The bytes of an index or a manifest, its digest checked.
    fn get(&mut self, of: &Descriptor) -> Result<Vec<u8>, ImageError>;
}

/// Finds the manifest for `platform`, from a list of which one is meant.
pub(in crate::import) fn resolve(
    source: &mut dyn Manifests,
    mut list: Vec<Descriptor>,
    platform: &Platform,
) -> Result<ImageManifest, ImageError> {
    for _ in 0..NESTING_MAX {
        let picked = pick(list, platform)?;
        let bytes = source.get(&picked)?;
        match Document::parse(&bytes, &picked.digest.to_string())? {
            Document::Manifest(manifest) => return Ok(manifest),
            Document::Index(ImageIndex { manifests }) => list = manifests,
        }
    }
    Err(ImageError::TooLarge {
        what: "the image".to_owned(),
        found: NESTING_MAX as u64 + 1,
        of: "indexes inside each other",
        limit: NESTING_MAX as u64,
    })
}

/// Of all images of a layout those with the name `tag`; without a name, all if they are one image.
pub(in crate::import) fn with_tag(
    manifests: Vec<Descriptor>,
    tag: Option<&str>,
) -> Result<Vec<Descriptor>, ImageError> {
    let names: BTreeSet<String> = manifests
        .iter()
        .filter_map(|m| m.names().next())
        .map(|name| name.escape_debug().to_string())
        .collect();
    match tag {
        None if names.len() > 1 => Err(ImageError::Ambiguous(names.into_iter().collect())),
        None => Ok(manifests),
        Some(tag) => {
            let found: Vec<Descriptor> =
                manifests.into_iter().filter(|m| m.names().any(|name| name == tag)).collect();
            if found.is_empty() {
                return Err(ImageError::NoSuchImage {
                    wanted: tag.to_owned(),
                    there: names.into_iter().collect(),
                });
            }
            Ok(found)
        }
    }
}

fn pick(manifests: Vec<Descriptor>, wanted: &Platform) -> Result<Descriptor, ImageError> {
    let mut images: Vec<Descriptor> = manifests.into_iter().filter(|m| !m.is_statement()).collect();
    let best = images
        .iter()
        .enumerate()
        .filter_map(|(place, image)| fit(image.platform.as_ref(), wanted).map(|fit| (fit, place)))
        // Of equally good ones the first.
        .min()
        .map(|(_, place)| place);
    match best {
        Some(place) => Ok(images.swap_remove(place)),
        None => Err(ImageError::NoSuchPlatform {
            wanted: wanted.to_string(),
            there: images
                .iter()
                .filter_map(|image| image.platform.as_ref())
                .map(|platform| shown(platform).escape_debug().to_string())
                .collect(),
        }),
    }
}

/// How well an image fits: smaller is better. `None`: not at all.
fn fit(platform: Option<&RawPlatform>, wanted: &Platform) -> Option<u8> {
    // Whoever has only one platform often leaves it out.
    let Some(platform) = platform.filter(|p| !p.os.is_empty()) else { return Some(3) };
    if platform.os != wanted.os || platform.architecture != wanted.architecture {
        return None;
    }
    match (platform.variant.as_deref(), wanted.variant.as_deref()) {
        (has, wants) if has == wants => Some(0),
        // What every processor of the architecture is.
        (Some("v8"), None) | (None, Some("v8")) if wanted.architecture == "arm64" => Some(1),
        (Some("v1"), None) | (None, Some("v1")) if wanted.architecture == "amd64" => Some(1),
        (None, Some(_)) => Some(2),
        // A variant that nobody asked for may need a newer processor than there is.
        (Some(_), None) if wanted.architecture != "amd64" => Some(4),
        _ => None,
    }
}

fn shown(platform: &RawPlatform) -> String {
    let base = format!("{}/{}", platform.os, platform.architecture);
    platform.variant.as_ref().map_or(base.clone(), |variant| format!("{base}/{variant}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(architecture: &str, variant: Option<&str>) -> Platform {
        Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        }
    }

    fn index(entries: &[(&str, &str, &str)]) -> Vec<Descriptor> {
        let entries: Vec<String> = entries
            .iter()
            .enumerate()
            .map(|(n, (os, architecture, variant))| {
                let variant = if variant.is_empty() {
                    String::new()
                } else {
                    format!(r#","variant":"{variant}""#)
                };
                format!(
                    r#"{{"digest":"sha256:{n:064}","size":1,
                    "platform":{{"os":"{os}","architecture":"{architecture}"{variant}}}}}"#
                )
            })
            .collect();
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        match Document::parse(text.as_bytes(), "i").unwrap() {
            Document::Index(index) => index.manifests,
            Document::Manifest(_) => panic!(),
        }
    }

    fn place(entries: &[(&str, &str, &str)], wanted: &Platform) -> Option<usize> {
        let picked = pick(index(entries), wanted).ok()?;
        picked.digest.hex().trim_start_matches('0').parse().ok().or(Some(0))
    }

    #[test]
    fn the_platform_that_fits_best_is_taken() {
        let all = [
            ("unknown", "unknown", ""),
            ("windows", "amd64", ""),
            ("linux", "arm", "v6"),
            ("linux", "arm", "v7"),
            ("linux", "amd64", "v3"),
            ("linux", "amd64", ""),
            ("linux", "arm64", "v8"),
        ];
        assert_eq!(place(&all, &wanted("amd64", None)), Some(5));
        assert_eq!(place(&all, &wanted("amd64", Some("v3"))), Some(4));
        assert_eq!(place(&all, &wanted("arm64", None)), Some(6));
        assert_eq!(place(&all, &wanted("arm", Some("v7"))), Some(3));
        assert_eq!(place(&all, &wanted("arm", Some("v5"))), None);
        assert_eq!(place(&all, &wanted("arm", None)), Some(2));
        assert_eq!(place(&all, &wanted("riscv64", None)), None);
        assert_eq!(place(&all[..5], &wanted("amd64", None)), None);
        let error = pick(index(&all), &wanted("s390x", None)).unwrap_err().to_string();
        assert!(error.contains("linux/s390x") && error.contains("linux/arm/v7"), "{error}");
        assert!(!error.contains("unknown"), "{error}");
    }

    struct Endless;

    impl Manifests for Endless {
        fn get(&mut self, of: &Descriptor) -> Result<Vec<u8>, ImageError> {
            let digest = &of.digest;
            Ok(format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":1}}]}}"#)
                .into_bytes())
        }
    }

    #[test]
    fn indexes_do_not_nest_for_ever() {
        let start = index(&[("linux", "amd64", "")]);
        let error = resolve(&mut Endless, start, &wanted("amd64", None)).unwrap_err();
        assert!(matches!(error, ImageError::TooLarge { .. }));
    }
}
