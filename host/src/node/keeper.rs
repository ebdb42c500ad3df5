//! What runs beside a node's engine: the first contacts, and what is kept over a restart.

use std::sync::Arc;
use std::time::Duration;

use bulbil_core::driver::LinkEnd;
use bulbil_core::phonebook::Guards;
use bulbil_core::wire::NodeId;
use rand_core::Rng as _;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinError;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;
use zeroize::Zeroizing;

use super::builder::Commands;
use super::directory::Directory;
use crate::config::Bootstrap;
use crate::engine::Command;
use crate::random::SYSTEM;
use crate::state::{Item, Problem, StateDir, StateError};

/// Between two attempts to reach a node that does not answer: at first, at most while nobody else is known, and at most.
const RETRY: (Duration, Duration, Duration) =
    (Duration::from_millis(500), Duration::from_secs(60), Duration::from_secs(3600));
/// Between two looks at whether a bootstrap node is still in the phonebook, or anybody is.
const LOOK: Duration = Duration::from_secs(30);
/// Longest time between two visits for the reason that paths fail.
const SPACING_MAX: Duration = Duration::from_secs(4);
/// For how long a node may fail to answer before the log says so.
const SILENCE: Duration = Duration::from_secs(4);

/// Meets a bootstrap node, and again when it has left the phonebook, or when a path fails: it may have restarted with a new onion key, or
/// know what has become of others. Nobody else needs it once others are known, so it may stay away for good.
pub(super) async fn stay_in_touch(contact: Bootstrap, commands: Commands, serving: bool, directory: Directory) {
    let mut doubts = directory.doubts();
    let (mut pause, mut spacing) = (RETRY.0, RETRY.0);
    let mut failing_since = None;
    loop {
        let (reply, met) = oneshot::channel();
        doubts.mark_unchanged();
        let asked = Instant::now();
        if commands.send(Command::Contact(contact.address, contact.fingerprint, reply)).is_err() {
            return;
        }
        let met = match met.await {
            Ok(Ok((card, _))) => {
                (pause, failing_since) = (RETRY.0, None);
                Some(card.node())
            }
            Ok(Err(LinkEnd::Shutdown)) => return,
            outcome => {
                let end = match outcome {
                    Ok(Err(end)) => end.to_string(),
                    _ => "no room for the link".to_owned(),
                };
                // Nodes that start together find each other late; only a lasting failure is worth a word, and one.
                let since = failing_since.get_or_insert(Some(asked));
                if since.is_some_and(|since| since.elapsed() > SILENCE) {
                    warn!(reason = end, serving, "a bootstrap node cannot be reached; trying again from time to time");
                    failing_since = Some(None);
                }
                None
            }
        };
        // However many paths fail, each further visit for that reason is later than the one before.
        let early = async {
            sleep_until(asked + spacing).await;
            doubts.changed().await
        };
        let due = async {
            match met {
                Some(node) => until_it_has_left(&directory, node).await,
                None => until_it_may_be_back(&directory, pause).await,
            }
        };
        tokio::select! {
            changed = early => match changed {
                Ok(()) => spacing = (spacing * 2).min(SPACING_MAX),
                Err(_) => return,
            },
            () = due => spacing = RETRY.0,
        }
        if met.is_none() {
            pause = (pause * 2).min(RETRY.2);
        }
    }
}

async fn until_it_has_left(directory: &Directory, node: NodeId) {
    loop {
        sleep(spread(LOOK)).await;
        if !directory.knows(node).await {
            return;
        }
    }
}

async fn until_it_may_be_back(directory: &Directory, pause: Duration) {
    let until = Instant::now() + spread(pause);
    let alone_until = Instant::now() + spread(pause.min(RETRY.1));
    while let left @ 1.. = until.saturating_duration_since(Instant::now()).as_millis() {
        sleep(LOOK.min(Duration::from_millis(left as u64))).await;
        if Instant::now() >= alone_until && !directory.anybody().await {
            return;
        }
    }
}

/// Writes first hops and phonebook to the state directory.
pub(super) struct Keeper {
    state: Arc<StateDir>,
    directory: Directory,
    /// Whoever writes holds it: nothing older must be written over what is newer.
    turn: Mutex<Written>,
}

/// How far what is written is behind.
struct Written {
    /// The first hops that are written.
    guards: Guards,
    /// A phonebook that could not be written. The directory hands out what has changed once.
    phonebook: Option<Zeroizing<Vec<u8>>>,
}

impl Keeper {
    /// For a node that has begun with what `state` holds, these first hops among it.
    pub(super) fn new(state: Arc<StateDir>, directory: Directory, written: Guards) -> Self {
        Self { state, directory, turn: Mutex::new(Written { guards: written, phonebook: None }) }
    }

    /// Writes what has changed, and what could not be written the last time.
    pub(super) async fn save(&self) {
        let mut written = self.turn.lock().await;
        self.save_guards(&mut written.guards).await;
        let unwritten = written.phonebook.take();
        let Some(bytes) = self.directory.keep().await.or(unwritten) else { return };
        if let Err((error, bytes)) = self.write(Item::Phonebook, bytes).await {
            warn!(%error, "the phonebook could not be kept; trying again");
            written.phonebook = bytes;
        }
    }

    async fn save_guards(&self, written: &mut Guards) {
        let guards = self.directory.guards().borrow().clone();
        if guards == *written {
            return;
        }
        match self.write(Item::Guards, Zeroizing::new(guards.to_bytes().to_vec())).await {
            Ok(()) => *written = guards,
            // The node goes on with the guards that it has; only a restart would draw others.
            Err((error, _)) => warn!(%error, "the first hops could not be kept; trying again"),
        }
    }

    /// Gives the bytes back that could not be written, unless whoever wrote has panicked.
    async fn write(
        &self,
        item: Item,
        bytes: Zeroizing<Vec<u8>>,
    ) -> Result<(), (StateError, Option<Zeroizing<Vec<u8>>>)> {
        let state = Arc::clone(&self.state);
        let writing = move || state.replace(item, &bytes).map_err(|error| (error, Some(bytes)));
        let broken_off = |error: JoinError| {
            let problem = Problem::Io(error.into());
            Err((StateError { path: self.state.item_path(item), problem }, None))
        };
        tokio::task::spawn_blocking(writing).await.unwrap_or_else(broken_off)
    }

    /// Writes the first hops whenever they change, and the phonebook from time to time.
    pub(super) async fn run(self: Arc<Self>, every: Duration) {
        let mut guards = self.directory.guards();
        let mut due = Instant::now() + every;
        loop {
            tokio::select! {
                () = sleep_until(due) => {
                    self.save().await;
                    due = Instant::now() + every;
                }
                changed = guards.changed() => match changed {
                    Ok(()) => self.save_guards(&mut self.turn.lock().await.guards).await,
                    Err(_) => return,
                },
            }
        }
    }
}

/// `period`, give or take a fifth, so that nodes do not move in step.
pub(super) fn spread(period: Duration) -> Duration {
    period.mul_f64(0.8 + 0.4 * f64::from(SYSTEM.clone().next_u32()) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use bulbil_core::phonebook::{Grouping, VerifiedDescriptor};

    use super::*;
    use crate::control::testing::signed;
    use crate::engine::clock::WallClock;
    use crate::engine::shell::{Shown, unix_time};
    use crate::node::directory::Settings;
    use crate::scratch::Scratch;

    #[tokio::test]
    async fn what_could_not_be_written_is_written_the_next_time() {
        let scratch = Scratch::new("keeper");
        let state = Arc::new(StateDir::open(&scratch.path().join("state")).unwrap());
        let directory = Directory::start(Settings {
            own: NodeId([9; 32]),
            reuse: Duration::ZERO,
            guards: Guards::new(),
            stored: None,
            grouping: Grouping::Address,
            retry: RETRY.1,
            lonely: RETRY.1,
            clock: WallClock::default(),
        });
        let keeper = Keeper::new(Arc::clone(&state), directory.clone(), Guards::new());
        let card = VerifiedDescriptor::verify(signed(0, |_| ()), unix_time()).unwrap();
        directory.show(card.address(), Shown::Descriptor(&card));

        // Nothing can be put into the place of a directory.
        let path = state.item_path(Item::Phonebook);
        std::fs::create_dir(&path).unwrap();
        keeper.save().await;
        keeper.save().await;
        assert!(path.is_dir());
        std::fs::remove_dir(&path).unwrap();
        keeper.save().await;
        let written = || state.read(Item::Phonebook).unwrap();
        let first = written().expect("it was tried again, though nothing has changed since");

        std::fs::remove_file(&path).unwrap();
        keeper.save().await;
        assert!(written().is_none(), "what is written is not written again");
        directory.show(card.address(), Shown::Descriptor(&card));
        keeper.save().await;
        assert_eq!(written().map(|bytes| bytes.len()), Some(first.len()), "unless something has changed");
    }
}
