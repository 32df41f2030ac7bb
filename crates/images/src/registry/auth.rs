//! Authorization: answers a registry's challenge (Basic, or Bearer with a token server), and keeps the result for the next request.
//!
//! A login is sent only to its registry and to the token server that this registry names, and only over https, unless the registry itself
//! is configured as plain HTTP; even then to no other host. Tokens are requested with `pull` of this one repository, whatever the
//! challenge asks for.

use super::challenge::{Challenge, challenge, offered};
use super::credentials::{Credentials, LoginSearch};
use super::error::{Presented, RegistryError};
use super::foreign::shown;
use super::login::{Login, Secret};
use super::retry;
use super::transport::Transport;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};
use serde::Deserialize;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Most bytes of a token server's answer.
const MAX_TOKEN: u64 = 64 << 10;
/// Lifetime of a token that states none or a shorter one, from the specification of docker's tokens.
const LEAST_LIFE: Duration = Duration::from_secs(60);
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A token is renewed slightly before its end.
const MARGIN: Duration = Duration::from_secs(5);

/// The value of `Authorization`.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub(super) header: HeaderValue,
    expires: Option<Instant>,
    generation: u64,
}

/// An answer with the status 401.
#[derive(Debug)]
pub(super) struct Refusal<'a> {
    pub(super) url: &'a Url,
    pub(super) headers: &'a HeaderMap,
    /// Its explanation.
    pub(super) message: String,
}

/// The authorization of one endpoint.
#[derive(Debug)]
pub(super) struct Authorizer {
    credentials: Credentials,
    /// The scheme, host and port that the login belongs to.
    home: Url,
    /// The registry's name in files of logins.
    domain: String,
    repository: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    found: Option<LoginSearch>,
    challenge: Option<Challenge>,
    grant: Option<Grant>,
    generation: u64,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<serde_json::Value>,
}

impl Authorizer {
    pub(super) fn new(credentials: Credentials, home: Url, domain: &str, repository: &str) -> Self {
        let (domain, repository) = (domain.to_owned(), repository.to_owned());
        Self { credentials, home, domain, repository, state: Mutex::default() }
    }

    /// The answer to the last challenge, renewed when it expires. `None`: there was no challenge yet.
    pub(super) async fn current(&self, transport: &Transport) -> Result<Option<Grant>, RegistryError> {
        let mut state = self.state.lock().await;
        let over = |grant: &Grant| grant.expires.is_some_and(|end| end <= Instant::now());
        match (state.grant.as_ref().is_some_and(over), state.challenge.clone()) {
            (true, Some(challenge)) => self.answer(&mut state, challenge, transport).await.map(Some),
            _ => Ok(state.grant.clone()),
        }
    }

    /// Answers the challenge of a request that was refused with `refused`. When many requests are refused at once, the first one asks and
    /// the others use its result. A refusal without a challenge repeats the previous one.
    pub(super) async fn renew(
        &self,
        refused: Option<&Grant>,
        refusal: &Refusal<'_>,
        transport: &Transport,
    ) -> Result<Grant, RegistryError> {
        let mut state = self.state.lock().await;
        if let Some(grant) = &state.grant
            && refused.is_none_or(|refused| refused.generation != grant.generation)
        {
            return Ok(grant.clone());
        }
        let unknown = || RegistryError::Challenge {
            url: shown(refusal.url),
            offered: offered(refusal.headers),
            message: refusal.message.clone(),
        };
        let challenge = challenge(refusal.headers).or_else(|| state.challenge.clone()).ok_or_else(unknown)?;
        self.answer(&mut state, challenge, transport).await
    }

    /// The login that the registry saw.
    pub(super) async fn presented(&self) -> Presented {
        match &self.state.lock().await.found {
            Some(found) if found.login.is_some() => Presented::From(found.place.clone()),
            Some(found) => Presented::Nothing { looked: found.looked.clone() },
            None => Presented::Nothing { looked: Vec::new() },
        }
    }

    async fn answer(
        &self,
        state: &mut State,
        challenge: Challenge,
        transport: &Transport,
    ) -> Result<Grant, RegistryError> {
        state.grant = None;
        state.generation += 1;
        let generation = state.generation;
        if state.found.is_none() {
            let looked_up = self.credentials.lookup(&self.domain, &self.repository).await;
            state.found = Some(looked_up.map_err(|source| RegistryError::Credentials {
                registry: self.domain.clone(),
                source: Box::new(source),
            })?);
        }
        let login = state.found.as_ref().and_then(|found| found.login.as_ref());
        let (header, life) = match &challenge {
            Challenge::Basic => (self.basic(login, state.found.as_ref())?, None),
            Challenge::Bearer { realm, service } => {
                let realm = self.realm(realm, login)?;
                let answer = self.token(&realm, service.as_deref(), login, state.found.as_ref(), transport);
                let (header, life) = answer.await?;
                (header, Some(life))
            }
        };
        let expires = life.and_then(|life| Instant::now().checked_add(life));
        let grant = Grant { header, expires, generation };
        state.challenge = Some(challenge);
        state.grant = Some(grant.clone());
        Ok(grant)
    }

    fn denied(&self, url: &Url, status: u16, message: String, found: Option<&LoginSearch>) -> RegistryError {
        let login = match found {
            Some(found) if found.login.is_some() => Presented::From(found.place.clone()),
            found => {
                Presented::Nothing { looked: found.map(|found| found.looked.clone()).unwrap_or_default() }
            }
        };
        RegistryError::Denied { url: shown(url), status, message, registry: self.domain.clone(), login }
    }

    fn basic(
        &self,
        login: Option<&Login>,
        found: Option<&LoginSearch>,
    ) -> Result<HeaderValue, RegistryError> {
        let denied = |message: &str| self.denied(&self.home, 401, message.to_owned(), found);
        let login = login.ok_or_else(|| denied("it asks for a user name and password"))?;
        let basic = login.basic().ok_or_else(|| {
            denied("it asks for a user name and a password, but the login is an identity token")
        })?;
        secret_header(&format!("Basic {}", basic.reveal()))
            .ok_or_else(|| denied("the login does not fit into a header"))
    }

    /// The token server's address if the login may be sent there.
    fn realm(&self, realm: &str, login: Option<&Login>) -> Result<Url, RegistryError> {
        let parsed = Url::parse(realm).ok();
        let shown = parsed.as_ref().map_or_else(|| super::foreign::neutral(realm), shown);
        let refused = |problem| RegistryError::Realm { registry: self.domain.clone(), realm: shown, problem };
        let Some(mut url) = parsed else { return Err(refused("which is not an address")) };
        if url.set_username("").is_err() || url.set_password(None).is_err() {
            return Err(refused("which is not an address of a host"));
        }
        url.set_fragment(None);
        let same_host = url.host_str() == self.home.host_str();
        match (url.scheme(), self.home.scheme()) {
            ("https", _) => Ok(url),
            ("http", "http") if login.is_none() || same_host => Ok(url),
            ("http", "http") => Err(refused("where the login would go to another host without encryption")),
            ("http", _) => Err(refused("where everything would go without encryption")),
            _ => Err(refused("which is neither https nor http")),
        }
    }

    async fn token(
        &self,
        realm: &Url,
        service: Option<&str>,
        login: Option<&Login>,
        found: Option<&LoginSearch>,
        transport: &Transport,
    ) -> Result<(HeaderValue, Duration), RegistryError> {
        let scope = format!("repository:{}:pull", self.repository);
        let mut fields = vec![("scope", scope.as_str())];
        fields.extend(service.map(|service| ("service", service)));
        let response = match login {
            Some(Login::IdentityToken(token)) => {
                fields.extend([("grant_type", "refresh_token"), ("client_id", "magikvm")]);
                fields.push(("refresh_token", token.reveal()));
                transport.post(realm, form(&fields)).await?
            }
            login => {
                let basic = login.and_then(Login::basic);
                let header = basic.and_then(|basic| secret_header(&format!("Basic {}", basic.reveal())));
                let mut url = realm.clone();
                if let Some(Login::Password { user, .. }) = login {
                    fields.push(("account", user));
                }
                url.query_pairs_mut().extend_pairs(fields);
                transport.get(&url, &HeaderMap::new(), header.as_ref()).await?.response
            }
        };
        let status = response.status();
        match status.as_u16() {
            200 => read_token(&transport.document(response, MAX_TOKEN).await?)
                .map_err(|problem| RegistryError::Token { url: shown(realm), problem }),
            401 | 403 => {
                let message = transport.message(response).await.into();
                Err(self.denied(realm, status.as_u16(), message, found))
            }
            status => {
                let retry_after = retry::retry_after(response.headers());
                let message = transport.message(response).await.into();
                Err(RegistryError::Status { url: shown(realm), status, message, retry_after })
            }
        }
    }
}

/// The form in its encoded form.
fn form(fields: &[(&str, &str)]) -> String {
    let Ok(mut url) = Url::parse("https://form/") else { return String::new() };
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::try_from(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

fn read_token(bytes: &[u8]) -> Result<(HeaderValue, Duration), &'static str> {
    let answer: TokenAnswer = serde_json::from_slice(bytes).map_err(|_| "it is not JSON with a token")?;
    let some = |secret: Option<Secret>| secret.filter(|secret| !secret.reveal().is_empty());
    let token =
        some(answer.token).or(some(answer.access_token)).ok_or("it has neither token nor access_token")?;
    let header =
        secret_header(&format!("Bearer {}", token.reveal())).ok_or("the token does not fit into a header")?;
    let life = answer.expires_in.and_then(|life| life.as_u64()).map_or(LEAST_LIFE, Duration::from_secs);
    Ok((header, life.clamp(LEAST_LIFE, LONGEST_LIFE) - MARGIN))
}

#[cfg(test)]
mod tests {
    use super::super::retry::Timing;
    use super::super::tests::block_on;
    use super::super::tests::server::{Server, reply};
    use super::*;
    use reqwest::header::WWW_AUTHENTICATE;

    #[test]
    fn tokens_have_two_names_and_a_least_life() {
        let (header, life) = read_token(br#"{"token":"","access_token":"abc","expires_in":3}"#).unwrap();
        assert_eq!((header.to_str().unwrap(), life), ("Bearer abc", LEAST_LIFE - MARGIN));
        assert!(header.is_sensitive());
        let (_, life) = read_token(br#"{"token":"x","expires_in":300}"#).unwrap();
        assert_eq!(life, Duration::from_secs(295));
        for odd in ["{}", "[]", "<html>", r#"{"token":5}"#, r#"{"token":"a\nb"}"#] {
            assert!(read_token(odd.as_bytes()).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_login_goes_to_no_realm_in_the_open() {
        let login = Login::Password { user: "me".to_owned(), password: Secret::new("x".to_owned()) };
        let allowed = |home: &str, realm: &str, login: Option<&Login>| {
            let home = Url::parse(home).unwrap();
            Authorizer::new(Credentials::none(), home, "r.example", "a").realm(realm, login).is_ok()
        };
        let (https, http) = ("https://r.example/", "http://r.example:5000/");
        assert!(allowed(https, "https://auth.example/token", Some(&login)));
        assert!(!allowed(https, "http://r.example/token", Some(&login)));
        assert!(!allowed(https, "http://r.example/token", None));
        assert!(allowed(http, "http://r.example:5001/token", Some(&login)));
        assert!(!allowed(http, "http://auth.example/token", Some(&login)));
        assert!(allowed(http, "http://auth.example/token", None));
        assert!(!allowed(http, "ftp://r.example/", None) && !allowed(http, "token", None));
    }

    #[test]
    fn a_token_whose_time_is_over_is_renewed_without_being_refused() {
        let server = Server::start(|_, stream| reply(stream, 200, &[], br#"{"token":"t"}"#));
        let home = Url::parse(&format!("http://{}/", server.host())).unwrap();
        let authorizer = Authorizer::new(Credentials::none(), home.clone(), "r.example", "a");
        let transport = Transport::new("r.example", &home, Vec::new(), Timing::default());
        let mut headers = HeaderMap::new();
        headers.insert(WWW_AUTHENTICATE, format!("Bearer realm=\"{home}\"").parse().unwrap());
        block_on(async {
            assert!(authorizer.current(&transport).await.unwrap().is_none());
            let refusal = Refusal { url: &home, headers: &headers, message: String::new() };
            let first = authorizer.renew(None, &refusal, &transport).await.unwrap();
            let same = authorizer.current(&transport).await.unwrap().unwrap();
            assert_eq!((same.generation, server.count()), (first.generation, 1));
            let over = Grant { expires: Some(Instant::now()), ..first };
            authorizer.state.lock().await.grant = Some(over);
            let second = authorizer.current(&transport).await.unwrap().unwrap();
            assert!(second.generation > same.generation && second.expires.unwrap() > Instant::now());
            assert_eq!(server.count(), 2);
        });
    }

    #[test]
    fn forms_are_escaped() {
        assert_eq!(form(&[("a", "b c&d=é"), ("e", "")]), "a=b+c%26d%3D%C3%A9&e=");
    }
}
