//! A client of the OCI distribution API, blocking, for manifests and blobs of one repository.

mod blob;
mod carried;
mod certificates;
mod challenge;
mod chunks;
mod config_file;
mod credentials;
mod helper;
mod login;
mod message;
mod push;
mod ranges;
mod reach;
mod signatures;
mod span;
mod ways;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::{Agent, Body, RequestBuilder};

pub use credentials::Credentials;
pub use login::{Login, LoginTarget};
pub(crate) use push::{Bytes, Uploader};
pub use reach::{Mirror, Registries};
pub use ways::Registry;

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::ACCEPT;
use crate::reference::{DEFAULT_REGISTRY, RegistryRef};
use crate::source::{BlobKind, mismatch};
use crate::unpack::Limits;
use challenge::Challenge;
use credentials::Identity;
use reach::Address;

const TOKEN_BYTES: u64 = 1 << 20;
/// How often one request is tried.
const ATTEMPTS: u32 = 5;
/// How often one is tried at a mirror, beside which there is another place to ask.
const MIRROR_ATTEMPTS: u32 = 2;
/// How many redirects are followed.
const REDIRECTS: usize = 5;
/// Wait before the second try; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Longest wait that a registry may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

struct Client {
    agent: Agent,
    /// `https://host:port`.
    base: String,
    /// Registry and repository as they are asked: of a mirror, its own.
    name: RegistryRef,
    /// What a mirror stands in for.
    mirror_of: Option<String>,
    credentials: Credentials,
    insecure: bool,
    access: Access,
    session: Mutex<Session>,
}

/// Which bytes are asked for.
#[derive(Clone, Copy, Default)]
struct Range {
    from: u64,
    /// Before which byte they end, where not at the end.
    end: Option<u64>,
}

impl Range {
    fn header(self) -> Option<String> {
        match (self.from, self.end) {
            (0, None) => None,
            (from, None) => Some(format!("bytes={from}-")),
            (from, Some(end)) => Some(format!("bytes={from}-{}", end.saturating_sub(1))),
        }
    }
}

/// What a registry is asked for, which decides what a token must allow and what a refusal means.
#[derive(Debug, PartialEq, Eq)]
enum Access {
    /// Whether it takes a login.
    Login,
    /// Manifests and blobs of the repository.
    Pull,
    /// To take manifests and blobs, and to take blobs over from another repository.
    Push { from: Option<String> },
}

/// What this process learned about how to authenticate.
#[derive(Default)]
struct Session {
    authorization: Option<String>,
    identity: Option<Identity>,
    /// The identity came with a job.
    is_carried: bool,
    /// What came with a job was refused: the person's own logins count.
    carried_refused: bool,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    fn new(
        name: &RegistryRef,
        credentials: &Credentials,
        registries: &Registries,
        access: Access,
    ) -> Result<Self> {
        let host = if name.registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { &name.registry };
        let scheme = if registries.is_insecure(&name.registry) { "http" } else { "https" };
        Self::at(format!("{scheme}://{host}"), name.clone(), None, credentials, registries, access)
    }

    /// For what a mirror has of the repository of `name`. It is asked with the login of its own host.
    fn of_mirror(
        name: &RegistryRef,
        address: &Address,
        credentials: &Credentials,
        registries: &Registries,
    ) -> Result<Self> {
        let repository = match address.prefix.as_str() {
            "" => name.repository.clone(),
            prefix => format!("{prefix}/{}", name.repository),
        };
        let own = RegistryRef { user: None, registry: address.host.clone(), repository, ..name.clone() };
        Self::at(address.base.clone(), own, Some(name.source()), credentials, registries, Access::Pull)
    }

    fn at(
        base: String,
        name: RegistryRef,
        mirror_of: Option<String>,
        credentials: &Credentials,
        registries: &Registries,
        access: Access,
    ) -> Result<Self> {
        let insecure = base.starts_with("http://");
        // Beside a mirror there is somebody else to ask.
        let patience = |seconds| Duration::from_secs(if mirror_of.is_some() { seconds / 4 } else { seconds });
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(!insecure)
            // Followed by hand, because the login must not leave the registry.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // One for each range of a large blob.
            .max_idle_connections_per_host(ranges::AHEAD + ranges::EXTRA)
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(patience(20)))
            .timeout_connect(Some(patience(20)))
            .timeout_recv_response(Some(match access {
                // It may read all of a blob again before it takes it.
                Access::Push { .. } => Duration::from_secs(600),
                _ => patience(60),
            }))
            .timeout_per_read(Some(patience(60)))
            .tls_config(certificates::tls(registries, &name.registry, credentials.home())?);
        if is_loopback(&name.registry) {
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            base,
            name,
            mirror_of,
            credentials: credentials.clone(),
            insecure,
            access,
            session: Mutex::default(),
        })
    }

    fn what(&self) -> String {
        match (&self.mirror_of, &self.access) {
            (Some(source), _) => source.clone(),
            (None, Access::Login) => self.label(),
            (None, Access::Pull | Access::Push { .. }) => self.name.source(),
        }
    }

    /// Who is asked, for messages.
    fn label(&self) -> String {
        match self.mirror_of {
            Some(_) => format!("mirror {}", self.base),
            None => format!("registry {}", self.name.registry),
        }
    }

    /// Host and port of the proxy by which it is asked.
    fn proxy(&self) -> Option<String> {
        let target = self.base.parse::<ureq::http::Uri>().ok()?;
        let proxy = self.agent.config().proxy().filter(|proxy| !proxy.is_no_proxy(&target))?;
        Some(format!("{}:{}", proxy.host(), proxy.port()))
    }

    fn is_mirror(&self) -> bool {
        self.mirror_of.is_some()
    }

    /// Asks for a manifest's digest alone; `None` where the answer does not have it.
    fn digest_of(&self, selector: &str) -> Result<Option<Digest>> {
        let url = self.url(BlobKind::Manifest, selector);
        let unknown = [StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED, StatusCode::BAD_REQUEST];
        let known =
            |status: StatusCode| status.is_success() || status.is_redirection() || unknown.contains(&status);
        let response = self.persevere(&url, &known, &mut || {
            self.allowed(self.agent.head(&url), &url).header(header::ACCEPT, ACCEPT).call()
        })?;
        let told = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
        Ok(told.filter(|_| response.status().is_success()).and_then(|text| text.parse().ok()))
    }

    /// Asks for a manifest by tag or digest; gives its bytes, its type and its verified digest.
    fn manifest(&self, selector: &str) -> Result<(Vec<u8>, Option<String>, Digest)> {
        let response =
            self.request(&self.url(BlobKind::Manifest, selector), Some(ACCEPT), Range::default())?;
        let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let content_type = text("content-type");
        let announced = text("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
        let limit = Limits::default().manifest_bytes;
        let bytes = response
            .into_body()
            .into_with_config()
            .limit(limit)
            .read_to_vec()
            .map_err(|e| self.transport(&e))?;
        let wanted = selector.parse::<Digest>().ok().or(announced);
        let algorithm = wanted.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let found = Digest::of(algorithm, &bytes);
        match wanted {
            Some(wanted) if wanted != found => Err(mismatch(&self.what(), &wanted, &found)),
            _ => Ok((bytes, content_type, found)),
        }
    }

    fn url(&self, kind: BlobKind, selector: &str) -> String {
        let part = match kind {
            BlobKind::Manifest | BlobKind::Proof => "manifests",
            BlobKind::Blob | BlobKind::Signatures => "blobs",
        };
        format!("{}/v2/{}/{part}/{selector}", self.base, self.name.repository)
    }

    /// Sends a GET until it is answered.
    fn request(&self, url: &str, accept: Option<&str>, range: Range) -> Result<Response<Body>> {
        self.persevere(url, &|status| status.is_success(), &mut || self.send(url, accept, range))
    }

    /// Sends what `send` sends until the answer is a known one: authenticates once if asked to, waits and tries again when
    /// the registry is busy or the connection breaks.
    fn persevere(
        &self,
        url: &str,
        known: &dyn Fn(StatusCode) -> bool,
        send: &mut dyn FnMut() -> std::result::Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>> {
        let mut wait = FIRST_WAIT;
        let mut asked = false;
        let mut attempt = 1;
        loop {
            let last = attempt >= if self.is_mirror() { MIRROR_ATTEMPTS } else { ATTEMPTS };
            let mut pause = wait;
            match send() {
                Ok(response) => {
                    let status = response.status();
                    if known(status) {
                        return Ok(response);
                    }
                    if status == StatusCode::UNAUTHORIZED && !asked {
                        asked = true;
                        match self.authenticate(response.headers()) {
                            Err(e) if e.kind() == ErrorKind::Denied && self.give_up_carried() => {
                                asked = false
                            }
                            done => done?,
                        }
                        continue;
                    }
                    let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
                    if refused && self.give_up_carried() {
                        asked = false;
                        continue;
                    }
                    let busy = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
                    if !busy || last {
                        return Err(self.refused(&self.what(), url, &self.identity_name(), response));
                    }
                    if let Some(wanted) = retry_after(response.headers(), SystemTime::now()) {
                        pause = wanted.min(LONGEST_WAIT);
                    }
                }
                Err(error) if last || !message::may_pass(&error) => {
                    return Err(self.transport(&error));
                }
                Err(_) => {}
            }
            std::thread::sleep(pause);
            wait = (wait * 2).min(LONGEST_WAIT);
            attempt += 1;
        }
    }

    /// One GET, following redirects. Storage behind a registry is given a signed address, never the login.
    fn send(
        &self,
        url: &str,
        accept: Option<&str>,
        range: Range,
    ) -> std::result::Result<Response<Body>, ureq::Error> {
        let mut target = url.to_owned();
        for _ in 0..=REDIRECTS {
            let mut request = self.allowed(self.agent.get(&target), &target);
            if let Some(accept) = accept {
                request = request.header(header::ACCEPT, accept);
            }
            if let Some(range) = range.header() {
                request = request.header(header::RANGE, range);
            }
            let response = request.call()?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location =
                response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
            target = join(&target, location).ok_or(ureq::Error::RedirectFailed)?;
        }
        Err(ureq::Error::TooManyRedirects)
    }

    /// A request with what the registry wants to see, if it goes to the registry itself.
    fn allowed<B>(&self, request: RequestBuilder<B>, target: &str) -> RequestBuilder<B> {
        match self.session().authorization.clone() {
            Some(authorization) if origin(target) == Some(self.base.as_str()) => {
                request.header(header::AUTHORIZATION, authorization)
            }
            _ => request,
        }
    }

    fn session(&self) -> std::sync::MutexGuard<'_, Session> {
        // A panic of another thread leaves at worst an old token, which is renewed.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identity_name(&self) -> String {
        self.session().identity.as_ref().map_or_else(|| Identity::Anonymous.name(), Identity::name)
    }

    fn identity(&self) -> Result<Identity> {
        if let Some(identity) = self.session().identity.clone() {
            return Ok(identity);
        }
        let (registry, user) = (&self.name.registry, self.name.user.as_deref());
        let carried = match self.session().carried_refused {
            true => None,
            false => self.credentials.carried(registry, user),
        };
        let is_carried = carried.is_some();
        let identity = match carried {
            Some(identity) => identity,
            None => self.credentials.lookup(registry, &self.name.repository, user)?,
        };
        self.credentials.used.note(registry, &identity);
        let mut session = self.session();
        (session.identity, session.is_carried) = (Some(identity.clone()), is_carried);
        Ok(identity)
    }

    /// After a refusal: whether the login that came with the job was used, which from now on is not.
    fn give_up_carried(&self) -> bool {
        let mut session = self.session();
        if !session.is_carried {
            return false;
        }
        *session = Session { carried_refused: true, ..Session::default() };
        true
    }

    fn authenticate(&self, headers: &HeaderMap) -> Result<()> {
        let identity = self.identity()?;
        let lines = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let authorization = match challenge::parse(lines) {
            Some(Challenge::Bearer { realm, service, scope }) => {
                Some(self.token(&identity, &realm, service, scope)?)
            }
            Some(Challenge::Basic) => identity.basic(),
            None => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    self.what(),
                    format!("{} wants a login of a kind that is not supported", self.label()),
                )
                .next("Basic and Bearer are supported; ask the registry's administrator"));
            }
        };
        self.session().authorization = authorization;
        Ok(())
    }

    /// Gets a token for what is wanted (distribution specification, token authentication).
    fn token(
        &self,
        identity: &Identity,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<String> {
        let what = format!("{}: token server {realm}", self.what());
        if !(realm.starts_with("https://") || (self.insecure && realm.starts_with("http://"))) {
            return Err(Error::new(
                ErrorKind::Denied,
                what,
                "a login is not sent over an unencrypted connection",
            )
            .next("use a registry with TLS, or allow HTTP with --insecure"));
        }
        let own = &self.name.repository;
        let scopes: Vec<String> = match &self.access {
            Access::Login => scope.into_iter().collect(),
            Access::Pull => vec![scope.unwrap_or_else(|| format!("repository:{own}:pull"))],
            // All at once: the registry names only what the request at hand needs.
            Access::Push { from } => std::iter::once(format!("repository:{own}:pull,push"))
                .chain(from.iter().map(|from| format!("repository:{from}:pull")))
                .collect(),
        };
        let mut pairs: Vec<_> = match identity {
            // As OAuth 2 has it: one parameter, with spaces.
            Identity::Token { .. } if !scopes.is_empty() => vec![("scope", scopes.join(" "))],
            Identity::Token { .. } => Vec::new(),
            _ => scopes.into_iter().map(|scope| ("scope", scope)).collect(),
        };
        pairs.extend(service.map(|service| ("service", service)));
        let result = if let Identity::Token { token } = identity {
            pairs.extend([
                ("grant_type", "refresh_token".to_owned()),
                ("client_id", "berth".to_owned()),
                ("refresh_token", token.clone()),
            ]);
            self.agent
                .post(realm)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .send(query(&pairs))
        } else {
            let mark = if realm.contains('?') { '&' } else { '?' };
            let mut request = self.agent.get(format!("{realm}{mark}{}", query(&pairs)));
            if let Some(basic) = identity.basic() {
                request = request.header(header::AUTHORIZATION, basic);
            }
            request.call()
        };
        let response = result.map_err(|e| self.transport(&e))?;
        if !response.status().is_success() {
            return Err(self.refused(&what, realm, &identity.name(), response));
        }
        let body = response
            .into_body()
            .into_with_config()
            .limit(TOKEN_BYTES)
            .read_to_vec()
            .map_err(|e| self.transport(&e))?;
        let answer: Option<TokenAnswer> = serde_json::from_slice(&body).ok();
        match answer
            .and_then(|a| a.token.or(a.access_token))
            .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic()))
        {
            Some(token) => Ok(format!("Bearer {token}")),
            None => Err(Error::new(ErrorKind::Unreachable, what, "its answer has no token")
                .next("ask the registry's administrator")),
        }
    }

    fn refused(&self, what: &str, url: &str, identity: &str, response: Response<Body>) -> Error {
        message::refused(what, self, url, identity, response)
    }

    fn transport(&self, error: &ureq::Error) -> Error {
        message::unreachable(self, error)
    }
}

/// `scheme://host:port` of a URL.
fn origin(url: &str) -> Option<&str> {
    let start = url.find("://")? + 3;
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    Some(&url[..end])
}

/// Where a redirect leads: a whole address, or a path of the same server.
fn join(url: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{}://{rest}", url.split("://").next()?));
    }
    if location.starts_with('/') { origin(url).map(|origin| format!("{origin}{location}")) } else { None }
}

/// As Go's HTTP library does: no proxy for this machine itself.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// How long a busy registry wants to be left alone: it says seconds, or a time (RFC 9110, section 10.2.3), which may be over.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = httpdate::parse_http_date(text).ok()?;
    Some(time.duration_since(now).unwrap_or_default())
}

/// `k=v&k=v` with everything but unreserved characters escaped.
fn query(pairs: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text += key;
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(byte))
                }
                _ => text += &format!("%{byte:02X}"),
            }
        }
    }
    text
}

/// For `fuzzing`.
#[cfg(fuzzing)]
pub(crate) fn read_challenge(header: &str) {
    challenge::parse(std::iter::once(header));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            query(&[("scope", "repository:a/b:pull".to_owned()), ("x", "ä &".to_owned())]),
            "scope=repository%3Aa%2Fb%3Apull&x=%C3%A4%20%26"
        );
    }

    #[test]
    fn redirects() {
        let url = "https://r.io:5/v2/x?y=1";
        assert_eq!(origin(url), Some("https://r.io:5"));
        assert_eq!(join(url, "/a/b").as_deref(), Some("https://r.io:5/a/b"));
        assert_eq!(join(url, "//s.io/a").as_deref(), Some("https://s.io/a"));
        assert_eq!(join(url, "http://s.io/a").as_deref(), Some("http://s.io/a"));
        assert_eq!(join(url, "a/b"), None);
        assert_ne!(origin("https://r.io:5@evil.io/x"), Some("https://r.io:5"));
    }

    #[test]
    fn a_busy_registry_says_seconds_or_a_time() {
        let now = httpdate::parse_http_date("Fri, 27 Nov 2026 10:00:00 GMT").unwrap();
        let asked = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("Fri, 27 Nov 2026 10:00:05 GMT"), Some(Duration::from_secs(5)));
        assert_eq!(asked("Fri, 27 Nov 2026 09:00:00 GMT"), Some(Duration::ZERO));
        for odd in ["-1", "soon", "1.5", ""] {
            assert_eq!(asked(odd), None, "{odd}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn loopback() {
        assert!(is_loopback("127.0.0.1:5000") && is_loopback("localhost") && is_loopback("[::1]:5"));
        assert!(!is_loopback("registry:5000") && !is_loopback("10.0.0.1"));
    }
}
