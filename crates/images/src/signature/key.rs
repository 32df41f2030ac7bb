//! The public keys that may sign images: PEM files, kinds of keys, and the verification of signatures. Must not know images and
//! registries.

use crate::digest::{Digest, DigestError};
use rustls_pki_types::SignatureVerificationAlgorithm as Algorithm;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::{PemObject, SectionKind};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use webpki::ring;
use webpki::{Error, RawPublicKeyEntity};

/// Most bytes of a key file. The largest accepted key has about 1500.
const MAX_FILE: u64 = 64 << 10;

/// The id of a key: the sha256 of its DER form (SubjectPublicKeyInfo).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(Digest);

impl KeyId {
    /// The sha256 of the DER form.
    pub fn digest(&self) -> Digest {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for KeyId {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.parse().map(Self)
    }
}

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("cannot read the public key {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is not a usable public key.
    #[error("{} is not a public key for signatures of images: {problem}", path.display())]
    NotAKey {
        path: PathBuf,
        /// What it is instead, or what is wrong with it.
        problem: &'static str,
    },
}

/// An accepted kind of key.
struct KeyKind {
    /// Accepted signature algorithms. There are several because signers differ, and each is safe.
    algorithms: &'static [&'static dyn Algorithm],
    /// Accepted lengths of its DER form. For an unsupported key, *ring* only reports that no signature is valid; this detects it at once.
    /// A compressed point is shorter, and so is an RSA key under 2048 bits.
    der_bytes: RangeInclusive<usize>,
}

const KINDS: &[KeyKind] = &[
    KeyKind { algorithms: &[ring::ECDSA_P256_SHA256], der_bytes: 91..=91 },
    // cosign hashes with SHA-256 whatever the curve, openssl takes an option, newer signers use the curve's hash.
    KeyKind { algorithms: &[ring::ECDSA_P384_SHA384, ring::ECDSA_P384_SHA256], der_bytes: 120..=120 },
    KeyKind { algorithms: &[ring::ED25519], der_bytes: 44..=44 },
    KeyKind { algorithms: &[ring::RSA_PKCS1_2048_8192_SHA256], der_bytes: 290..=1100 },
];

const OTHER_KIND: &str = "magikvm supports ECDSA P-256 and P-384, Ed25519 and RSA of 2048 to 8192 bits";

#[derive(Clone)]
pub(super) struct Key {
    id: KeyId,
    der: SubjectPublicKeyInfoDer<'static>,
    algorithms: &'static [&'static dyn Algorithm],
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

impl Key {
    /// Parses the text of a PEM file.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        if has(pem, "PRIVATE KEY-----") {
            return Err("it is a private key; give the public one, and keep this one secret");
        }
        let mut sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem);
        let first = sections.next().transpose().map_err(|_| "its PEM text is damaged")?;
        let Some((kind, der)) = first else { return Err(instead(pem)) };
        match kind {
            SectionKind::PublicKey => {}
            SectionKind::Certificate => return Err("it is a certificate; extract the key from it"),
            _ => return Err("it is something else in PEM"),
        }
        match sections.next() {
            None => Self::from_der(der),
            Some(_) => Err("it holds more than one thing; one file, one key"),
        }
    }

    fn from_der(der: Vec<u8>) -> Result<Self, &'static str> {
        let der = SubjectPublicKeyInfoDer::from(der);
        let entity = RawPublicKeyEntity::try_from(&der).map_err(|_| "its DER form is damaged")?;
        // Only the algorithm of the key is compared, because another algorithm is a different error than a wrong signature.
        let fits = |algorithm: &dyn Algorithm| {
            let error = entity.verify_signature(algorithm, b"", b"");
            matches!(error, Ok(()) | Err(Error::InvalidSignatureForPublicKey))
        };
        let kind = KINDS.iter().find(|kind| kind.algorithms.iter().any(|algorithm| fits(*algorithm)));
        let kind = kind.ok_or(OTHER_KIND)?;
        if !kind.der_bytes.contains(&der.len()) {
            return Err("the key is too short, too long or in a compressed form");
        }
        Ok(Self { id: KeyId(Digest::of(&der)), algorithms: kind.algorithms, der })
    }

    /// Whether this key signed these bytes.
    fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(entity) = RawPublicKeyEntity::try_from(&self.der) else { return false };
        self.algorithms
            .iter()
            .any(|algorithm| entity.verify_signature(*algorithm, message, signature).is_ok())
    }
}

/// What a text without a known PEM section is.
fn instead(pem: &[u8]) -> &'static str {
    if has(pem, "-----BEGIN RSA PUBLIC KEY-----") {
        "it has the old form PKCS#1; convert it with `openssl rsa -RSAPublicKey_in -pubout`"
    } else {
        "it has no \"-----BEGIN PUBLIC KEY-----\""
    }
}

fn has(text: &[u8], what: &str) -> bool {
    text.windows(what.len()).any(|window| window == what.as_bytes())
}

/// Public keys, at least one. A signature by any of them suffices.
#[derive(Debug, Clone)]
pub struct Keys(Vec<Key>);

impl Keys {
    /// Reads PEM files. `None`: no file was given.
    pub fn load(paths: &[PathBuf]) -> Result<Option<Self>, KeyError> {
        let keys = paths.iter().map(|path| load(path)).collect::<Result<Vec<_>, _>>()?;
        Ok(if keys.is_empty() { None } else { Some(Self(keys)) })
    }

    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(|key| key.id)
    }

    /// The key that signed these bytes.
    pub(super) fn signer(&self, message: &[u8], signature: &[u8]) -> Option<KeyId> {
        self.0.iter().find(|key| key.signed(message, signature)).map(|key| key.id)
    }
}

fn load(path: &Path) -> Result<Key, KeyError> {
    let failed = |source| KeyError::Read { path: path.to_owned(), source };
    let wrong = |problem| KeyError::NotAKey { path: path.to_owned(), problem };
    let mut pem = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_end(&mut pem).map_err(failed)?;
    if pem.len() as u64 > MAX_FILE {
        return Err(wrong("the file is larger than 64 KiB"));
    }
    Key::from_pem(&pem).map_err(wrong)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    /// A file of the fixtures. `tests/fixtures/cosign/README.md` says how each was created.
    macro_rules! fixture {
        ($path:literal) => {
            include_bytes!(concat!("../../../../tests/fixtures/cosign/", $path)).as_slice()
        };
    }
    pub(crate) use fixture;

    /// Keys from PEM texts.
    pub(in crate::signature) fn keys(pems: &[&[u8]]) -> Keys {
        Keys(pems.iter().map(|pem| Key::from_pem(pem).unwrap()).collect())
    }

    const PAYLOAD: &[u8] = fixture!("openssl/payload.json");

    #[test]
    fn signatures_of_openssl_with_every_kind_of_key_are_right_and_no_other_key_made_them() {
        let made = [
            (fixture!("openssl/p256.pub"), fixture!("openssl/p256.sig")),
            (fixture!("openssl/p384.pub"), fixture!("openssl/p384.sig")),
            (fixture!("openssl/p384-sha256.pub"), fixture!("openssl/p384-sha256.sig")),
            (fixture!("openssl/ed25519.pub"), fixture!("openssl/ed25519.sig")),
            (fixture!("openssl/rsa2048.pub"), fixture!("openssl/rsa2048.sig")),
        ];
        for (at, (pem, _)) in made.iter().enumerate() {
            let keys = keys(&[pem]);
            for (other, (_, signature)) in made.iter().enumerate() {
                let signature = STANDARD.decode(signature).unwrap();
                let signer = keys.signer(PAYLOAD, &signature);
                assert_eq!(signer, if at == other { keys.ids().next() } else { None }, "{at} {other}");
                assert_eq!(keys.signer(&PAYLOAD[1..], &signature), None);
            }
        }
    }

    #[test]
    fn any_of_several_keys_suffices_and_it_is_said_which() {
        let keys = keys(&[fixture!("team.pub"), fixture!("openssl/p256.pub")]);
        let signature = STANDARD.decode(fixture!("openssl/p256.sig")).unwrap();
        assert_eq!(keys.signer(PAYLOAD, &signature), keys.ids().nth(1));
    }

    #[test]
    fn the_id_is_the_digest_that_openssl_computes() {
        // openssl pkey -pubin -in openssl/p256.pub -outform DER | sha256sum
        let id = fixture!("openssl/p256.id");
        let id = format!("sha256:{}", std::str::from_utf8(id).unwrap().trim());
        assert_eq!(keys(&[fixture!("openssl/p256.pub")]).ids().next().unwrap().to_string(), id);
        assert_eq!(id.parse::<KeyId>().unwrap().to_string(), id);
    }

    #[test]
    fn what_is_not_a_key_that_can_be_used_is_named() {
        let problem = |pem: &[u8]| Key::from_pem(pem).unwrap_err();
        for other in
            [fixture!("openssl/p521.pub"), fixture!("openssl/secp256k1.pub"), fixture!("openssl/ed448.pub")]
        {
            assert_eq!(problem(other), OTHER_KIND);
        }
        assert!(problem(fixture!("openssl/rsa1024.pub")).contains("too short"));
        assert!(problem(fixture!("openssl/compressed.pub")).contains("compressed"));
        assert!(problem(fixture!("openssl/pkcs1.pub")).contains("PKCS#1"));
        assert!(problem(fixture!("team.pem")).contains("private key"));
        assert!(problem(fixture!("team.key")).contains("private key"));
        assert!(problem(b"").contains("BEGIN PUBLIC KEY"));
        assert!(problem(&[fixture!("team.pub"), fixture!("other.pub")].concat()).contains("one file"));
        let cut = &fixture!("team.pub")[..120];
        assert!(problem(cut).contains("damaged"));
    }

    #[test]
    fn a_key_file_that_is_missing_or_endless_is_an_error_with_its_name() {
        let error = Keys::load(&[PathBuf::from("/nonexistent/team.pub")]).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/team.pub"), "{error}");
        let error = Keys::load(&[PathBuf::from("/dev/zero")]).unwrap_err();
        assert!(error.to_string().contains("larger than 64 KiB"), "{error}");
        assert!(Keys::load(&[]).unwrap().is_none());
    }

    #[test]
    fn a_key_with_one_bit_changed_is_refused_or_signed_nothing() {
        let pem = fixture!("openssl/p256.pub");
        let signature = STANDARD.decode(fixture!("openssl/p256.sig")).unwrap();
        let der = Key::from_pem(pem).unwrap().der;
        for bit in 0..der.len() * 8 {
            let mut changed = der.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let signer = Key::from_der(changed).map(|key| Keys(vec![key]).signer(PAYLOAD, &signature));
            assert!(matches!(signer, Err(_) | Ok(None)), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), signature in proptest::collection::vec(any::<u8>(), 0..100)
        ) {
            drop(Key::from_pem(&bytes));
            let text = STANDARD.encode(&bytes);
            drop(Key::from_pem(format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n").as_bytes()));
            if let Ok(key) = Key::from_der(bytes) {
                prop_assert!(!key.signed(PAYLOAD, &signature));
            }
            prop_assert_eq!(keys(&[fixture!("openssl/p256.pub")]).signer(PAYLOAD, &signature), None);
        }
    }
}
