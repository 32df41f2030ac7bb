//! A login, and text that is in no error and in no debug output.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use std::fmt;

/// Padding is left out by some who write these files.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Text that nobody gets to see.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct Secret(String);

/// What a registry is told about who asks.
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

    /// For a header or a form, and nothing else.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl Login {
    /// What goes behind `Basic` in a header; None for a token, which is no password.
    pub(super) fn basic(&self) -> Option<Secret> {
        match self {
            Self::Password { user, password } => {
                Some(Secret(BASE64.encode(format!("{user}:{}", password.reveal()))))
            }
            Self::IdentityToken(_) => None,
        }
    }
}
