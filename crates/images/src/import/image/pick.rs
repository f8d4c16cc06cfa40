//! Selects one of several images by name and platform.

use std::collections::BTreeSet;

use super::manifest::{Document, ImageIndex, RawPlatform};
use super::{Descriptor, ImageError, ImageManifest};
use crate::import::Platform;

/// Maximum nesting of indexes. Real images have one level, or two in a layout.
const NESTING_MAX: usize = 4;

/// Source of indexes and manifests.
pub(in crate::import) trait Manifests {
    /// Returns an index or a manifest, verified against its digest.
    fn get(&mut self, of: &Descriptor) -> Result<Vec<u8>, ImageError>;
}

/// Finds the manifest for `platform` in a list, descending into nested indexes.
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

/// Returns the images of a layout named `tag`; without a tag, all images unless they have different
/// names.
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
        // The first of equally good ones.
        .min()
        .map(|(_, place)| place);
    match best {
        Some(place) => Ok(images.swap_remove(place)),
        None => Err(ImageError::NoSuchPlatform {
            wanted: wanted.to_string(),
            there: images
                .iter()
                .filter_map(|image| image.platform.as_ref())
                .map(|platform| platform_name(platform).escape_debug().to_string())
                .collect(),
        }),
    }
}

/// Ranks how well an image fits; lower is better. `None` if it does not.
fn fit(platform: Option<&RawPlatform>, wanted: &Platform) -> Option<Fit> {
    // Single-platform images often omit the platform.
    let Some(platform) = platform.filter(|p| !p.os.is_empty()) else { return Some(Fit::Unstated) };
    if platform.os != wanted.os || platform.architecture != wanted.architecture {
        return None;
    }
    let (has, wants) = (platform.variant.as_deref(), wanted.variant.as_deref());
    if has == wants {
        return Some(Fit::Exact);
    }
    let level = |variant| Level::of(&wanted.architecture, variant);
    let compatible = level(wants).zip(level(has)).and_then(|(wants, has)| wants.distance_to(has));
    match (compatible, has, wants) {
        (Some(distance), ..) => Some(Fit::Compatible(distance)),
        (None, None, Some(_)) => Some(Fit::NoVariant),
        // If variants are ordered, a newer one may need a newer processor.
        (None, Some(_), None) if level(None).is_none() => Some(Fit::AnyVariant),
        _ => None,
    }
}

/// How well an image fits the wanted platform, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// The wanted variant, by the same name.
    Exact,
    /// A variant that runs wherever the wanted one does, by the number of versions it is older.
    Compatible(u32),
    /// The image has no variant, and its baseline is newer than the wanted one or unknown.
    NoVariant,
    /// The image has no platform.
    Unstated,
    /// No variant was requested, and the architecture's variants have no order.
    AnyVariant,
}

/// Version of an architecture whose variants are ordered: each runs programs for older ones.
/// Follows containerd's `platforms.Only`, which docker uses, too.
#[derive(Debug, Clone, Copy)]
struct Level {
    major: u32,
    minor: u32,
}

impl Level {
    /// Returns the version of a variant, or of the baseline that containerd and docker assume
    /// without one. `None` if the architecture or the variant is unknown.
    fn of(architecture: &str, variant: Option<&str>) -> Option<Self> {
        let baseline = match architecture {
            "amd64" => "1",
            "arm" => "7",
            "arm64" => "8",
            _ => return None,
        };
        let version = variant.unwrap_or(baseline);
        let version = version.strip_prefix(['v', 'V']).unwrap_or(version);
        let (major, minor) = match version.split_once('.') {
            // Only versions of arm64 have a minor part.
            Some((major, minor)) if architecture == "arm64" => (major, minor),
            Some(_) => return None,
            None => (version, "0"),
        };
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// Returns how many versions `older` is behind this one, or `None` if it is not older or equal.
    fn distance_to(self, older: Self) -> Option<u32> {
        if self.major == older.major {
            return self.minor.checked_sub(older.minor);
        }
        if (self.major, older.major) == (9, 8) {
            // Armv9.N includes Armv8.(N+5), and Armv8 ends with 8.9.
            let newest = self.minor.saturating_add(5).min(9);
            return newest.checked_sub(older.minor)?.checked_add(self.minor)?.checked_add(1);
        }
        // All versions of the other architectures are major ones.
        if (self.minor, older.minor) == (0, 0) { self.major.checked_sub(older.major) } else { None }
    }
}

fn platform_name(platform: &RawPlatform) -> String {
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
        assert_eq!(place(&all, &wanted("arm", None)), Some(3));
        assert_eq!(place(&all, &wanted("riscv64", None)), None);
        assert_eq!(place(&all[..5], &wanted("amd64", None)), None);
        let error = pick(index(&all), &wanted("s390x", None)).unwrap_err().to_string();
        assert!(error.contains("linux/s390x") && error.contains("linux/arm/v7"), "{error}");
        assert!(!error.contains("unknown"), "{error}");
    }

    #[test]
    fn older_variants_stand_in_for_the_wanted_one() {
        let of = |architecture: &'static str, variants: &[&'static str]| {
            variants.iter().map(|variant| ("linux", architecture, *variant)).collect::<Vec<_>>()
        };
        for (architecture, variants, variant, best) in [
            ("amd64", &["v4", "v2", "v1"][..], Some("v3"), Some(1)),
            ("amd64", &["v4", "", "v2"], Some("v3"), Some(2)),
            ("amd64", &["", "v1"], Some("v3"), Some(0)),
            ("amd64", &["v2", "v3"], Some("v1"), None),
            ("amd64", &["v2", "v1"], None, Some(1)),
            // Without a request, nothing newer than the baseline, as in docker and containerd.
            ("amd64", &["v2", "v3"], None, None),
            ("arm", &["v5", "v6", "v8"], Some("v7"), Some(1)),
            ("arm", &["v5", "v6"], None, Some(1)),
            ("arm", &["v7", "v6"], Some("v5"), None),
            ("arm", &[""], Some("v5"), Some(0)),
            ("arm64", &["v8", "v8.2", "v9"], Some("v8.3"), Some(1)),
            ("arm64", &["v8.6", "v8.5", "v8.4"], Some("v9"), Some(1)),
            ("arm64", &["v8.5", "v9.2"], Some("v9.1"), Some(0)),
            ("arm64", &["v9", "v8.1", "v8"], None, Some(2)),
            ("arm64", &["v9"], None, None),
            ("riscv64", &["rva23"], None, Some(0)),
            ("riscv64", &["rva23"], Some("rva20"), None),
            ("amd64", &["v4294967296", "x"], Some("v3"), None),
        ] {
            let found = place(&of(architecture, variants), &wanted(architecture, variant));
            assert_eq!(found, best, "{architecture} {variants:?} {variant:?}");
        }
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
