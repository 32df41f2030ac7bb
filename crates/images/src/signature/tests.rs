use super::key::tests::{fixture, keys};
use super::*;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use std::cell::Cell;
use std::collections::HashMap;

/// The digest of `made/image.json`, which everything in `made` refers to.
pub(super) const IMAGE: &str = "sha256:d2d0325550f4309c9609df6fe039330bd24539b97872b010119d84c0a7a44362";
const MANIFEST: &[u8] = fixture!("made/image.json");

/// Signs like cosign with the key whose public half is team.pub.
pub(super) fn sign(message: &[u8]) -> Vec<u8> {
    let key = PrivateKeyDer::from_pem_slice(fixture!("team.pem")).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let signer = key.choose_scheme(&[rustls::SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap();
    signer.sign(message).unwrap()
}

/// The signature in the first layer of a manifest.
pub(super) fn annotated(manifest: &[u8]) -> Vec<u8> {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
    let text = &manifest["layers"][0]["annotations"]["dev.cosignproject.cosign/signature"];
    STANDARD.decode(text.as_str().unwrap()).unwrap()
}

/// A registry that does not answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no answer for {0}")]
struct NoAnswer(String);

#[derive(Debug, Default)]
struct Repository {
    tags: HashMap<String, Vec<u8>>,
    referrers: HashMap<Digest, Vec<Referrer>>,
    content: HashMap<Digest, Vec<u8>>,
    /// Number of answered requests.
    requests: Cell<usize>,
    tags_are_unreachable: bool,
}

impl Repository {
    fn content(&self, digest: &Digest) -> Result<Vec<u8>, NoAnswer> {
        self.requests.set(self.requests.get() + 1);
        self.content.get(digest).cloned().ok_or_else(|| NoAnswer(digest.to_string()))
    }

    fn add(&mut self, bytes: &[u8]) -> Digest {
        self.content.insert(Digest::of(bytes), bytes.to_vec());
        Digest::of(bytes)
    }

    /// A signed document under cosign's tag.
    fn tag(&mut self, image: &str, manifest: &[u8], payload: &[u8]) {
        self.tags.insert(format!("{}.sig", image.replace(':', "-")), manifest.to_vec());
        self.add(payload);
    }

    fn refer(&mut self, artifact_type: Option<&str>, manifest: &[u8], blob: &[u8]) {
        self.add(blob);
        let (digest, artifact_type) = (self.add(manifest), artifact_type.map(str::to_owned));
        let referrer = Referrer { digest, artifact_type, annotations: BTreeMap::new() };
        self.referrers.entry(IMAGE.parse().unwrap()).or_default().push(referrer);
    }

    /// As a registry would list it.
    fn refer_as_listed(&mut self, list: &[u8], manifest: &[u8], blob: &[u8]) {
        let list: serde_json::Value = serde_json::from_slice(list).unwrap();
        assert_eq!(list["manifests"][0]["digest"], Digest::of(manifest).to_string());
        self.refer(list["manifests"][0]["artifactType"].as_str(), manifest, blob);
    }

    fn check_with(
        &self,
        key: &[u8],
        name: &str,
        digests: &[&str],
    ) -> Result<Verified, SignatureError<NoAnswer>> {
        let digests: Vec<Digest> = digests.iter().map(|digest| digest.parse().unwrap()).collect();
        verify(&keys(&[key]), &name.parse().unwrap(), &digests, self)
    }

    fn check(&self) -> Result<Verified, SignatureError<NoAnswer>> {
        self.check_with(fixture!("team.pub"), "registry.example/team/app:v1", &[IMAGE])
    }
}

impl SignatureSource for Repository {
    type Error = NoAnswer;

    fn tagged_manifest(&self, tag: &str) -> Result<Option<Vec<u8>>, NoAnswer> {
        if self.tags_are_unreachable {
            Err(NoAnswer(tag.to_owned()))
        } else {
            Ok(self.tags.get(tag).cloned())
        }
    }

    fn referrers(&self, digest: &Digest) -> Result<Vec<Referrer>, NoAnswer> {
        Ok(self.referrers.get(digest).cloned().unwrap_or_default())
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, NoAnswer> {
        self.content(digest)
    }

    fn blob(&self, digest: &Digest, _: u64, _: u64) -> Result<Vec<u8>, NoAnswer> {
        self.content(digest)
    }
}

fn by_cosign() -> Repository {
    let mut repository = Repository::default();
    repository.tag(
        IMAGE,
        fixture!("made/cosign-tag/manifest.json"),
        fixture!("made/cosign-tag/payload.json"),
    );
    repository
}

fn layer(payload: &[u8], signature: &[u8]) -> String {
    format!(
        r#"{{"mediaType":"{}","size":{},"digest":"{}","annotations":{{"dev.cosignproject.cosign/signature":"{}"}}}}"#,
        simple::MEDIA_TYPE,
        payload.len(),
        Digest::of(payload),
        STANDARD.encode(signature)
    )
}

fn manifest(layers: &[String]) -> Vec<u8> {
    format!(r#"{{"schemaVersion":2,"layers":[{}]}}"#, layers.join(",")).into_bytes()
}

#[test]
fn signatures_of_cosign_and_skopeo_count_in_all_their_forms() {
    let mut by_skopeo = Repository::default();
    by_skopeo.tag(IMAGE, fixture!("made/skopeo-tag/manifest.json"), fixture!("made/skopeo-tag/payload.json"));
    let mut by_referrer = Repository::default();
    by_referrer.refer_as_listed(
        fixture!("made/cosign-referrer/referrers.json"),
        fixture!("made/cosign-referrer/manifest.json"),
        fixture!("made/cosign-referrer/payload.json"),
    );
    let mut by_bundle = Repository::default();
    by_bundle.refer_as_listed(
        fixture!("made/cosign-bundle/referrers.json"),
        fixture!("made/cosign-bundle/manifest.json"),
        fixture!("made/cosign-bundle/bundle.json"),
    );
    let mut by_file = Repository::default();
    let bundle = fixture!("made/cosign-blob/bundle.json");
    let one = layer(bundle, b"").replace(simple::MEDIA_TYPE, bundle::MEDIA_TYPE);
    by_file.refer(Some(bundle::MEDIA_TYPE), &manifest(&[one]), bundle);
    by_file.add(MANIFEST);
    for (repository, form) in [
        (by_cosign(), SignatureForm::Tag),
        (by_skopeo, SignatureForm::Tag),
        (by_referrer, SignatureForm::Referrer),
        (by_bundle, SignatureForm::Bundle),
        (by_file, SignatureForm::Bundle),
    ] {
        let team = keys(&[fixture!("team.pub")]).ids().next().unwrap();
        let verified = repository.check().unwrap();
        assert_eq!(verified, Verified { digest: IMAGE.parse().unwrap(), key: team, form });
        let error = repository.check_with(fixture!("other.pub"), "registry.example/team/app", &[IMAGE]);
        assert!(matches!(error, Err(SignatureError::OtherKey { .. })), "{error:?}");
    }
}

#[test]
fn the_index_or_the_manifest_may_be_the_signed_one() {
    let index = Digest::of(b"index").to_string();
    let verified =
        by_cosign().check_with(fixture!("team.pub"), "registry.example/team/app", &[&index, IMAGE]).unwrap();
    assert_eq!(verified.digest.to_string(), IMAGE);
    let verified =
        by_cosign().check_with(fixture!("team.pub"), "registry.example/team/app", &[IMAGE, &index]).unwrap();
    assert_eq!(verified.digest.to_string(), IMAGE);
}

#[test]
fn an_image_without_any_signature_is_unsigned() {
    let error = Repository::default().check().unwrap_err();
    assert!(matches!(error, SignatureError::Unsigned { .. }));
    assert_eq!(
        error.hint().unwrap(),
        format!("Sign it with `cosign sign --key cosign.key registry.example/team/app@{IMAGE}`.")
    );
    let other = Digest::of(b"other").to_string();
    let error =
        by_cosign().check_with(fixture!("team.pub"), "registry.example/team/app", &[&other]).unwrap_err();
    assert!(matches!(error, SignatureError::Unsigned { .. }));
    let none = by_cosign().check_with(fixture!("team.pub"), "registry.example/team/app", &[]).unwrap_err();
    assert!(matches!(none, SignatureError::Unsigned { .. }));
}

#[test]
fn lists_of_contents_and_other_attestations_are_no_signatures() {
    let mut repository = Repository::default();
    for (at, artifact_type) in ["application/spdx+json", "text/plain", bundle::MEDIA_TYPE].iter().enumerate()
    {
        repository.refer(Some(artifact_type), format!("{at}").as_bytes(), b"");
    }
    let attestation = repository.referrers.values_mut().next().unwrap().last_mut().unwrap();
    attestation
        .annotations
        .insert("dev.sigstore.bundle.predicateType".to_owned(), "https://slsa.dev/provenance/v1".to_owned());
    assert!(matches!(repository.check(), Err(SignatureError::Unsigned { .. })));
    assert_eq!(repository.requests.get(), 0);
}

#[test]
fn a_signature_moved_to_another_image_is_for_another_image() {
    let other = Digest::of(b"other").to_string();
    let mut repository = Repository::default();
    repository.tag(
        &other,
        fixture!("made/cosign-tag/manifest.json"),
        fixture!("made/cosign-tag/payload.json"),
    );
    let error =
        repository.check_with(fixture!("team.pub"), "registry.example/team/app", &[&other]).unwrap_err();
    assert!(matches!(error, SignatureError::OtherImage { .. }));
    assert!(error.to_string().contains(&format!("layer 1: it is for the image {IMAGE}")), "{error}");
    assert!(error.hint().unwrap().contains("--sign-container-identity"));
}

#[test]
fn a_signature_for_another_name_is_for_another_image() {
    for name in
        ["registry.example/team/app2", "registry.example/app", "team/app", "registry.example:5000/team/app"]
    {
        let error = by_cosign().check_with(fixture!("team.pub"), name, &[IMAGE]).unwrap_err();
        assert!(matches!(error, SignatureError::OtherImage { .. }), "{name}: {error}");
    }
}

#[test]
fn a_registry_that_does_not_answer_is_not_an_unsigned_image() {
    let unreachable = Repository { tags_are_unreachable: true, ..Repository::default() };
    let error = unreachable.check().unwrap_err();
    assert!(
        matches!(&error, SignatureError::Registry { source: NoAnswer(tag), .. } if tag.ends_with(".sig")),
        "{error}"
    );
    let mut lost = by_cosign();
    lost.content.clear();
    assert!(matches!(lost.check(), Err(SignatureError::Registry { .. })));
    // The available signatures suffice.
    let mut half = Repository { tags_are_unreachable: true, ..by_cosign() };
    half.refer(None, fixture!("made/cosign-tag/manifest.json"), fixture!("made/cosign-tag/payload.json"));
    assert_eq!(half.check().unwrap().form, SignatureForm::Referrer);
}

#[test]
fn a_bad_signature_beside_a_good_one_does_no_harm() {
    let payload = fixture!("made/cosign-tag/payload.json");
    let good = layer(payload, &sign(payload));
    let bad = layer(payload, &sign(b"something else"));
    let mut repository = by_cosign();
    repository.tag(IMAGE, &manifest(&[bad.clone(), bad.replace("size\":", "size\":9"), good]), payload);
    repository.check().unwrap();
    repository.tag(IMAGE, &manifest(&[bad.clone(), bad]), payload);
    let error = repository.check().unwrap_err();
    assert!(matches!(&error, SignatureError::OtherKey { refused, .. } if refused.seen.len() == 2), "{error}");
}

#[test]
fn layers_that_are_no_signatures_are_named() {
    let payload = fixture!("made/cosign-tag/payload.json");
    let good = layer(payload, &sign(payload));
    for (changed, expected) in [
        (good.replace("dev.cosignproject.cosign/signature", "x"), "has no annotation"),
        (good.replace(simple::MEDIA_TYPE, "text/plain"), "the media type \"text/plain\" is not one"),
        (good.replace("signature\":\"", "signature\":\"!"), "the signature is not base64"),
        (
            good.replace(&format!("\"size\":{}", payload.len()), "\"size\":18446744073709551615"),
            "the limit is 65536",
        ),
        (good.replace("sha256:", "md5:"), "its manifest is not valid"),
    ] {
        let mut repository = by_cosign();
        repository.tag(IMAGE, &manifest(&[changed]), payload);
        let error = repository.check().unwrap_err();
        assert!(matches!(error, SignatureError::Unreadable { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(repository.requests.get(), 0, "{expected}");
    }
}

#[test]
fn a_source_that_gives_more_than_was_asked_for_is_not_believed() {
    let payload = vec![b' '; 65537];
    let one = layer(&payload, &sign(&payload)).replace("\"size\":65537", "\"size\":1");
    let mut repository = Repository::default();
    repository.tag(IMAGE, &manifest(&[one]), &payload);
    assert!(repository.check().unwrap_err().to_string().contains("it has 65537 bytes"));
    repository.tag(IMAGE, &vec![b' '; (1 << 20) + 1], b"");
    assert!(repository.check().unwrap_err().to_string().contains("the limit is 1048576"));
}

#[test]
fn after_32_signatures_or_referrers_the_search_ends() {
    let payload = fixture!("made/cosign-tag/payload.json");
    let (good, bad) = (layer(payload, &sign(payload)), layer(payload, &sign(b"something else")));
    let mut layers = vec![bad.clone(); 31];
    layers.push(good.clone());
    let mut repository = by_cosign();
    repository.tag(IMAGE, &manifest(&layers), payload);
    repository.check().unwrap();
    layers.insert(0, bad);
    repository.tag(IMAGE, &manifest(&layers), payload);
    let error = repository.check().unwrap_err();
    assert!(matches!(&error, SignatureError::OtherKey { refused, .. } if refused.unseen == 1), "{error}");
    assert!(
        error.to_string().ends_with("and 28 more; 1 more were not looked at, the limit is 32"),
        "{error}"
    );

    let mut repository = Repository::default();
    for at in 0..40 {
        repository.refer(
            None,
            &manifest(&[format!("{good}{}", " ".repeat(at)).replace(simple::MEDIA_TYPE, "x")]),
            b"",
        );
    }
    assert!(
        matches!(repository.check(), Err(SignatureError::Unreadable { refused, .. }) if refused.unseen == 8)
    );
    assert_eq!(repository.requests.get(), 32);
    // An artifact that says it is a signature comes first.
    repository.refer(Some("application/vnd.dev.cosign.artifact.sig.v1+json"), &manifest(&[good]), payload);
    repository.check().unwrap();
}

#[test]
fn a_registry_that_fails_again_and_again_is_given_up() {
    let mut repository = Repository::default();
    for at in 0..40 {
        repository.refer(None, format!("{at}").as_bytes(), b"");
    }
    repository.content.clear();
    assert!(matches!(repository.check(), Err(SignatureError::Registry { .. })));
    assert_eq!(repository.requests.get(), 3);
}

#[test]
fn any_bit_changed_in_a_manifest_of_signatures_is_no_other_signature() {
    let (good, payload) =
        (fixture!("made/cosign-tag/manifest.json"), fixture!("made/cosign-tag/payload.json"));
    let text = std::str::from_utf8(good).unwrap();
    let signature = text.find("MEU").unwrap()..text.len() - 5;
    for bit in 0..good.len() * 8 {
        let mut changed = good.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        let mut repository = Repository::default();
        repository.tag(IMAGE, &changed, payload);
        let result = repository.check();
        // The rest of a manifest is untrusted: it only leads to the signature.
        assert!(!signature.contains(&(bit / 8)) || result.is_err(), "bit {bit}");
    }
}
