//! What to tell a person when a registry refuses or cannot be reached.

use std::io::Read;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime};

use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::credentials::Identity;
use super::urls::{self, retry_after};
use super::{Access, Client, REDIRECTS, said};
use crate::error::{Error, ErrorKind, printable};

/// Bytes of an answer that are read for what it says.
const MOST_SAID: u64 = 1 << 16;
/// For how long they are waited for. What a refusal says in words is worth no minute.
const SAYS: Duration = Duration::from_secs(10);

/// What to do about a registry that speaks HTTP alone. Commands that make jobs have no option for it.
const NO_TLS: &str = "check the port; if you trust the network, allow HTTP with --insecure ('berth run', 'berth image pull'), or for jobs \
                      in images.insecure_registries of berth.toml";
/// What to do about a handshake that failed.
const BAD_TLS: &str = "if its certificate is your site's own, name the authority in images.certificate_authorities of berth.toml or add it \
                       to the system's certificates; if the registry has no TLS, allow HTTP with --insecure, or for jobs in \
                       images.insecure_registries of berth.toml";

/// An answer that is not success: which registry, as whom we asked, what it said, what to do.
pub(super) fn refused(
    what: &str,
    client: &Client,
    url: &str,
    identity: &str,
    response: Response<Body>,
) -> Error {
    let registry = &client.name.registry;
    let status = response.status();
    let answered = format!("{} answered {}", client.label(), answer(client, response, identity));
    let asked = url.rsplit('/').next().unwrap_or_default();
    let pushing = matches!(client.access, Access::Push { .. });
    let login = format!("log in with `berth image login {registry}`");
    let error = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if client.access == Access::Login => {
            Error::new(ErrorKind::Denied, what, answered)
                .next("check user name and password; many registries want a token in place of the password")
        }
        StatusCode::NOT_FOUND if client.access == Access::Login => Error::new(
            ErrorKind::Unsupported,
            what,
            format!("it does not answer as a registry does: {answered}"),
        )
        .next("check host and port; an address in a browser may be another one"),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if pushing => {
            let next = match identity {
                "anonymous" => login,
                _ => format!("check that the login may push to {}, or {login} as somebody who may", client.name.repository),
            };
            Error::new(ErrorKind::Denied, what, answered).next(next)
        }
        status if pushing && status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
            Error::new(ErrorKind::Refused, what, answered)
                .next("check the name: some registries want a repository to be made before it is pushed to, or limit what they take")
        }
        StatusCode::NOT_FOUND if url.contains("/manifests/") => {
            Error::new(ErrorKind::NotFound, what, format!("there is no image {asked:?}: {answered}"))
                .next("check the spelling of repository and tag")
        }
        StatusCode::NOT_FOUND => {
            Error::new(ErrorKind::NotFound, what, format!("there is no blob {asked}: {answered}"))
                .next("the image is incomplete there; push it again")
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let next = if identity == "anonymous" {
                format!("{login}, or check the name: registries refuse unknown images in the same way")
            } else {
                format!("check that the login is right and may pull this image, then {login}")
            };
            Error::new(ErrorKind::Denied, what, answered).next(next)
        }
        StatusCode::TOO_MANY_REQUESTS => Error::new(ErrorKind::Unreachable, what, answered)
            .next(format!("wait, or {login} for a higher limit")),
        _ => Error::new(ErrorKind::Unreachable, what, answered)
            .next("try again later, or ask the registry's administrator"),
    };
    let refused = matches!(error.kind(), ErrorKind::Denied | ErrorKind::NotFound);
    let unshown =
        if refused && identity == "anonymous" { client.credentials.not_of_enroot(registry) } else { None };
    match unshown {
        Some(why) => error.beside(&why),
        None => error,
    }
}

/// The same of a server that the registry redirected to, or where it has uploads sent.
pub(super) fn refused_elsewhere(client: &Client, server: &str, url: &str, response: Response<Body>) -> Error {
    let status = response.status();
    let reason = format!(
        "{server}, to which {} leads, answered {}",
        client.label(),
        answer(client, response, &Identity::Anonymous.name())
    );
    if status == StatusCode::NOT_FOUND {
        let asked = url.rsplit('/').next().unwrap_or_default();
        return Error::new(ErrorKind::NotFound, client.what(), format!("there is no {asked}: {reason}"))
            .next("the image is incomplete there; push it again");
    }
    Error::new(ErrorKind::Unreachable, client.what(), reason)
        .next("no login is shown there: try again later, or ask the registry's administrator")
}

/// A server that leads to what is no address. It is an error of the library's, so that it goes where those go.
pub(super) fn misled(client: &Client, response: &Response<Body>) -> ureq::Error {
    let server = match urls::elsewhere(&client.base, response) {
        Some(server) => format!("{server}, to which {} leads,", client.label()),
        None => client.label(),
    };
    let status = response.status();
    let does = if status.is_redirection() { "redirected to" } else { "wants an upload sent to" };
    let reason = match response.headers().get(header::LOCATION) {
        Some(place) => {
            let place = printable(&String::from_utf8_lossy(place.as_bytes()), 300);
            format!("{server} {does} {place:?}, which is no address of a server")
        }
        None => format!("{server} answered {status} and does not say where it leads"),
    };
    let error = Error::new(ErrorKind::Unreachable, client.what(), reason);
    ureq::Error::Other(Box::new(error.next("ask the registry's administrator")))
}

/// Status and words of an answer, and to whom it was given.
fn answer(client: &Client, response: Response<Body>, identity: &str) -> String {
    let status = response.status();
    let wait = retry_after(response.headers(), SystemTime::now());
    let words = said::words(&come(response.into_body(), SAYS.min(client.read)));
    // Many web servers only say the status again.
    let words = if status.to_string().contains(&words) { String::new() } else { words };
    let words = if words.is_empty() { String::new() } else { format!(" ({words})") };
    let wait = wait
        .filter(|wait| !wait.is_zero())
        .map(|wait| format!(", and asks to be left alone for {} s", wait.as_secs()));
    format!("{status}{words} to {identity}{}", wait.unwrap_or_default())
}

/// What comes of a body in this time, which says more than nothing. The library's own limits are those of its request, which may be one
/// for a large blob: so a thread reads it, and is left alone where it does not come to an end.
fn come(body: Body, time: Duration) -> Vec<u8> {
    let until = Instant::now() + time;
    let (sender, pieces) = channel();
    let mut body = body.into_reader().take(MOST_SAID);
    let read = move || {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = body.read(&mut piece) {
            if sender.send(piece[..read].to_vec()).is_err() {
                return;
            }
        }
    };
    let mut all = Vec::new();
    if std::thread::Builder::new().spawn(read).is_ok() {
        while let Ok(piece) = pieces.recv_timeout(until.saturating_duration_since(Instant::now())) {
            all.extend(piece);
        }
    }
    all
}

/// Whether another try may help. Of a refused connection that depends on who refused it.
pub(super) fn may_pass(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(e) => {
            !no_such_name(e) && !is_refused(error) && e.kind() != std::io::ErrorKind::InvalidData
        }
        ureq::Error::Timeout(_) | ureq::Error::BodyStalled | ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

/// Whether nothing listens there.
pub(super) fn is_refused(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Whether it is known that there is no such host, rather than unknown for now. Of getaddrinfo's code the standard
/// library keeps the C library's words alone: glibc's, and those of musl.
fn no_such_name(error: &std::io::Error) -> bool {
    let words = error.to_string();
    ["Name or service not known", "No address associated with hostname", "Name does not resolve"]
        .iter()
        .any(|known| words.contains(known))
}

/// No answer at all, of the registry or of a server that it names.
pub(super) fn unreachable(client: &Client, server: &str, error: &ureq::Error) -> Error {
    // Nobody was asked at all.
    if let ureq::Error::Other(own) = error
        && let Some(own) = own.downcast_ref::<Error>()
    {
        return own.clone();
    }
    let what = client.what();
    let unknown = || {
        (
            "the host name is unknown".to_owned(),
            "check the spelling, and that this machine can resolve names, or name a proxy (HTTPS_PROXY, HTTP_PROXY)",
        )
    };
    let (reason, next) = match error {
        ureq::Error::HostNotFound => unknown(),
        ureq::Error::Io(e) if no_such_name(e) => unknown(),
        refused if is_refused(refused) => (
            "nothing listens there (connection refused)".to_owned(),
            "check the port, and that the registry runs",
        ),
        ureq::Error::Timeout(ureq::Timeout::RecvBody) => (
            format!("no answer in time: not all of it came in {:?}", client.read),
            "check the network, a proxy (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) or a firewall",
        ),
        ureq::Error::Timeout(what) => (
            format!("no answer in time ({what})"),
            "check the network, a proxy (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) or a firewall",
        ),
        // A server without TLS answers a handshake with plain text.
        ureq::Error::Io(e)
            if e.kind() == std::io::ErrorKind::InvalidData
                && !client.insecure
                && e.to_string().contains("InvalidContentType") =>
        {
            ("it answers without TLS".to_owned(), NO_TLS)
        }
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => (error.to_string(), BAD_TLS),
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData && !client.insecure => {
            (error.to_string(), BAD_TLS)
        }
        ureq::Error::TooManyRedirects => (
            format!("it redirects on and on, more than {REDIRECTS} times"),
            "ask the registry's administrator",
        ),
        ureq::Error::RequireHttpsOnly(_) => (
            "it redirected to an unencrypted address".to_owned(),
            "allow HTTP with --insecure if you trust the network",
        ),
        ureq::Error::BodyExceedsLimit(limit) => {
            return Error::new(ErrorKind::Refused, what, format!("its answer is larger than {limit} bytes"))
                .next("no manifest needs one this large; check what the name points to");
        }
        other => (
            other.to_string(),
            "check the network, a proxy (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) or a firewall",
        ),
    };
    // The address of the proxy may have a login in it.
    let (by, next) = match client.agents.proxy(&client.base) {
        Some((proxy, variable)) => (
            format!(" by the proxy {proxy}"),
            format!(
                "check that the proxy of {variable} runs, takes the login in its address and reaches the registry, or name the \
                 registry in NO_PROXY"
            ),
        ),
        None => (String::new(), next.to_owned()),
    };
    Error::new(ErrorKind::Unreachable, what, format!("{server} cannot be reached{by}: {reason}")).next(next)
}

#[cfg(test)]
mod tests {
    use super::may_pass;

    #[test]
    fn a_host_that_is_not_there_is_asked_for_once_and_one_that_may_be_again() {
        let io = |words: &str| {
            ureq::Error::Io(std::io::Error::other(format!("failed to lookup address information: {words}")))
        };
        assert!(!may_pass(&ureq::Error::HostNotFound));
        assert!(!may_pass(&io("Name or service not known")));
        assert!(!may_pass(&io("No address associated with hostname")));
        assert!(may_pass(&io("Temporary failure in name resolution")));
    }
}
