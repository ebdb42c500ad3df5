//! Open files: how many the system lets this process have, and what is said where there are no more.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config::Config;

/// Open files that a node needs besides links, targets and SOCKS clients: standard streams, event loops, listeners, the control socket's
/// connections, the files that it writes.
const OWN_FILES: u64 = 32;
/// Fewer links than that are none to be a relay with.
const LINKS_MIN: u32 = 4;
/// Between two lines of the log about connections that cannot be accepted.
const SILENCE: Duration = Duration::from_secs(60);

/// How many files this process may have open, of `wanted`: the limit is raised as far as it may be. `None` where the system does not tell.
pub(crate) fn allowed(wanted: u64) -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft >= wanted {
        return Some(soft);
    }
    let raised = wanted.min(hard);
    Some(if setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() { raised } else { soft })
}

/// Whether the system refused for want of something that closing a connection gives back.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    let wanting = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|code| wanting.contains(&Errno::from_raw(code)))
}

/// Raises the limit of open files to what `config` may need; where that is not permitted, answers smaller tables. A full table knows who has to
/// give way to a newcomer; whom the system refuses the node never sees.
pub(crate) fn fitted(mut config: Config) -> Config {
    let (links, clients, targets) = wishes(&config);
    let Some(files) = allowed(OWN_FILES + links + clients + targets) else { return config };
    if let Some((links, clients)) = shares(files, &config) {
        warn!(
            files,
            links,
            clients,
            "smaller tables than configured: the limit of open files is too small; raise it (ulimit -Hn)"
        );
        (config.limits.links, config.socks.connections) = (links, clients);
        config.limits.half_open_links = config.limits.half_open_links.min(links / 2);
    }
    config
}

/// Open files for links, SOCKS clients and targets.
fn wishes(config: &Config) -> (u64, u64, u64) {
    let clients = if config.roles.client { config.socks.connections } else { 0 };
    let targets = if config.roles.exit { config.limits.circuits } else { 0 };
    (config.limits.links.into(), clients.into(), targets.into())
}

/// Links and SOCKS clients if there are too few files for those that are configured: equal parts for both and for targets, of what there is.
/// Targets need no bound: a client whose target finds no file is told so, and tries another exit.
fn shares(files: u64, config: &Config) -> Option<(u32, u32)> {
    let (links, clients, targets) = wishes(config);
    if OWN_FILES + links + clients <= files {
        return None;
    }
    let parts = 1 + u64::from(clients > 0) + u64::from(targets > 0);
    let share = u32::try_from(files.saturating_sub(OWN_FILES) / parts).unwrap_or(u32::MAX).max(LINKS_MIN);
    Some((config.limits.links.min(share), config.socks.connections.min(share)))
}

/// What the log says of connections that cannot be accepted: one line a minute at most, however often the system refuses.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    told: Option<Instant>,
}

impl Refusals {
    /// Accepting one of `whose` connections has failed. Whether to wait before the next attempt: whoever cannot be accepted stays in the listener's
    /// queue, and asking again at once would find it there.
    pub(crate) fn note(&mut self, whose: &'static str, error: &io::Error) -> bool {
        // It was given up by whoever made it, before it was served.
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return false;
        }
        let now = Instant::now();
        if self.told.is_some_and(|told| now < told + SILENCE) {
            debug!(whose, %error, "a connection could not be accepted");
            return true;
        }
        self.told = Some(now);
        if is_exhaustion(error) {
            warn!(whose, %error, "cannot accept connections until others end; is the limit of open files too small (ulimit -n)?");
        } else {
            warn!(whose, %error, "cannot accept connections; trying again");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Roles;

    fn config(relay: bool, exit: bool, client: bool) -> Config {
        Config { roles: Roles { relay, exit, client }, ..Config::default() }
    }

    #[test]
    fn tables_are_as_configured_if_there_are_files_for_them() {
        assert_eq!(shares(1024 + OWN_FILES, &config(true, false, false)), None);
        assert_eq!(shares(2048 + OWN_FILES, &config(true, true, true)), None, "targets need no places of their own");
        assert_eq!(shares(u64::MAX, &config(true, true, true)), None);
    }

    #[test]
    fn few_files_are_shared_out() {
        assert_eq!(shares(64, &config(true, false, false)), Some((32, 32)));
        assert_eq!(shares(OWN_FILES + 90, &config(true, true, true)), Some((30, 30)));
        assert_eq!(shares(0, &config(true, true, true)), Some((LINKS_MIN, LINKS_MIN)), "too few is tried all the same");
        let mut few = config(false, false, true);
        few.limits.links = 10;
        assert_eq!(shares(OWN_FILES + 90, &few), Some((10, 45)), "never more than configured");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shortage_is_told_once_a_minute() {
        let (mut refusals, full) = (Refusals::default(), io::Error::from_raw_os_error(Errno::EMFILE as i32));
        let begun = Instant::now();
        assert!(refusals.note("test", &full) && refusals.note("test", &full));
        assert_eq!(refusals.told, Some(begun));
        tokio::time::advance(SILENCE).await;
        assert!(refusals.note("test", &full));
        assert_eq!(refusals.told, Some(begun + SILENCE));
        assert!(is_exhaustion(&full) && !is_exhaustion(&io::ErrorKind::ConnectionAborted.into()));
        assert!(!refusals.note("test", &io::ErrorKind::ConnectionAborted.into()), "nothing to wait for");
    }
}
