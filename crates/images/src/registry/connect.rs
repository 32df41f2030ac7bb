//! Reasons why a connection to a registry fails, grouped by what the user can do about them.

use super::foreign::neutral;
use super::inward::Inward;
use std::error::Error;
use std::fmt;
use std::io;

/// Why a connection could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectProblem {
    Name,
    Refused,
    /// It took too long.
    TimedOut,
    /// The certificate's authority is not trusted here.
    UnknownAuthority,
    /// The server presents the certificate of an authority as its own.
    AuthorityAsServer,
    /// Another problem with the certificate or with TLS.
    Certificate,
    /// The server does not speak TLS.
    NotTls,
    /// The server closed the connection during the handshake.
    HungUp,
    Other,
}

/// The innermost cause of a failure of the HTTP or TLS library, as text.
#[derive(Debug)]
pub struct Cause(String);

impl Cause {
    pub(super) fn of(error: &(dyn Error + 'static)) -> Self {
        Self(neutral(&innermost(error).to_string()))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Cause {}

/// The end of the chain of causes. An `io::Error` hides what it wraps, so that is unwrapped explicitly.
fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut error = error;
    while let Some(inner) = below(error) {
        error = inner;
    }
    error
}

fn below<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// Classifies a failure of TLS.
fn tls_problem(error: &rustls::Error) -> ConnectProblem {
    use rustls::{CertificateError as Certificate, Error as Tls, InvalidMessage};
    match error {
        // An authority of the same name is known, but did not sign this certificate.
        Tls::InvalidCertificate(
            Certificate::UnknownIssuer
            | Certificate::BadSignature
            | Certificate::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => ConnectProblem::UnknownAuthority,
        Tls::InvalidCertificate(Certificate::Other(other))
            if matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity)) =>
        {
            ConnectProblem::AuthorityAsServer
        }
        Tls::InvalidMessage(InvalidMessage::InvalidContentType) => ConnectProblem::NotTls,
        _ => ConnectProblem::Certificate,
    }
}

/// Classifies a failed connection.
pub(super) fn connect_problem(error: &reqwest::Error) -> ConnectProblem {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref() {
            return tls_problem(tls);
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return ConnectProblem::Refused,
                io::ErrorKind::TimedOut => return ConnectProblem::TimedOut,
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => return ConnectProblem::HungUp,
                _ => {}
            }
        }
        cause = below(error);
    }
    match error {
        error if error.is_dns() => ConnectProblem::Name,
        error if error.is_timeout() => ConnectProblem::TimedOut,
        _ => ConnectProblem::Other,
    }
}

/// The refused address, if the name of the server was resolved to addresses inside.
pub(super) fn inward_address(error: &reqwest::Error) -> Option<Inward> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(inward) = error.downcast_ref::<Inward>() {
            return Some(*inward);
        }
        cause = below(error);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_certificates_are_told_apart() {
        use rustls::{CertificateError, Error as Tls, InvalidMessage, OtherError};
        use std::sync::Arc;
        let of = |error| tls_problem(&Tls::InvalidCertificate(error));
        let authority = OtherError(Arc::new(webpki::Error::CaUsedAsEndEntity));
        assert_eq!(of(CertificateError::UnknownIssuer), ConnectProblem::UnknownAuthority);
        assert_eq!(of(CertificateError::Other(authority)), ConnectProblem::AuthorityAsServer);
        assert_eq!(of(CertificateError::Expired), ConnectProblem::Certificate);
        let plain = Tls::InvalidMessage(InvalidMessage::InvalidContentType);
        assert_eq!(tls_problem(&plain), ConnectProblem::NotTls);
    }
}
