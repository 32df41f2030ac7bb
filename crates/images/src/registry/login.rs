//! A login, and text that appears in no error and no debug output.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use std::fmt;

/// Some writers of these files leave out the padding.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct Secret(String);

/// The identity that a registry is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Login {
    Password {
        user: String,
        password: Secret,
    },
    /// An OAuth2 refresh token.
    IdentityToken(Secret),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Secret {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    /// For a header or a form only.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl Login {
    /// The value after `Basic` in a header; `None` for a token, which is not a password.
    pub(super) fn basic(&self) -> Option<Secret> {
        match self {
            Self::Password { user, password } => {
                Some(Secret(BASE64.encode(format!("{user}:{}", password.reveal()))))
            }
            Self::IdentityToken(_) => None,
        }
    }
}
