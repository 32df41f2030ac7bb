//! The newer form of cosign's signatures: a sigstore bundle (version 0.3), a JSON document with everything about one signature. It
//! contains either a DSSE envelope with an in-toto statement, or a bare signature over a file. Must not know registries.
//!
//! The bundle itself is not signed, so its other content (certificates, entries of transparency logs) is ignored.

use super::super::digest::{Digest, shorten};
use super::{Claim, Refusal, Signed, base64};
use serde::Deserialize;

/// The media type of a bundle and of its artifact.
pub(super) const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Most bytes of a bundle.
pub(super) const MAX_BUNDLE: u64 = 256 << 10;
/// The type of a statement that signs an image, as opposed to, say, a list of its contents.
pub(super) const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

const PAYLOAD: &str = "application/vnd.in-toto+json";
const MAX_SIGNATURES: usize = 8;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    dsse_envelope: Option<Envelope>,
    message_signature: Option<MessageSignature>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Debug, Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageSignature {
    message_digest: MessageDigest,
    signature: String,
}

#[derive(Debug, Deserialize)]
struct MessageDigest {
    algorithm: String,
    digest: String,
}

/// github.com/in-toto/attestation, spec/v1/statement.md.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    r#type: String,
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Debug, Deserialize)]
struct Subject {
    digest: SubjectDigest,
}

#[derive(Debug, Deserialize)]
struct SubjectDigest {
    sha256: Option<String>,
}

#[derive(Debug)]
pub(super) enum Content {
    /// A statement about an image.
    Statement { envelope: Vec<u8>, statement: Vec<u8>, signatures: Vec<Vec<u8>> },
    /// A signature over the bytes with this digest. Checking it needs the bytes.
    Message { digest: Digest, signature: Vec<u8> },
}

/// Parses a bundle. Trusts nothing in it.
pub(super) fn open(bytes: &[u8]) -> Result<Content, Refusal> {
    let bundle: Bundle = serde_json::from_slice(bytes)
        .map_err(|error| Refusal::Json { what: "the bundle", problem: shorten(&error.to_string()) })?;
    if bundle.media_type != MEDIA_TYPE {
        return Err(Refusal::MediaType { found: shorten(&bundle.media_type) });
    }
    match (bundle.dsse_envelope, bundle.message_signature) {
        (Some(envelope), None) => open_envelope(&envelope),
        (None, Some(message)) => open_message(&message),
        _ => Err(Refusal::Malformed {
            problem: "the bundle has not exactly one of an envelope and a signature",
        }),
    }
}

fn open_envelope(envelope: &Envelope) -> Result<Content, Refusal> {
    if envelope.payload_type != PAYLOAD {
        return Err(Refusal::MediaType { found: shorten(&envelope.payload_type) });
    }
    if envelope.signatures.len() > MAX_SIGNATURES {
        return Err(Refusal::Malformed { problem: "the envelope has more than 8 signatures" });
    }
    let statement = base64("the statement", &envelope.payload)?;
    let signatures = envelope.signatures.iter().map(|one| base64("a signature of the envelope", &one.sig));
    let signatures = signatures.collect::<Result<_, _>>()?;
    Ok(Content::Statement { envelope: to_be_signed(PAYLOAD, &statement), statement, signatures })
}

/// DSSE's "pre-authentication encoding": type and text with their lengths, so that they cannot be confused.
fn to_be_signed(r#type: &str, text: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {type} {} ", r#type.len(), text.len()).into_bytes();
    bytes.extend_from_slice(text);
    bytes
}

fn open_message(message: &MessageSignature) -> Result<Content, Refusal> {
    if message.message_digest.algorithm != "SHA2_256" {
        return Err(Refusal::Malformed {
            problem: "the signature in the bundle is over another digest than sha256",
        });
    }
    let digest = base64("the digest in the bundle", &message.message_digest.digest)?;
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = Digest::from_hex(&hex)
        .map_err(|_| Refusal::Malformed { problem: "the digest in the bundle has not 32 bytes" })?;
    Ok(Content::Message { digest, signature: base64("the signature", &message.signature)? })
}

/// Checks a statement about an image, its signature first.
pub(super) fn check_statement(
    claim: &Claim<'_>,
    envelope: &[u8],
    statement: &[u8],
    signatures: &[Vec<u8>],
) -> Result<Signed, Refusal> {
    let key = signatures.iter().find_map(|signature| claim.keys.signer(envelope, signature));
    let key = key.ok_or(Refusal::OtherKey)?;
    let statement: Statement = serde_json::from_slice(statement).map_err(|error| Refusal::Json {
        what: "the signed statement",
        problem: shorten(&error.to_string()),
    })?;
    if !matches!(
        statement.r#type.as_str(),
        "https://in-toto.io/Statement/v1" | "https://in-toto.io/Statement/v0.1"
    ) {
        return Err(Refusal::OtherPurpose { found: shorten(&statement.r#type) });
    }
    // The same key may have signed "this image has a serious vulnerability", which is not a permission to run it.
    if statement.predicate_type != PREDICATE {
        return Err(Refusal::OtherPurpose { found: shorten(&statement.predicate_type) });
    }
    let mut named = None;
    for hex in statement.subject.iter().filter_map(|subject| subject.digest.sha256.as_deref()) {
        let Ok(digest) = Digest::from_hex(hex) else { continue };
        match claim.wanted(digest) {
            Ok(digest) => return Ok(Signed { digest, key }),
            Err(refusal) => named = named.or(Some(refusal)),
        }
    }
    Err(named.unwrap_or(Refusal::Malformed { problem: "the signed statement names no image by sha256" }))
}

/// Checks a signature over the bytes of a manifest or an index.
pub(super) fn check_message(
    claim: &Claim<'_>,
    digest: Digest,
    manifest: &[u8],
    signature: &[u8],
) -> Result<Signed, Refusal> {
    if Digest::of(manifest) != digest {
        return Err(Refusal::Malformed { problem: "the registry gave another manifest than the signed one" });
    }
    let key = claim.keys.signer(manifest, signature).ok_or(Refusal::OtherKey)?;
    Ok(Signed { digest: claim.wanted(digest)?, key })
}

#[cfg(test)]
mod tests {
    use super::super::key::tests::{fixture, keys};
    use super::super::tests::{IMAGE, sign};
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    const MANIFEST: &[u8] = fixture!("made/image.json");

    fn check(key: &[u8], digest: &str, bundle: &[u8]) -> Result<Signed, Refusal> {
        let (keys, reference) = (keys(&[key]), "registry.example/team/app:v2".parse().unwrap());
        let claim = Claim { keys: &keys, reference: &reference, digests: &[digest.parse().unwrap()] };
        match open(bundle)? {
            Content::Statement { envelope, statement, signatures } => {
                check_statement(&claim, &envelope, &statement, &signatures)
            }
            Content::Message { digest, signature } => check_message(&claim, digest, MANIFEST, &signature),
        }
    }

    fn judge(bundle: &str) -> Result<Signed, Refusal> {
        check(fixture!("team.pub"), IMAGE, bundle.as_bytes())
    }

    fn bundle(statement: &str) -> String {
        let signature = STANDARD.encode(sign(&to_be_signed(PAYLOAD, statement.as_bytes())));
        let statement = STANDARD.encode(statement);
        format!(
            r#"{{"mediaType":"{MEDIA_TYPE}","dsseEnvelope":{{"payload":"{statement}","payloadType":"{PAYLOAD}","signatures":[{{"sig":"{signature}"}}]}}}}"#
        )
    }

    fn statement() -> String {
        let hex = IMAGE.trim_start_matches("sha256:");
        format!(
            r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"{hex}"}}}}],"predicateType":"{PREDICATE}","predicate":{{}}}}"#
        )
    }

    #[test]
    fn bundles_of_cosign_count_with_their_key_and_digest_only() {
        for made in [fixture!("made/cosign-bundle/bundle.json"), fixture!("made/cosign-blob/bundle.json")] {
            let signed = check(fixture!("team.pub"), IMAGE, made).unwrap();
            assert_eq!(signed.digest.to_string(), IMAGE);
            assert!(matches!(check(fixture!("other.pub"), IMAGE, made), Err(Refusal::OtherKey)));
            let other = IMAGE.replace("d2d", "e2d");
            assert!(matches!(check(fixture!("team.pub"), &other, made), Err(Refusal::OtherImage { .. })));
        }
    }

    #[test]
    fn a_rightly_signed_statement_about_something_else_does_not_count() {
        judge(&bundle(&statement())).unwrap();
        let attestation = statement().replace(PREDICATE, "https://slsa.dev/provenance/v1");
        assert!(matches!(judge(&bundle(&attestation)), Err(Refusal::OtherPurpose { .. })));
        let r#type = statement().replace("Statement/v1", "Statement/v9");
        assert!(matches!(judge(&bundle(&r#type)), Err(Refusal::OtherPurpose { .. })));
        assert!(matches!(
            judge(&bundle(&statement().replace("d2d", "e2d"))),
            Err(Refusal::OtherImage { .. })
        ));
        let nothing = statement().replace("sha256", "sha512");
        assert!(matches!(judge(&bundle(&nothing)), Err(Refusal::Malformed { .. })));
    }

    #[test]
    fn a_statement_about_several_images_counts_for_each() {
        let several = statement()
            .replace("\"subject\":[", r#""subject":[{"name":"x","digest":{"sha256":"00"}},{"digest":{}},"#);
        judge(&bundle(&several)).unwrap();
    }

    #[test]
    fn names_that_are_there_twice_are_refused() {
        for (from, to) in [
            ("\"predicateType\":", "\"predicateType\":\"x\",\"predicateType\":"),
            ("\"_type\":", "\"_type\":\"x\",\"\\u005ftype\":"),
            ("\"subject\":", "\"subject\":[],\"subject\":"),
            ("\"sha256\":", "\"sha256\":\"x\",\"sha256\":"),
        ] {
            assert!(
                matches!(judge(&bundle(&statement().replace(from, to))), Err(Refusal::Json { .. })),
                "{to}"
            );
        }
        let twice = bundle(&statement()).replace("\"payload\":", "\"payload\":\"\",\"payload\":");
        assert!(matches!(judge(&twice), Err(Refusal::Json { .. })));
    }

    #[test]
    fn bundles_of_other_forms_are_refused() {
        let good = bundle(&statement());
        let old = good.replace("v0.3+json", "v0.2+json");
        assert!(matches!(judge(&old), Err(Refusal::MediaType { .. })));
        assert!(matches!(judge(&good.replace(PAYLOAD, "text/plain")), Err(Refusal::MediaType { .. })));
        assert!(matches!(judge(&good.replace("dsseEnvelope", "x")), Err(Refusal::Malformed { .. })));
        let signature = r#"{"sig":"AAAA"},"#.repeat(MAX_SIGNATURES);
        let many = good.replace("\"signatures\":[", &format!("\"signatures\":[{signature}"));
        assert!(matches!(judge(&many), Err(Refusal::Malformed { .. })));
        // A valid signature of the key, but over the statement without its type.
        let bare = STANDARD.encode(sign(statement().as_bytes()));
        let from = good.find("\"sig\":\"").unwrap() + 7;
        let bare = format!("{}{bare}\"}}]}}}}", &good[..from]);
        assert!(matches!(judge(&bare), Err(Refusal::OtherKey)));
    }

    #[test]
    fn a_bit_changed_anywhere_is_never_another_signature() {
        for made in [fixture!("made/cosign-bundle/bundle.json"), fixture!("made/cosign-blob/bundle.json")] {
            let text = std::str::from_utf8(made).unwrap();
            // The hint is not checked.
            let hint = text.find("verificationMaterial").unwrap()..text.find("}}").unwrap() + 2;
            for bit in (0..made.len() * 8).filter(|bit| !hint.contains(&(bit / 8))) {
                let mut changed = made.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                let result = check(fixture!("team.pub"), IMAGE, &changed);
                assert!(result.is_err(), "bit {bit}: {}", String::from_utf8_lossy(&changed));
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,60}", from in any::<prop::sample::Index>(), len in 0usize..40
        ) {
            drop(open(&bytes));
            let good = bundle(&statement());
            let from = from.index(good.len());
            let changed = format!("{}{text}{}", &good[..from], &good[(from + len).min(good.len())..]);
            if changed != good {
                drop(judge(&changed));
            }
            prop_assert!(serde_json::from_str::<Statement>(&text).is_err());
        }
    }
}
