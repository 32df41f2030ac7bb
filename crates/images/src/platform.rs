//! The platform of an image: operating system, architecture, variant (OCI image-spec, image-index.md).

use super::digest::shorten;
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
    /// A Linux guest on this host.
    pub fn host() -> Self {
        Arch::native().map_or_else(|| Self::of("linux", std::env::consts::ARCH, None), Self::guest)
    }

    /// A Linux guest of this architecture.
    pub fn guest(arch: Arch) -> Self {
        let architecture = match arch {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        };
        Self::of("linux", architecture, None)
    }

    /// The platform in an image's configuration, which may be incomplete.
    pub(super) fn of(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let short = |text: &str| text.chars().take(MAX_PART_LEN).collect();
        Self { os: short(os), architecture: short(architecture), variant: variant.map(short) }
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

    /// How well an image for `found` satisfies a request for this platform: 0 is best, `None` not at all. Without a requested variant the
    /// architecture's basic one is best, which runs everywhere.
    pub(super) fn fit(&self, found: &Self) -> Option<u8> {
        if (self.os(), self.architecture()) != (found.os(), found.architecture()) {
            return None;
        }
        let basic = match self.architecture() {
            "arm64" => "v8",
            "arm" => "v7",
            _ => "v1",
        };
        match (self.variant(), found.variant()) {
            (wanted, found) if wanted == found => Some(0),
            (None, Some(found)) | (Some(found), None) if found == basic => Some(1),
            _ => None,
        }
    }

    /// Whether an image for `found` satisfies a request for this platform. Missing parts of the image's platform fit.
    pub fn takes(&self, found: &Self) -> bool {
        let or = |found: &str, wanted: &str| if found.is_empty() { wanted } else { found }.to_owned();
        let whole = Self {
            os: or(&found.os, &self.os),
            architecture: or(&found.architecture, &self.architecture),
            variant: found.variant.clone(),
        };
        self.fit(&whole).is_some()
    }
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

    #[test]
    fn the_basic_variant_is_taken_when_none_is_asked_for() {
        let arm = platform("linux/arm64");
        assert_eq!(arm.fit(&platform("linux/arm64")), Some(0));
        assert_eq!(arm.fit(&platform("linux/arm64/v8")), Some(1));
        assert_eq!(arm.fit(&platform("linux/arm64/v9")), None);
        assert_eq!(platform("linux/arm64/v8").fit(&arm), Some(1));
        assert_eq!(platform("linux/arm/v6").fit(&platform("linux/arm/v6")), Some(0));
        assert_eq!(arm.fit(&platform("linux/amd64")), None);
        assert_eq!(platform("linux/amd64").fit(&platform("windows/amd64")), None);
    }

    #[test]
    fn what_is_no_platform_is_refused_with_the_form() {
        for text in ["", "amd64", "linux/", "linux//v8", "linux/a/b/c", "linux/arm 64", "linux/\u{1b}[0m"] {
            let error = text.parse::<Platform>().unwrap_err().to_string();
            assert!(error.contains("OS/ARCHITECTURE"), "{error}");
        }
        assert_eq!(platform("linux/arm/v7").to_string(), "linux/arm/v7");
        let host = Platform::host();
        assert!(host.takes(&host) && host.takes(&Platform::of("", "", None)));
        assert!(!host.takes(&platform("linux/s390x")));
        let [intel, arm] = [Arch::X86_64, Arch::Aarch64].map(Platform::guest);
        assert_eq!(
            (intel.to_string(), arm.to_string()),
            ("linux/amd64".to_owned(), "linux/arm64".to_owned())
        );
        assert!(arm.takes(&platform("linux/arm64/v8")) && !arm.takes(&intel) && !intel.takes(&arm));
        let plain = platform("linux/amd64");
        assert!(plain.takes(&Platform::of("", "amd64", None)) && plain.takes(&platform("linux/amd64/v1")));
        assert!(!plain.takes(&platform("linux/amd64/v3")) && !plain.takes(&platform("windows/amd64")));
    }
}
