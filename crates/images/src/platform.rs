//! The platform of an image: operating system, architecture, variant (OCI image-spec, image-index.md).

use super::digest::shorten;
use super::document::null_is_default;
use magikvm_proto::guest_image::Arch;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest part of a platform in bytes; the longest existing ones have ten.
const MAX_PART_LEN: usize = 32;

/// `linux/amd64`, `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    /// What it needs of the system, for example support for a form of layers.
    #[serde(
        rename = "os.features",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    features: Vec<String>,
}

/// The text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a platform; the form is OS/ARCHITECTURE[/VARIANT], for example linux/amd64 or linux/arm64/v8"
)]
pub struct PlatformError {
    text: String,
}

impl Platform {
    /// The platform in an image's configuration, which may be incomplete.
    pub(super) fn of(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let short = |text: &str| text.chars().take(MAX_PART_LEN).collect();
        let variant = variant.map(short);
        Self { os: short(os), architecture: short(architecture), variant, features: Vec::new() }
    }

    /// `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// `amd64`, `arm64`: Go's names.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// `v7`, `v8`, `v2`.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref().filter(|variant| !variant.is_empty())
    }

    /// Whether it marks something that is not an image, such as an attestation of a build.
    pub(super) fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// The same platform under the usual names, as containerd writes them.
    fn usual(&self) -> Usual {
        let lower = |text: &str| text.to_ascii_lowercase();
        let (mut os, mut architecture) = (lower(&self.os), lower(&self.architecture));
        let mut variant = self.variant().map(lower);
        if os == "macos" {
            os = "darwin".to_owned();
        }
        let (name, implied) = match architecture.as_str() {
            "x86_64" | "x86-64" => ("amd64", None),
            "i386" => ("386", None),
            "aarch64" => ("arm64", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            _ => ("", None),
        };
        if !name.is_empty() {
            architecture = name.to_owned();
            variant = implied.map(str::to_owned).or(variant);
        }
        if variant.as_ref().is_some_and(|variant| variant.starts_with(|c: char| c.is_ascii_digit())) {
            variant = variant.map(|number| format!("v{number}"));
        }
        Usual { os, architecture, variant }
    }
}

/// A platform under its usual names.
#[derive(Debug, PartialEq, Eq)]
struct Usual {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Usual {
    /// The variant that an image without one is for.
    fn basic(&self) -> &'static str {
        match self.architecture.as_str() {
            "arm64" => "v8",
            "arm" => "v7",
            _ => "v1",
        }
    }

    fn variant(&self) -> &str {
        self.variant.as_deref().unwrap_or_else(|| self.basic())
    }
}

/// The rank of a variant: a processor runs the programs of lower ones of its architecture too.
fn rank(variant: &str) -> Option<u32> {
    let (major, minor) = variant.strip_prefix('v')?.split_once('.').unwrap_or((&variant[1..], "0"));
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number < 100);
    Some(number(major)? * 100 + number(minor)?)
}

/// The platform that an image must be for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Wanted {
    platform: Platform,
    /// The best variant that its processor runs, if the platform has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    processor: Option<String>,
}

impl Wanted {
    /// The platform without what its processor could do more.
    pub(super) fn platform(&self) -> &Platform {
        &self.platform
    }

    /// A Linux guest on this host, whatever accelerates it.
    pub fn host() -> Self {
        let arch = |arch| Self::guest(arch, any_processor());
        Arch::native().map_or_else(|| Platform::of("linux", std::env::consts::ARCH, None).into(), arch)
    }

    /// A Linux guest of this architecture, whose processor runs programs up to this variant.
    pub fn guest(arch: Arch, processor: &str) -> Self {
        let architecture = match arch {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        };
        Self { platform: Platform::of("linux", architecture, None), processor: Some(processor.to_owned()) }
    }

    /// How well an image for `found` satisfies the request: 0 is best, `None` not at all. A requested variant is best, then lower ones.
    /// Without a requested variant the architecture's basic one is best, which runs everywhere and which other runtimes take, then the
    /// highest one that the processor runs, then lower ones.
    pub(super) fn fit(&self, found: &Platform) -> Option<u32> {
        let (wanted, usual) = (self.platform.usual(), found.usual());
        // No feature is known, so what needs one does not run.
        let same = (&wanted.os, &wanted.architecture) == (&usual.os, &usual.architecture);
        if !same || !found.features.is_empty() {
            return None;
        }
        let unstated = u32::from(self.platform.variant().is_some() != found.variant().is_some());
        if wanted.variant() == usual.variant() {
            return Some(unstated);
        }
        let has = rank(usual.variant())?;
        let basic = rank(wanted.variant())?;
        let best = match (&wanted.variant, &self.processor) {
            (None, Some(processor)) => rank(processor).unwrap_or(basic).max(basic),
            _ => basic,
        };
        match has {
            has if has > best => None,
            has if has > basic => Some(2 + best - has),
            has => Some(10_000 + basic - has),
        }
    }

    /// Whether an image for `found` satisfies the request. Missing parts of the image's platform fit.
    pub fn takes(&self, found: &Platform) -> bool {
        self.fit(&self.complete(found)).is_some()
    }

    /// Whether an image for `found` is what was asked for: a requested variant and not a lower one.
    pub(super) fn is_met_by(&self, found: &Platform) -> bool {
        let fit = self.fit(&self.complete(found));
        fit.is_some_and(|fit| fit <= 1 || self.platform.variant().is_none())
    }

    fn complete(&self, found: &Platform) -> Platform {
        let or = |found: &str, wanted: &str| if found.is_empty() { wanted } else { found }.to_owned();
        Platform {
            os: or(&found.os, &self.platform.os),
            architecture: or(&found.architecture, &self.platform.architecture),
            ..found.clone()
        }
    }

    /// The platform, and what its processor runs, for messages.
    pub fn described(&self) -> String {
        match (self.platform.variant(), &self.processor) {
            (None, Some(processor)) => {
                format!("{} (its processor runs variants up to {})", self.platform, shorten(processor))
            }
            _ => self.platform.to_string(),
        }
    }
}

impl From<Platform> for Wanted {
    /// A request for this platform. If that is this host's without a variant, its processor tells which variants run.
    fn from(platform: Platform) -> Self {
        let native = Arch::native().map(|arch| Self::guest(arch, any_processor()));
        match native {
            Some(native) if native.platform.usual() == platform.usual() => {
                Self { platform, processor: native.processor }
            }
            _ => Self { platform, processor: None },
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.platform.fmt(f)
    }
}

/// The highest variant that every VM of this host runs, for images whose pods are not known: QEMU's emulation has no AVX-512.
fn any_processor() -> &'static str {
    match host_processor() {
        "v4" => "v3",
        processor => processor,
    }
}

/// The highest variant of this host's architecture that its processor and its kernel run (x86-64 psABI, micro-architecture levels).
pub fn host_processor() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! all {
            ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
        }
        let v2 = all!("cmpxchg16b", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2");
        let v3 = v2 && all!("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe");
        let v4 = v3 && all!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl");
        match (v2, v3, v4) {
            (.., true) => "v4",
            (_, true, _) => "v3",
            (true, ..) => "v2",
            _ => "v1",
        }
    }
    // Every processor of the architecture runs this one; what lies above is not examined.
    #[cfg(not(target_arch = "x86_64"))]
    "v8"
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", shorten(&self.os), shorten(&self.architecture))?;
        self.variant().map_or(Ok(()), |variant| write!(f, "/{}", shorten(variant)))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError { text: shorten(text) };
        let valid = |part: &str| {
            (1..=MAX_PART_LEN).contains(&part.len())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| valid(part)) {
            return Err(wrong());
        }
        match parts.as_slice() {
            [os, architecture] => Ok(Self::of(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::of(os, architecture, Some(variant))),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    /// A request on a host whose processor is unknown.
    fn wanted(text: &str) -> Wanted {
        Wanted { platform: platform(text), processor: None }
    }

    /// The best one of these for a request.
    fn best<'a>(wanted: &Wanted, found: &[&'a str]) -> Option<&'a str> {
        let fits = found.iter().filter_map(|text| Some((wanted.fit(&platform(text))?, *text)));
        fits.min_by_key(|(fit, _)| *fit).map(|(_, text)| text)
    }

    #[test]
    fn the_basic_variant_is_taken_when_none_is_asked_for() {
        let arm = wanted("linux/arm64");
        assert_eq!(arm.fit(&platform("linux/arm64")), Some(0));
        assert_eq!(arm.fit(&platform("linux/arm64/v8")), Some(1));
        assert_eq!(arm.fit(&platform("linux/arm64/v9")), None);
        assert_eq!(wanted("linux/arm64/v8").fit(&platform("linux/arm64")), Some(1));
        assert_eq!(wanted("linux/arm/v6").fit(&platform("linux/arm/v6")), Some(0));
        assert_eq!(arm.fit(&platform("linux/amd64")), None);
        assert_eq!(wanted("linux/amd64").fit(&platform("windows/amd64")), None);
        let v3 = Wanted::guest(Arch::X86_64, "v3");
        assert_eq!(best(&v3, &["linux/amd64/v3", "linux/amd64", "linux/amd64/v2"]), Some("linux/amd64"));
    }

    #[test]
    fn without_a_basic_one_the_best_variant_that_runs_is_taken() {
        let intel = ["linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4", "linux/arm64/v8"];
        for (processor, expected) in
            [("v1", None), ("v2", Some(intel[0])), ("v3", Some(intel[1])), ("v4", Some(intel[2]))]
        {
            assert_eq!(best(&Wanted::guest(Arch::X86_64, processor), &intel), expected, "{processor}");
        }
        let arm = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8"];
        assert_eq!(best(&wanted("linux/arm"), &arm), Some("linux/arm/v7"));
        assert_eq!(best(&wanted("linux/arm"), &arm[..2]), Some("linux/arm/v6"));
        assert_eq!(best(&wanted("linux/arm/v8"), &arm), Some("linux/arm/v8"));
        assert_eq!(best(&wanted("linux/arm/v6"), &arm), Some("linux/arm/v6"));
        assert_eq!(best(&wanted("linux/arm/v6"), &arm[2..]), None);
        assert_eq!(
            best(&wanted("linux/arm64/v9"), &["linux/arm64", "linux/arm64/v8.2", "linux/arm64/v9.1"]),
            Some("linux/arm64/v8.2")
        );
    }

    #[test]
    fn other_names_mean_the_same_platform() {
        let same = [
            ("linux/amd64", "Linux/X86_64"),
            ("linux/arm64/v8", "linux/aarch64"),
            ("linux/arm64", "linux/arm64/8"),
            ("linux/arm/v7", "linux/armhf"),
            ("linux/arm/v6", "linux/armel"),
            ("linux/arm", "linux/arm/v7"),
        ];
        for (a, b) in same {
            assert!(wanted(a).is_met_by(&platform(b)) && wanted(b).is_met_by(&platform(a)), "{a} {b}");
        }
        assert_eq!(
            (rank("v2"), rank("v8.2"), rank("z14"), rank("v"), rank("ü")),
            (Some(200), Some(802), None, None, None)
        );
        assert!(wanted("linux/s390x/z14").is_met_by(&platform("linux/s390x/z14")));
        assert!(!wanted("linux/s390x/z14").takes(&platform("linux/s390x/z15")));
    }

    #[test]
    fn an_image_that_needs_a_feature_is_not_taken() {
        let of = |json: &str| wanted("linux/amd64").fit(&serde_json::from_str(json).unwrap());
        assert_eq!(of(r#"{"os":"linux","architecture":"amd64","os.features":["erofs"]}"#), None);
        assert_eq!(
            of(r#"{"os":"linux","architecture":"amd64","os.features":null,"os.version":"6"}"#),
            Some(0)
        );
    }

    #[test]
    fn a_variant_that_was_asked_for_is_not_replaced_by_a_lower_one() {
        let (v2, plain) = (platform("linux/amd64/v2"), platform("linux/amd64"));
        let asked = wanted("linux/amd64/v2");
        assert!(asked.is_met_by(&v2) && asked.takes(&plain) && !asked.is_met_by(&plain));
        let run = Wanted::guest(Arch::X86_64, "v3");
        assert!(run.is_met_by(&v2) && run.is_met_by(&plain) && !run.is_met_by(&platform("linux/amd64/v4")));
        assert_eq!(run.described(), "linux/amd64 (its processor runs variants up to v3)");
    }

    #[test]
    fn what_is_no_platform_is_refused_with_the_form() {
        for text in ["", "amd64", "linux/", "linux//v8", "linux/a/b/c", "linux/arm 64", "linux/\u{1b}[0m"] {
            let error = text.parse::<Platform>().unwrap_err().to_string();
            assert!(error.contains("OS/ARCHITECTURE"), "{error}");
        }
        assert_eq!(platform("linux/arm/v7").to_string(), "linux/arm/v7");
        let host = Wanted::host();
        assert!(host.takes(&host.platform) && host.takes(&Platform::of("", "", None)));
        assert!(!host.takes(&platform("linux/s390x")));
        assert_eq!(Wanted::from(host.platform.clone()), host);
        let [intel, arm] = [Wanted::guest(Arch::X86_64, "v1"), Wanted::guest(Arch::Aarch64, "v8")];
        assert_eq!(
            (intel.to_string(), arm.to_string()),
            ("linux/amd64".to_owned(), "linux/arm64".to_owned())
        );
        assert!(!arm.takes(&intel.platform) && !intel.takes(&arm.platform));
        assert!(intel.takes(&Platform::of("", "amd64", None)) && intel.takes(&platform("linux/amd64/v1")));
        assert!(!intel.takes(&platform("linux/amd64/v3")) && !intel.takes(&platform("windows/amd64")));
    }
}
