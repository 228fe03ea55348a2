//! A client of the OCI distribution API, blocking, for manifests and blobs of one repository.

mod agents;
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
mod netrc;
mod proxy;
mod push;
mod ranges;
mod reach;
mod said;
mod session;
mod signatures;
mod span;
mod system;
mod told;
mod trials;
mod unproxied;
mod urls;
mod ways;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::http::{Response, StatusCode, header};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, Proxy, RequestBuilder};

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
use agents::Agents;
use reach::Address;
use session::Session;
use trials::Trials;

/// How many redirects are followed.
const REDIRECTS: usize = 5;
/// In which time one answer with a blob is over, whatever its server puts between its bytes. What comes meanwhile is judged by its pace.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Who asks one repository at one place.
struct Client {
    agents: Agents,
    /// `https://host:port`.
    base: String,
    /// Registry and repository as they are asked: of a mirror, its own.
    name: RegistryRef,
    /// What a mirror stands in for.
    mirror_of: Option<String>,
    credentials: Credentials,
    insecure: bool,
    /// It is believed by an authority of the person's own directory, too.
    takes_own: bool,
    access: Access,
    /// For how long more of an answer is waited for, and, where it is none with a blob, for all of it.
    read: Duration,
    session: Mutex<Session>,
    /// It answered, whatever it said.
    has_answered: AtomicBool,
}

/// How long a registry is waited for.
struct Patience {
    connect: Duration,
    answer: Duration,
    /// For more of an answer that began, and for all of a small one.
    read: Duration,
}

impl Patience {
    fn of(access: &Access, is_mirror: bool) -> Self {
        // Beside a mirror there is somebody else to ask.
        let of = |seconds| Duration::from_secs(if is_mirror { seconds / 4 } else { seconds });
        let answer = match access {
            // It may read all of a blob again before it takes it.
            Access::Push { .. } => Duration::from_secs(600),
            _ => of(60),
        };
        Self { connect: of(20), answer, read: of(60) }
    }
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

impl Client {
    fn new(
        name: &RegistryRef,
        credentials: &Credentials,
        registries: &Registries,
        access: Access,
    ) -> Result<Self> {
        let host = if name.registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { &name.registry };
        let scheme = if registries.is_insecure(&name.registry) { "http" } else { "https" };
        let (base, patience) = (format!("{scheme}://{host}"), Patience::of(&access, false));
        Self::at(base, name.clone(), None, credentials, registries, access, &patience)
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
        let (base, patience) = (address.base.clone(), Patience::of(&Access::Pull, true));
        Self::at(base, own, Some(name.source()), credentials, registries, Access::Pull, &patience)
    }

    fn at(
        base: String,
        name: RegistryRef,
        mirror_of: Option<String>,
        credentials: &Credentials,
        registries: &Registries,
        access: Access,
        patience: &Patience,
    ) -> Result<Self> {
        let insecure = base.starts_with("http://");
        let (tls, takes_own) = certificates::tls(registries, &name.registry, insecure, credentials)?;
        let agent = |proxy: Option<Proxy>| {
            Agent::config_builder()
                .http_status_as_error(false)
                .https_only(!insecure)
                // Followed by hand, because the login must not leave the registry.
                .max_redirects(0)
                .max_redirects_will_error(false)
                // One for each range of a large blob.
                .max_idle_connections_per_host(ranges::AHEAD + ranges::EXTRA)
                .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
                .timeout_resolve(Some(patience.connect))
                .timeout_connect(Some(patience.connect))
                .timeout_recv_response(Some(patience.answer))
                .timeout_per_read(Some(patience.read))
                .timeout_recv_body(Some(patience.read))
                .tls_config(tls.clone())
                .proxy(proxy)
                .build()
                .new_agent()
        };
        Ok(Self {
            agents: Agents::of_env(&agent),
            base,
            name,
            mirror_of,
            credentials: credentials.clone(),
            insecure,
            takes_own,
            access,
            read: patience.read,
            session: Mutex::default(),
            has_answered: AtomicBool::new(false),
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

    /// Who asks the server of this URL: by the proxy of the environment, or without.
    ///
    /// # Errors
    /// It is to be asked by one that cannot be used.
    fn agent_for(&self, url: &str) -> std::result::Result<&Agent, ureq::Error> {
        self.agents.of(url)
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
            self.allowed(self.agent_for(&url)?.head(&url), &url).header(header::ACCEPT, ACCEPT).call()
        })?;
        let told = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
        let told = told.filter(|_| response.status().is_success());
        let told = told.and_then(|text| text.parse::<Digest>().ok());
        // Of a digest it can say no other one. Where it does, it is asked for the whole, which shows what it is.
        let asked = selector.parse::<Digest>().ok();
        Ok(told.filter(|told| asked.is_none_or(|asked| asked == *told)))
    }

    /// Whether the repository has the blob.
    fn has(&self, digest: &Digest) -> Result<bool> {
        let url = self.url(BlobKind::Blob, &digest.to_string());
        let nothing = [StatusCode::NOT_FOUND, StatusCode::RANGE_NOT_SATISFIABLE];
        let known = |status: StatusCode| status.is_success() || nothing.contains(&status);
        let response = self.persevere(&url, &known, &mut || {
            let told = self.follow(&url, &|agent: &Agent, target: &str| agent.head(target))?;
            if told.status().is_success() || urls::elsewhere(&self.base, &told).is_none() {
                return Ok(told);
            }
            // The address of storage may be signed for reading alone: it is asked for a byte.
            self.send(&url, None, Range { from: 0, end: Some(1) })
        })?;
        Ok(response.status().is_success())
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
            BlobKind::Blob
            | BlobKind::Held
            | BlobKind::Archive
            | BlobKind::Forms
            | BlobKind::Form
            | BlobKind::Signatures
            | BlobKind::SifSignatures => "blobs",
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
        let mut trials = Trials::new(self.is_mirror());
        let mut asked = false;
        loop {
            let (pause, server, why) = match self.asking(&self.label(), &mut *send) {
                Ok(response) => {
                    self.has_answered.store(true, Ordering::Relaxed);
                    let status = response.status();
                    if known(status) {
                        return Ok(response);
                    }
                    // Whoever else answers has nothing to do with logins, and gets none by asking for one.
                    let elsewhere = urls::elsewhere(&self.base, &response);
                    let own = elsewhere.is_none();
                    if own && status == StatusCode::UNAUTHORIZED && !asked {
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
                    if own
                        && ((refused && self.give_up_carried())
                            || (status == StatusCode::NOT_FOUND && self.change_carried()))
                    {
                        asked = false;
                        continue;
                    }
                    let server = elsewhere.clone().unwrap_or_else(|| self.label());
                    let pause = trials.after(&response).ok_or_else(|| match elsewhere {
                        Some(server) => message::refused_elsewhere(self, &server, url, response),
                        None => self.refused(&self.what(), url, &self.identity_name(), response),
                    })?;
                    (pause, server, format!("answered {status}"))
                }
                Err(error) => {
                    let has_answered = self.has_answered.load(Ordering::Relaxed);
                    let pause =
                        trials.after_none(&error, has_answered).ok_or_else(|| self.transport(&error))?;
                    (pause, self.label(), format!("gave no answer ({error})"))
                }
            };
            self.leave_alone(pause, &server, &why);
        }
    }

    /// One GET, following redirects: of a blob where no form of documents is asked for.
    fn send(
        &self,
        url: &str,
        accept: Option<&str>,
        range: Range,
    ) -> std::result::Result<Response<Body>, ureq::Error> {
        self.follow(url, &|agent: &Agent, target: &str| {
            let request = agent.get(target);
            let mut request = match accept {
                Some(accept) => request.header(header::ACCEPT, accept),
                None => request.config().timeout_recv_body(Some(LONGEST)).build(),
            };
            if let Some(range) = range.header() {
                request = request.header(header::RANGE, range);
            }
            request
        })
    }

    /// One request, following redirects. Storage behind a registry is given a signed address, never the login.
    fn follow(
        &self,
        url: &str,
        ask: &dyn Fn(&Agent, &str) -> RequestBuilder<WithoutBody>,
    ) -> std::result::Result<Response<Body>, ureq::Error> {
        let mut target = url.to_owned();
        for _ in 0..=REDIRECTS {
            let response = self.allowed(ask(self.agent_for(&target)?, &target), &target).call()?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            target = urls::location(&target, &response).ok_or_else(|| message::misled(self, &response))?;
        }
        Err(ureq::Error::TooManyRedirects)
    }

    /// A request with what the registry wants to see, if it goes to the registry itself.
    fn allowed<B>(&self, request: RequestBuilder<B>, target: &str) -> RequestBuilder<B> {
        match self.session().authorization.clone() {
            Some(authorization) if urls::is_same(target, &self.base) => {
                request.header(header::AUTHORIZATION, authorization)
            }
            _ => request,
        }
    }

    fn refused(&self, what: &str, url: &str, identity: &str, response: Response<Body>) -> Error {
        message::refused(what, self, url, identity, response)
    }

    fn transport(&self, error: &ureq::Error) -> Error {
        message::unreachable(self, &self.label(), error)
    }
}

/// For `fuzzing`.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_challenge(header: &str) {
    challenge::parse(std::iter::once(header));
}

#[cfg(test)]
mod tests;
