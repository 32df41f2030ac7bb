//! The older form of cosign's signatures, also used by containers/image: a small JSON document ("simple signing") in a layer, with its
//! signature in an annotation of that layer. Must not know registries.

use super::super::digest::{Digest, shorten};
use super::super::reference::Reference;
use super::{Claim, Refusal, base64};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

pub(super) const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Most bytes of the document.
pub(super) const MAX_PAYLOAD: u64 = 64 << 10;

const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const TYPE: &str = "cosign container image signature";

/// The signed document. An unknown, repeated or differently capitalised name is an error, since another reader could see another document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    critical: Critical,
    /// The creator, the time and other data that says nothing about the image.
    #[serde(rename = "optional")]
    _optional: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Image,
    r#type: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Identity {
    docker_reference: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: Digest,
}

/// The signature in a layer's annotations.
pub(super) fn signature(annotations: &BTreeMap<String, String>) -> Result<Vec<u8>, Refusal> {
    let text = annotations.get(ANNOTATION).ok_or(Refusal::Malformed {
        problem: "its layer has no annotation \"dev.cosignproject.cosign/signature\"",
    })?;
    base64("the signature", text)
}

/// Checks a document and its signature. The signature comes first: until then nothing in the document is trusted or even parsed.
pub(super) fn check(claim: &Claim<'_>, payload: &[u8], signature: &[u8]) -> Result<super::Signed, Refusal> {
    let key = claim.keys.signer(payload, signature).ok_or(Refusal::OtherKey)?;
    let payload: Payload = serde_json::from_slice(payload).map_err(|error| Refusal::Json {
        what: "the signed document",
        problem: shorten(&error.to_string()),
    })?;
    let Critical { identity, image, r#type } = payload.critical;
    if r#type != TYPE {
        return Err(Refusal::OtherPurpose { found: shorten(&r#type) });
    }
    let digest = claim.wanted(image.docker_manifest_digest)?;
    // The tag and the digest in it are not compared: the tag may have moved since, and the digest is checked above.
    let named = identity.docker_reference;
    match named.parse::<Reference>() {
        Ok(named) if named.repository() == claim.reference.repository() => Ok(super::Signed { digest, key }),
        _ => Err(Refusal::OtherRepository { named: shorten(&named) }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Signed;
    use super::super::key::tests::{fixture, keys};
    use super::super::tests::{IMAGE, sign};
    use super::*;
    use proptest::prelude::*;

    fn judge(payload: &str) -> Result<Signed, Refusal> {
        let (keys, reference) =
            (keys(&[fixture!("team.pub")]), "registry.example/team/app:v2".parse().unwrap());
        let claim = Claim { keys: &keys, reference: &reference, digests: &[IMAGE.parse().unwrap()] };
        check(&claim, payload.as_bytes(), &sign(payload.as_bytes()))
    }

    fn payload(name: &str, digest: &str, r#type: &str) -> String {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{name}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{type}"}},"optional":null}}"#
        )
    }

    #[test]
    fn a_signed_document_for_this_digest_and_repository_counts_whatever_its_tag() {
        for name in [
            "registry.example/team/app",
            "registry.example/team/app:v1",
            &format!("registry.example/team/app@{IMAGE}"),
        ] {
            assert_eq!(judge(&payload(name, IMAGE, TYPE)).unwrap().digest.to_string(), IMAGE);
        }
        judge(&payload("registry.example/team/app", IMAGE, TYPE).replace(",\"optional\":null", "")).unwrap();
    }

    #[test]
    fn a_rightly_signed_document_about_something_else_does_not_count() {
        let other = IMAGE.replace("d2d", "e2d");
        let right = "registry.example/team/app";
        assert!(matches!(judge(&payload(right, &other, TYPE)), Err(Refusal::OtherImage { .. })));
        assert!(matches!(
            judge(&payload(right, IMAGE, "atomic container signature")),
            Err(Refusal::OtherPurpose { .. })
        ));
        for name in [
            "registry.example/team/app2",
            "registry.example/team",
            "team/app",
            "",
            "registry.example:5000/team/app",
            "a b",
        ] {
            assert!(
                matches!(judge(&payload(name, IMAGE, TYPE)), Err(Refusal::OtherRepository { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn a_document_that_two_readers_could_read_differently_does_not_count() {
        let good = payload("registry.example/team/app", IMAGE, TYPE);
        let changes = [
            (r#""type":"#, r#""type":"x","type":"#),
            (r#""type":"#, r#""t\u0079pe":"x","type":"#),
            (r#""docker-manifest-digest":"#, r#""docker-manifest-digest":"x","docker-manifest-digest":"#),
            (r#""docker-reference":"#, r#""docker-reference":"x","docker-reference":"#),
            (r#""image":"#, r#""image":{},"image":"#),
            (r#""critical":"#, r#""critical":null,"critical":"#),
            (r#""optional":"#, r#""optional":{},"optional":"#),
            (r#""type":"#, r#""Type":"x","type":"#),
            (r#""type":"#, r#""more":"x","type":"#),
            (r#""optional":null}"#, r#""optional":null} {}"#),
        ];
        for (from, to) in changes {
            let changed = good.replacen(from, to, 1);
            assert_ne!(changed, good);
            assert!(matches!(judge(&changed), Err(Refusal::Json { .. })), "{changed}");
        }
        judge(&good).unwrap();
    }

    #[test]
    fn any_bit_changed_in_document_or_signature_is_another_key() {
        let keys = keys(&[fixture!("team.pub")]);
        let reference = "registry.example/team/app".parse().unwrap();
        let claim = Claim { keys: &keys, reference: &reference, digests: &[IMAGE.parse().unwrap()] };
        let good = fixture!("made/cosign-tag/payload.json").to_vec();
        let signature = super::super::tests::annotated(fixture!("made/cosign-tag/manifest.json"));
        assert!(check(&claim, &good, &signature).is_ok());
        for bit in 0..good.len() * 8 {
            let mut changed = good.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(check(&claim, &changed, &signature), Err(Refusal::OtherKey)), "bit {bit}");
        }
        for bit in 0..signature.len() * 8 {
            let mut changed = signature.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(check(&claim, &good, &changed), Err(Refusal::OtherKey)), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn no_text_of_a_signer_makes_it_panic(text in ".{0,200}", name in ".{0,40}", digest in ".{0,80}") {
            prop_assert!(serde_json::from_str::<Payload>(&text).is_err());
            let good = payload("registry.example/team/app", IMAGE, TYPE);
            drop(serde_json::from_str::<Payload>(&good.replacen(IMAGE, &digest, 1)));
            drop(serde_json::from_str::<Payload>(&good.replacen("registry", &name, 1)));
        }
    }
}
