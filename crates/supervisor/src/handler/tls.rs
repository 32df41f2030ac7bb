//! TLS for probes with the scheme HTTPS. As in the kubelet, nothing of the certificate is verified: a probe asks whether the server
//! answers, and sends nothing secret.

use super::wire::{Broken, Wire, broken};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::sync::{Arc, OnceLock};

/// A TLS connection.
pub(super) type Secured = StreamOwned<ClientConnection, Wire>;

/// Accepts every certificate, even one that is not well-formed.
#[derive(Debug)]
struct Anybody(Vec<SignatureScheme>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

fn config() -> Result<Arc<ClientConfig>, Broken> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, Broken>> = OnceLock::new();
    let make = || {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Broken::Failed(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(schemes)))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Every probe is a connection of its own.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    };
    CONFIG.get_or_init(make).clone()
}

/// Makes a connection a TLS connection.
pub(super) fn secure(mut wire: Wire, host: &str) -> Result<Secured, Broken> {
    let failed = |error: &dyn std::error::Error| Broken::Failed(format!("tls: {error}"));
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(&error))?;
    let mut connection = ClientConnection::new(config()?, name).map_err(|error| failed(&error))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut wire).map_err(|error| {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidMessage(_)) => Broken::NotTls,
                Some(error) => failed(error),
                None => broken(&error),
            }
        })?;
    }
    Ok(StreamOwned::new(connection, wire))
}
