//! Signatures of images that are stored beside them in the registry by cosign and containers/image, verified with public keys.
//!
//! They are searched under cosign's tag `sha256-<hex>.sig` and among the referrers of OCI 1.1. `simple` and `bundle` are their forms;
//! `key` has the keys. Reads from a [`SignatureSource`] and so must not know HTTP, nor policies and the store.
//!
//! Transparency logs, time stamps and certificates are not checked, because nothing here asks a third party.

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

/// The source of signatures: one repository of a registry.
pub(super) trait SignatureSource {
    /// Why the registry did not answer, or answered wrongly.
    type Error: std::error::Error + Send + Sync + 'static;
    /// The manifest of a tag; `None` if there is no such tag. At most 1 MiB.
    fn tagged_manifest(&self, tag: &str) -> Result<Option<Vec<u8>>, Self::Error>;
    /// Everything that refers to a manifest, of any type, also from the tag `sha256-<hex>` where the registry has no such request. Empty
    /// if nothing does, or if the registry supports neither.
    fn referrers(&self, digest: &Digest) -> Result<Vec<Referrer>, Self::Error>;
    /// The manifest or index with a digest. At most 1 MiB.
    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, Self::Error>;
    /// A blob of `size` bytes; an error when it has more than `limit`.
    fn blob(&self, digest: &Digest, size: u64, limit: u64) -> Result<Vec<u8>, Self::Error>;
}

/// A manifest that refers to another one. Its type and annotations are untrusted and only save requests.
#[derive(Debug, Clone)]
pub(super) struct Referrer {
    pub(super) digest: Digest,
    /// Its type, if stated.
    pub(super) artifact_type: Option<String>,
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Which of the image's digests is signed.
    pub digest: Digest,
    pub key: KeyId,
    /// How the signature was found, and its form.
    pub form: SignatureForm,
}

/// The place and the form of a signature.
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

/// Why a signature does not count.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("it is signed by none of the keys")]
    OtherKey,
    /// The key is right, but the image is another.
    #[error("it is for the image {named}")]
    OtherImage { named: Digest },
    /// The key is right, but the image's name is another.
    #[error("it is for the name {named:?}")]
    OtherRepository { named: String },
    /// The key is right, but the signature is not a permission to run.
    #[error("it is a {found:?} and not the signature of an image")]
    OtherPurpose {
        /// The type that it states, shortened.
        found: String,
    },
    #[error("{what} is not valid: {problem}")]
    Json { what: &'static str, problem: String },
    /// Unreadable base64.
    #[error("{what} is not base64")]
    Base64 { what: &'static str },
    /// It is not a known kind of signature.
    #[error("the media type {found:?} is not one of a signature")]
    MediaType { found: String },
    /// Too many bytes.
    #[error("it has {size} bytes; the limit is {limit}")]
    TooLarge { size: u64, limit: u64 },
    /// Any other error in its form.
    #[error("{problem}")]
    Malformed { problem: &'static str },
}

impl Refusal {
    /// Whether one of our keys signed it, but for something else.
    fn is_signed(&self) -> bool {
        matches!(self, Self::OtherImage { .. } | Self::OtherRepository { .. } | Self::OtherPurpose { .. })
    }
}

/// A checked signature, and why it does not count.
#[derive(Debug)]
pub struct Candidate {
    pub place: String,
    pub refusal: Refusal,
}

/// Signatures that do not count.
#[derive(Debug, Default)]
pub struct Candidates {
    /// The checked ones.
    pub seen: Vec<Candidate>,
    /// How many more there are at least.
    pub unseen: usize,
}

impl Candidates {
    /// Whether one of our keys signed an image with another name or digest.
    fn is_copied(&self) -> bool {
        let other = |one: &Candidate| {
            matches!(one.refusal, Refusal::OtherImage { .. } | Refusal::OtherRepository { .. })
        };
        self.seen.iter().any(other)
    }
}

/// More of them would not make an error clearer.
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
    /// There are signatures, but none by one of the keys.
    #[error("{reference} is signed, but by none of the keys of the policy: {refused}")]
    OtherKey { reference: Box<Reference>, refused: Candidates },
    /// One of the keys signed something else.
    #[error("the signatures beside {reference} are for something else: {refused}")]
    OtherImage { reference: Box<Reference>, refused: Candidates },
    /// There is something like a signature, but nothing valid.
    #[error("{reference} has no signature that can be read: {refused}")]
    Unreadable { reference: Box<Reference>, refused: Candidates },
    /// The registry did not return all of them, and none of those it returned counts.
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
            Some(format!("Sign it with `cosign sign --key cosign.key {}@{digest}`.", reference.repository()))
        };
        match self {
            Self::Unsigned { reference, digest } => sign(reference, *digest),
            Self::OtherKey { .. } => Some(
                "If that key may sign this image, add its public half to `keys` of the rule in policy.toml."
                    .to_owned(),
            ),
            Self::OtherImage { reference, refused } if refused.is_copied() => Some(format!(
                "If the image was copied from elsewhere, sign it for its new place with \
                 `cosign sign --key cosign.key --sign-container-identity {0} {0}@sha256:…`.",
                reference.repository()
            )),
            Self::Unreadable { reference, .. } | Self::OtherImage { reference, .. } => sign(reference, None),
            Self::Registry { .. } => None,
        }
    }
}

/// What a signature must state.
struct Claim<'a> {
    keys: &'a Keys,
    reference: &'a Reference,
    digests: &'a [Digest],
}

/// What a valid signature states.
#[derive(Debug, PartialEq, Eq)]
struct Signed {
    digest: Digest,
    key: KeyId,
}

impl Claim<'_> {
    /// The digest if it is one of the image's. Only for content that one of the keys signed.
    fn wanted(&self, named: Digest) -> Result<Digest, Refusal> {
        if self.digests.contains(&named) { Ok(named) } else { Err(Refusal::OtherImage { named }) }
    }
}

/// Standard base64 with padding in one line, so that the same bytes have one text.
fn base64(what: &'static str, text: &str) -> Result<Vec<u8>, Refusal> {
    STANDARD.decode(text).map_err(|_| Refusal::Base64 { what })
}

#[cfg(test)]
mod tests;
