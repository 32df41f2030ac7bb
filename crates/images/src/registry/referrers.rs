//! The manifests that refer to another one (signatures, for example): the referrers API of distribution-spec 1.1, and the tag that
//! replaces it in older registries.

use super::Which;
use super::download::Transfer;
use super::endpoint::{Endpoint, content_type, silent};
use super::error::RegistryError;
use super::foreign::{neutral, shown};
use crate::digest::Digest;
use crate::document::{Descriptor, MAX_TOP, Role, role};
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, LINK};
use reqwest::{Response, Url};
use serde::Deserialize;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Most pages of one list.
const MAX_PAGES: usize = 16;
/// Most entries of one list. A signature has a handful; more is an attack.
const MAX_REFERRERS: usize = 1024;

/// The used part of an index. Entries that are not understood (another digest algorithm) are skipped, so that nobody can hide the others
/// by adding one.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    manifests: Option<Vec<serde_json::Value>>,
}

/// Everything that refers to `digest` here, with this artifact type if one is given.
pub(super) async fn list(
    endpoint: &Endpoint,
    digest: &Digest,
    artifact_type: Option<&str>,
    attempts: u32,
) -> Result<Vec<Descriptor>, RegistryError> {
    let found = match of_api(endpoint, digest, artifact_type, attempts).await? {
        Some(found) => found,
        None => of_tag(endpoint, digest, attempts).await?,
    };
    let wanted =
        |one: &Descriptor| artifact_type.is_none_or(|wanted| one.artifact_type.as_deref() == Some(wanted));
    Ok(found.into_iter().filter(wanted).collect())
}

/// `None`: the registry has no such API.
async fn of_api(
    endpoint: &Endpoint,
    digest: &Digest,
    artifact_type: Option<&str>,
    attempts: u32,
) -> Result<Option<Vec<Descriptor>>, RegistryError> {
    let mut url = endpoint.url("referrers", &digest.to_string());
    if let Some(artifact_type) = artifact_type {
        url.query_pairs_mut().append_pair("artifactType", artifact_type);
    }
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(INDEX));
    let mut found = Vec::new();
    for _ in 0..MAX_PAGES {
        let ask = async || endpoint.get(&url, &headers).await;
        let response = match Transfer::nothing_yet().retrying(&endpoint.timing, attempts, &silent, ask).await
        {
            Err(
                RegistryError::NotFound { .. }
                | RegistryError::PlainRefused { .. }
                | RegistryError::Status { status: 400 | 405 | 501, .. },
            ) if found.is_empty() => {
                return Ok(None);
            }
            response => response?,
        };
        // Some registries answer every address with a web page.
        if content_type(&response) != INDEX {
            return Ok(None);
        }
        let next = next_page(&url, &response)?;
        let bytes = endpoint.transport.document(response, MAX_TOP).await?;
        found.extend(entries(&url, &bytes)?);
        if found.len() > MAX_REFERRERS {
            return Err(unusable(&url, format!("more than {MAX_REFERRERS} entries")));
        }
        match next {
            Some(next) => url = next,
            None => return Ok(Some(found)),
        }
    }
    Err(unusable(&url, format!("more than {MAX_PAGES} pages")))
}

async fn of_tag(
    endpoint: &Endpoint,
    digest: &Digest,
    attempts: u32,
) -> Result<Vec<Descriptor>, RegistryError> {
    let tag = format!("sha256-{}", digest.hex());
    let manifest = match endpoint.manifest(Which::Tag(&tag), attempts).await {
        Err(RegistryError::NotFound { .. }) => return Ok(Vec::new()),
        manifest => manifest?,
    };
    let url = endpoint.url("manifests", &tag);
    if role(&manifest.media_type) != Some(Role::Index) {
        return Err(unusable(&url, format!("it is not an index, but {}", neutral(&manifest.media_type))));
    }
    let found = entries(&url, &manifest.bytes)?;
    if found.len() > MAX_REFERRERS {
        return Err(unusable(&url, format!("more than {MAX_REFERRERS} entries")));
    }
    Ok(found)
}

fn entries(url: &Url, bytes: &[u8]) -> Result<Vec<Descriptor>, RegistryError> {
    let page: Page =
        serde_json::from_slice(bytes).map_err(|error| unusable(url, neutral(&error.to_string())))?;
    let entries = page.manifests.unwrap_or_default().into_iter();
    Ok(entries.filter_map(|entry| serde_json::from_value(entry).ok()).collect())
}

fn unusable(url: &Url, problem: String) -> RegistryError {
    RegistryError::Referrers { url: shown(url), problem }
}

/// The address in `Link: <…>; rel="next"`, which must be on the same server.
fn next_page(url: &Url, response: &Response) -> Result<Option<Url>, RegistryError> {
    for value in response.headers().get_all(LINK) {
        let Ok(text) = value.to_str() else { continue };
        let Some(target) = next_link(text) else { continue };
        let next = url.join(target).map_err(|_| unusable(url, "the next page has no address".to_owned()))?;
        if next.origin() != url.origin() {
            return Err(unusable(url, format!("the next page is at another server, {}", shown(&next))));
        }
        return Ok(Some(next));
    }
    Ok(None)
}

fn next_link(text: &str) -> Option<&str> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('<') {
        let (target, after) = after.split_once('>')?;
        let parameters = after.split('<').next().unwrap_or_default();
        let is_next = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or_default();
            key.trim().eq_ignore_ascii_case("rel")
                && value.trim_matches([' ', '"', ',']).eq_ignore_ascii_case("next")
        };
        if parameters.split(';').any(is_next) {
            return Some(target);
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        assert_eq!(next_link(r#"</v2/a/referrers/x?n=2>; rel="next""#), Some("/v2/a/referrers/x?n=2"));
        assert_eq!(next_link(r#"</a,b>; rel=prev, </c;d>; title="x"; rel=next"#), Some("/c;d"));
        assert_eq!(next_link(r#"</a>; rel="last""#), None);
        assert_eq!(next_link("</a"), None);
    }

    #[test]
    fn entries_that_are_not_understood_hide_no_others() {
        let url = Url::parse("https://r.example/").unwrap();
        let digest = Digest::of(b"x");
        let json = format!(
            r#"{{"manifests":[{{"digest":"sha512:00","size":1}},5,{{"digest":"{digest}","size":1,"artifactType":"a/b"}}]}}"#
        );
        let found = entries(&url, json.as_bytes()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].artifact_type.as_deref(), Some("a/b"));
        assert!(entries(&url, b"[").is_err());
    }

    proptest! {
        #[test]
        fn no_link_makes_it_panic(text in "[<>;,=a-z\" ]{0,40}") {
            std::hint::black_box(next_link(&text));
        }
    }
}
