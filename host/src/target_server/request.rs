//! Heads of HTTP requests, as far as the target server needs them.

use std::io;

/// A request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    query: String,
    /// Bytes of the body.
    pub(super) length: u64,
    /// The client waits for "100 Continue" before it sends the body.
    pub(super) expects_permission: bool,
    /// The connection ends with the answer.
    pub(super) close: bool,
}

impl Request {
    /// The number called `name` in the query, `default` if there is none, `None` if it is no number.
    pub(super) fn number(&self, name: &str, default: u64) -> Option<u64> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map_or(Some(default), |(_, value)| decimal(value))
    }
}

/// An answer that ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: &'static str,
    pub(super) advice: &'static str,
}

impl Refusal {
    const fn new(status: &'static str, advice: &'static str) -> Self {
        Self { status, advice }
    }

    pub(super) const BAD: Self = Self::new("400 Bad Request", "This is not a request that the server understands.");
    pub(super) const NOT_FOUND: Self =
        Self::new("404 Not Found", "Try /, /bytes/N, /echo, /sink, /slow?seconds=N, /events?count=N or /half-close.");
    pub(super) const METHOD: Self = Self::new("405 Method Not Allowed", "Only GET and POST are known here.");
    pub(super) const TIMEOUT: Self = Self::new("408 Request Timeout", "The request took too long.");
    pub(super) const LENGTH: Self = Self::new("411 Length Required", "Send a body with Content-Length, not in chunks.");
    pub(super) const TOO_LARGE: Self = Self::new("413 Content Too Large", "The body may have 64 GiB at most.");
    pub(super) const HEAD: Self = Self::new("431 Request Header Fields Too Large", "The head may have 16 KiB at most.");
    pub(super) const VERSION: Self =
        Self::new("505 HTTP Version Not Supported", "Only HTTP/1.0 and HTTP/1.1 are known here.");
}

#[derive(Debug)]
pub(super) enum Error {
    Io(io::Error),
    Refused(Refusal),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A number of digits only: `parse` alone would take a sign.
pub(super) fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The head that `received` begins with and its length; `None` if it is not complete.
pub(super) fn parse(received: &[u8], max: usize) -> Result<Option<(Request, usize)>, Refusal> {
    const END: &[u8] = b"\r\n\r\n";
    let searched = received.get(..max).unwrap_or(received);
    let Some(len) = searched.windows(END.len()).position(|window| window == END) else {
        return if received.len() < max { Ok(None) } else { Err(Refusal::HEAD) };
    };
    let head = received.get(..len).and_then(|head| std::str::from_utf8(head).ok()).ok_or(Refusal::BAD)?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(place), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::BAD);
    };
    let mut close = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ if version.starts_with("HTTP/") => return Err(Refusal::VERSION),
        _ => return Err(Refusal::BAD),
    };
    let mut length = None;
    let mut expects_permission = false;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(Refusal::BAD)?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let value = decimal(value).ok_or(Refusal::BAD)?;
                // Two lengths that differ are the beginning of request smuggling.
                if length.replace(value).is_some_and(|earlier| earlier != value) {
                    return Err(Refusal::BAD);
                }
            }
            "transfer-encoding" => return Err(Refusal::LENGTH),
            "expect" => expects_permission = value.eq_ignore_ascii_case("100-continue"),
            "connection" => {
                for word in value.split(',').map(str::trim) {
                    if word.eq_ignore_ascii_case("close") {
                        close = true;
                    } else if word.eq_ignore_ascii_case("keep-alive") {
                        close = false;
                    }
                }
            }
            _ => {}
        }
    }
    if method == "POST" && length.is_none() {
        return Err(Refusal::LENGTH);
    }
    let (path, query) = place.split_once('?').unwrap_or((place, ""));
    if !path.starts_with('/') {
        return Err(Refusal::BAD);
    }
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        length: length.unwrap_or(0),
        expects_permission,
        // After this answer there is nothing more to say on the connection.
        close: close || path == "/half-close",
    };
    Ok(Some((request, len + END.len())))
}
