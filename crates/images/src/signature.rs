//! Signatures of images that lie beside them in the registry, as cosign and containers/image write them, checked with public keys.
//!
//! Where they are looked for: under cosign's tag `sha256-<hex>.sig`, and among the referrers of OCI 1.1. What they are: `simple`
//! and `bundle`. `key` knows the keys. Asks a [`SignatureSource`] and so knows no HTTP; knows no policy and no store.
//!
//! Not checked, because nothing here asks a third party: transparency logs, time stamps, certificates.

mod bundle;
mod key;
mod search;
mod simple;

pub use key::{KeyError, KeyId, Keys};
pub(super) use search::verify;

use super::digest::{Digest, shorten};
use super::reference::Reference;
use ::base64::Engine as _;
use ::base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;
use std::fmt;

/// Where signatures come from: one repository of a registry.
pub(super) trait SignatureSource {
    /// Why the registry did not answer, or not what was asked.
    type Error: std::error::Error + Send + Sync + 'static;
    /// The manifest under a tag. None: there is no such tag. At most 1 MiB.
    fn tagged_manifest(&self, tag: &str) -> Result<Option<Vec<u8>>, Self::Error>;
    /// What refers to a manifest, of every type; also from the tag `sha256-<hex>` where the registry has no such request. Empty:
    /// nothing, or the registry knows none of both.
    fn referrers(&self, digest: &Digest) -> Result<Vec<Referrer>, Self::Error>;
    /// The manifest or index with a digest. At most 1 MiB.
    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, Self::Error>;
    /// A blob of `size` bytes; an error when it has more than `limit`.
    fn blob(&self, digest: &Digest, size: u64, limit: u64) -> Result<Vec<u8>, Self::Error>;
}

/// A manifest that refers to another one. Its type and annotations are nobody's word: they only save requests.
#[derive(Debug, Clone)]
pub(super) struct Referrer {
    pub(super) digest: Digest,
    /// What it is, when that is said.
    pub(super) artifact_type: Option<String>,
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Which of the image's digests is signed.
    pub digest: Digest,
    pub key: KeyId,
    /// How the signature was found and what it is.
    pub form: SignatureForm,
}

/// Where a signature was and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureForm {
    /// A signed document under the tag `sha256-<hex>.sig`.
    Tag,
    /// A signed document that refers to the image.
    Referrer,
    /// A sigstore bundle that refers to the image.
    Bundle,
}

impl fmt::Display for SignatureForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tag => "cosign's tag",
            Self::Referrer => "a referrer",
            Self::Bundle => "a sigstore bundle",
        })
    }
}

/// Why one signature does not count.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("it is signed by none of the keys")]
    OtherKey,
    /// A key fits; the image is another.
    #[error("it is for the image {named}")]
    OtherImage { named: Digest },
    /// A key fits; the image has another name.
    #[error("it is for the name {named:?}")]
    OtherRepository { named: String },
    /// A key fits; it is not about what may be run.
    #[error("it is a {found:?} and not the signature of an image")]
    OtherPurpose {
        /// What it says it is, shortened.
        found: String,
    },
    #[error("{what} is not valid: {problem}")]
    Json { what: &'static str, problem: String },
    /// Unreadable base64.
    #[error("{what} is not base64")]
    Base64 { what: &'static str },
    /// Something else than a signature that is known.
    #[error("the media type {found:?} is not one of a signature")]
    MediaType { found: String },
    /// Too many bytes.
    #[error("it has {size} bytes; the limit is {limit}")]
    TooLarge { size: u64, limit: u64 },
    /// Anything else that is wrong with its form.
    #[error("{problem}")]
    Malformed { problem: &'static str },
}

impl Refusal {
    /// One of our keys signed it, but something else.
    fn is_signed(&self) -> bool {
        matches!(self, Self::OtherImage { .. } | Self::OtherRepository { .. } | Self::OtherPurpose { .. })
    }
}

/// A signature that was looked at, and why it does not count.
#[derive(Debug)]
pub struct Candidate {
    pub place: String,
    /// Why it does not count.
    pub refusal: Refusal,
}

/// Signatures that do not count.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Those that were looked at.
    pub seen: Vec<Candidate>,
    /// How many there are besides, at least.
    pub unseen: usize,
}

impl Candidates {
    /// One of our keys signed an image with another name or digest.
    fn is_copied(&self) -> bool {
        let other = |one: &Candidate| {
            matches!(one.refusal, Refusal::OtherImage { .. } | Refusal::OtherRepository { .. })
        };
        self.seen.iter().any(other)
    }
}

/// More of them make no error clearer.
const SHOWN: usize = 4;

impl fmt::Display for Candidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Candidate { place, refusal }) in self.seen.iter().take(SHOWN).enumerate() {
            write!(f, "{}{place}: {refusal}", if at == 0 { "" } else { "; " })?;
        }
        match self.seen.len().saturating_sub(SHOWN) {
            0 => {}
            more => write!(f, "; and {more} more")?,
        }
        match self.unseen {
            0 => Ok(()),
            unseen => {
                write!(f, "; {unseen} more were not looked at, the limit is {}", search::MAX_CANDIDATES)
            }
        }
    }
}

/// No signature counts. `E` is the error of the registry.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError<E: std::error::Error + 'static> {
    #[error("{reference} has no signature in its registry, and the policy wants one")]
    Unsigned { reference: Box<Reference>, digest: Option<Digest> },
    /// There are some, none by one of the keys.
    #[error("{reference} is signed, but by none of the keys of the policy: {refused}")]
    OtherKey { reference: Box<Reference>, refused: Candidates },
    /// One of the keys signed something else.
    #[error("the signatures beside {reference} are for something else: {refused}")]
    OtherImage { reference: Box<Reference>, refused: Candidates },
    /// There is something like a signature, but nothing that can be read.
    #[error("{reference} has no signature that can be read: {refused}")]
    Unreadable { reference: Box<Reference>, refused: Candidates },
    /// The registry did not give them all, and among those that it gave none counts.
    #[error("cannot get {what} of {reference}")]
    Registry {
        reference: Box<Reference>,
        what: String,
        #[source]
        source: E,
    },
}

impl<E: std::error::Error + 'static> SignatureError<E> {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let sign = |reference: &Reference, digest: Option<Digest>| {
            let digest = digest.map_or_else(|| "sha256:…".to_owned(), |digest| digest.to_string());
            Some(format!("cosign sign --key cosign.key {}@{digest}", reference.repository()))
        };
        match self {
            Self::Unsigned { reference, digest } => sign(reference, *digest),
            Self::OtherKey { .. } => Some(
                "if that key may sign this image, add its public half to `keys` of the rule in policy.toml"
                    .to_owned(),
            ),
            Self::OtherImage { reference, refused } if refused.is_copied() => Some(format!(
                "if the image was copied from elsewhere, sign it for its new place: \
                 cosign sign --key cosign.key --sign-container-identity {0} {0}@sha256:…",
                reference.repository()
            )),
            Self::Unreadable { reference, .. } | Self::OtherImage { reference, .. } => sign(reference, None),
            Self::Registry { .. } => None,
        }
    }
}

/// What a signature has to say.
struct Claim<'a> {
    keys: &'a Keys,
    reference: &'a Reference,
    digests: &'a [Digest],
}

/// What a signature that counts says.
#[derive(Debug, PartialEq, Eq)]
struct Signed {
    digest: Digest,
    key: KeyId,
}

impl Claim<'_> {
    /// The digest, when it is one of the image's. Only for what one of the keys signed.
    fn wanted(&self, named: Digest) -> Result<Digest, Refusal> {
        if self.digests.contains(&named) { Ok(named) } else { Err(Refusal::OtherImage { named }) }
    }
}

/// Standard base64 with its padding, in one line: one text for the same bytes.
fn base64(what: &'static str, text: &str) -> Result<Vec<u8>, Refusal> {
    STANDARD.decode(text).map_err(|_| Refusal::Base64 { what })
}

#[cfg(test)]
mod tests;
