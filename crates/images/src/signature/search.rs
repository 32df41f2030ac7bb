//! Searches a registry for a valid signature. Everything found there is untrusted and has a limit.

use super::super::document::{Descriptor, Document, MAX_MANIFEST};
use super::bundle::{self, Content};
use super::{
    Candidate, Candidates, Claim, Digest, Keys, Reference, Referrer, Refusal, SignatureError, SignatureForm,
    SignatureSource, Signed, Verified, shorten, simple,
};
use std::collections::BTreeSet;

/// Most signatures that are checked, and most referrers that turn out to be something else.
pub(super) const MAX_CANDIDATES: usize = 32;
/// Most failed requests before the search ends.
const MAX_FAILURES: usize = 3;

const SIGNATURE_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const PREDICATE_ANNOTATION: &str = "dev.sigstore.bundle.predicateType";
/// The type that a list states for an artifact without a type. cosign 3 writes it for its bundles when it has to keep the list itself,
/// because the registry keeps none.
const NO_TYPE: [&str; 3] =
    ["", "application/vnd.oci.empty.v1+json", "application/vnd.oci.image.config.v1+json"];

/// Searches for a signature of an image by one of the keys. `digests` are the digest of the reference (often an index) and that of the
/// manifest chosen from it. A signature over either is valid: an index names its manifests by digest and a manifest its layers, so a
/// signature over the index covers this manifest too, and a signature over the manifest covers everything that will run, whatever led to
/// it.
pub(in super::super) fn verify<S: SignatureSource>(
    keys: &Keys,
    reference: &Reference,
    digests: &[Digest],
    source: &S,
) -> Result<Verified, SignatureError<S::Error>> {
    let claim = Claim { keys, reference, digests };
    let mut search = Search {
        claim,
        source,
        refused: Candidates::default(),
        referrers: BTreeSet::new(),
        failures: Vec::new(),
    };
    let found = search.tags().or_else(|| search.referrers());
    found.ok_or_else(|| search.nothing())
}

struct Search<'a, S: SignatureSource> {
    claim: Claim<'a>,
    source: &'a S,
    refused: Candidates,
    /// Artifacts whose manifests were requested.
    referrers: BTreeSet<Digest>,
    failures: Vec<(String, S::Error)>,
}

/// Where a manifest with signatures was found.
#[derive(Clone, Copy)]
enum SignatureOrigin<'a> {
    Tag(&'a str),
    Referrer(&'a Digest),
}

impl SignatureOrigin<'_> {
    fn layer(&self, number: usize) -> String {
        match self {
            Self::Tag(tag) => format!("{tag}, layer {number}"),
            Self::Referrer(digest) => format!("{digest}, layer {number}"),
        }
    }
}

impl<S: SignatureSource> Search<'_, S> {
    fn tags(&mut self) -> Option<Verified> {
        self.claim.digests.iter().find_map(|digest| {
            let tag = format!("sha256-{}.sig", digest.hex());
            let manifest =
                self.ask(&format!("the signatures (tag {tag})"), |source| source.tagged_manifest(&tag))??;
            self.manifest(SignatureOrigin::Tag(&tag), &manifest)
        })
    }

    fn referrers(&mut self) -> Option<Verified> {
        self.claim.digests.iter().find_map(|digest| {
            let mut listed = self.ask("the list of the signatures", |source| source.referrers(digest))?;
            // Artifacts that state their type come first.
            listed.retain(may_be_signature);
            listed.sort_by_key(is_untyped);
            listed.iter().find_map(|referrer| self.referrer(referrer))
        })
    }

    fn referrer(&mut self, referrer: &Referrer) -> Option<Verified> {
        let digest = &referrer.digest;
        if self.referrers.contains(digest) {
            return None;
        }
        if self.referrers.len() >= MAX_CANDIDATES {
            self.refused.unseen += 1;
            return None;
        }
        self.referrers.insert(*digest);
        let manifest = self.ask(&format!("the signature {digest}"), |source| source.manifest(digest))?;
        self.manifest(SignatureOrigin::Referrer(digest), &manifest)
    }

    /// Checks a manifest whose layers are signatures.
    fn manifest(&mut self, found: SignatureOrigin<'_>, bytes: &[u8]) -> Option<Verified> {
        let layers = match layers(bytes) {
            Ok(layers) => layers,
            Err(refusal) => {
                let place = match found {
                    SignatureOrigin::Tag(tag) => tag.to_owned(),
                    SignatureOrigin::Referrer(digest) => digest.to_string(),
                };
                self.refuse(place, refusal);
                return None;
            }
        };
        let numbered = layers.iter().enumerate();
        numbered.into_iter().find_map(|(at, layer)| self.layer(found, at + 1, layer))
    }

    fn layer(&mut self, found: SignatureOrigin<'_>, number: usize, layer: &Descriptor) -> Option<Verified> {
        let form = match (found, layer.media_type.as_str()) {
            (SignatureOrigin::Tag(_), simple::MEDIA_TYPE) => SignatureForm::Tag,
            (SignatureOrigin::Referrer(_), simple::MEDIA_TYPE) => SignatureForm::Referrer,
            (SignatureOrigin::Referrer(_), bundle::MEDIA_TYPE) => SignatureForm::Bundle,
            // It never claimed to be a signature.
            (SignatureOrigin::Referrer(_), _) => return None,
            (SignatureOrigin::Tag(_), other) => {
                self.refuse(found.layer(number), Refusal::MediaType { found: shorten(other) });
                return None;
            }
        };
        if self.refused.seen.len() >= MAX_CANDIDATES {
            self.refused.unseen += 1;
            return None;
        }
        let judged = match form {
            SignatureForm::Bundle => self.bundle(layer),
            SignatureForm::Tag | SignatureForm::Referrer => self.simple(layer),
        };
        match judged? {
            Ok(Signed { digest, key }) => Some(Verified { digest, key, form }),
            Err(refusal) => {
                self.refuse(found.layer(number), refusal);
                None
            }
        }
    }

    fn simple(&mut self, layer: &Descriptor) -> Option<Result<Signed, Refusal>> {
        let signature = match simple::signature(&layer.annotations) {
            Ok(signature) => signature,
            Err(refusal) => return Some(Err(refusal)),
        };
        let payload = self.blob(layer, simple::MAX_PAYLOAD)?;
        Some(payload.and_then(|payload| simple::check(&self.claim, &payload, &signature)))
    }

    fn bundle(&mut self, layer: &Descriptor) -> Option<Result<Signed, Refusal>> {
        let bytes = self.blob(layer, bundle::MAX_BUNDLE)?;
        match bytes.and_then(|bytes| bundle::open(&bytes)) {
            Ok(Content::Statement { envelope, statement, signatures }) => {
                Some(bundle::check_statement(&self.claim, &envelope, &statement, &signatures))
            }
            Ok(Content::Message { digest, signature }) => self.message(digest, &signature),
            Err(refusal) => Some(Err(refusal)),
        }
    }

    fn message(&mut self, digest: Digest, signature: &[u8]) -> Option<Result<Signed, Refusal>> {
        if !self.claim.digests.contains(&digest) {
            let problem = "the bundle is about another file than the image's manifest";
            return Some(Err(Refusal::Malformed { problem }));
        }
        let manifest = self.ask(&format!("the manifest {digest}"), |source| source.manifest(&digest))?;
        Some(bundle::check_message(&self.claim, digest, &manifest, signature))
    }

    /// A blob within the size limit.
    fn blob(&mut self, layer: &Descriptor, limit: u64) -> Option<Result<Vec<u8>, Refusal>> {
        let too_large = |size| Some(Err(Refusal::TooLarge { size, limit }));
        if layer.size > limit {
            return too_large(layer.size);
        }
        let ask = |source: &S| source.blob(&layer.digest, layer.size, limit);
        let bytes = self.ask(&format!("the signature {}", layer.digest), ask)?;
        if bytes.len() as u64 > limit { too_large(bytes.len() as u64) } else { Some(Ok(bytes)) }
    }

    /// Sends a request to the registry. A single failure does not hide the other signatures, but several end the search.
    fn ask<T>(&mut self, what: &str, request: impl FnOnce(&S) -> Result<T, S::Error>) -> Option<T> {
        if self.failures.len() >= MAX_FAILURES {
            return None;
        }
        match request(self.source) {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.failures.push((what.to_owned(), error));
                None
            }
        }
    }

    fn refuse(&mut self, place: String, refusal: Refusal) {
        if self.refused.seen.len() < MAX_CANDIDATES {
            self.refused.seen.push(Candidate { place, refusal });
        } else {
            self.refused.unseen += 1;
        }
    }

    /// The error when no valid signature was found.
    fn nothing(self) -> SignatureError<S::Error> {
        let reference = Box::new(self.claim.reference.clone());
        let refused = self.refused;
        // The missing answer may have contained the signature, so nothing else is certain.
        if let Some((what, source)) = self.failures.into_iter().next() {
            return SignatureError::Registry { reference, what, source };
        }
        let any = |is: fn(&Refusal) -> bool| refused.seen.iter().any(|candidate| is(&candidate.refusal));
        if any(Refusal::is_signed) {
            SignatureError::OtherImage { reference, refused }
        } else if any(|refusal| matches!(refusal, Refusal::OtherKey)) {
            SignatureError::OtherKey { reference, refused }
        } else if refused.seen.is_empty() && refused.unseen == 0 {
            SignatureError::Unsigned { reference, digest: self.claim.digests.first().copied() }
        } else {
            SignatureError::Unreadable { reference, refused }
        }
    }
}

/// Whether this may be a signature. Lists of contents and the like also refer to images. A wrong no only means that it does not count.
fn may_be_signature(referrer: &Referrer) -> bool {
    let type_fits = match referrer.artifact_type.as_deref() {
        Some(SIGNATURE_ARTIFACT | simple::MEDIA_TYPE | bundle::MEDIA_TYPE) => true,
        _ => is_untyped(referrer),
    };
    let predicate = referrer.annotations.get(PREDICATE_ANNOTATION);
    type_fits && predicate.is_none_or(|predicate| predicate == bundle::PREDICATE)
}

fn is_untyped(referrer: &Referrer) -> bool {
    referrer.artifact_type.as_deref().is_none_or(|artifact_type| NO_TYPE.contains(&artifact_type))
}

/// The layers of a manifest with signatures.
fn layers(bytes: &[u8]) -> Result<Vec<Descriptor>, Refusal> {
    let size = bytes.len() as u64;
    if size > MAX_MANIFEST {
        return Err(Refusal::TooLarge { size, limit: MAX_MANIFEST });
    }
    let document: Document = serde_json::from_slice(bytes)
        .map_err(|error| Refusal::Json { what: "its manifest", problem: shorten(&error.to_string()) })?;
    document.layers.ok_or(Refusal::Malformed { problem: "it has no layers" })
}
