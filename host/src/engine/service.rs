//! Conversations with services inside this node: each is a pipe, handed to whoever serves. Bounded in number and in time, because any
//! stranger may ask.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::wire::{EndReason, Service};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Conversations with services at one time; at most some 6 MiB of pipes and answers.
pub(crate) const PLACES: usize = 128;
/// Of these, such as came over one link, so that no neighbour takes all. A quarter, because a relay's link carries the requests of many: an
/// honest one takes a second or two, so this many are 16 each second from one neighbour.
const SHARE: usize = PLACES / 4;
/// How long one of them may take in all: whoever takes nothing must not keep a place from others.
const TIME: Duration = Duration::from_secs(30);
/// Bytes that wait between the engine and whoever serves, each way.
const PIPE: usize = 16 * 1024;

/// A conversation that a client has begun with a service of this node.
///
/// What the client says is read from the stream; what is written is its answer, and shutting down ends that. When the client goes, or after
/// half a minute, reading ends and writing fails, so a request has to say itself whether it is whole.
pub struct ServiceCall {
    /// Which service is asked.
    pub service: Service,
    /// The conversation.
    pub stream: DuplexStream,
    /// The place is free again when neither side holds it: whoever serves may work on when the client has long gone.
    place: Arc<Place>,
}

impl ServiceCall {
    /// Ends the conversation with this reason instead of an answer; what was written so far may or may not be heard.
    pub fn refuse(self, reason: EndReason) {
        (self.place.fail)(reason, Some(self.stream));
    }
}

/// Ends a conversation with a reason. The stream, if there is one, is let go of behind that: its end must not come first.
pub(crate) type Fail = Arc<dyn Fn(EndReason, Option<DuplexStream>) + Send + Sync>;

/// The places that are taken, by the links over which their conversations came.
#[derive(Default)]
struct Taken {
    links: HashMap<LinkId, usize>,
    all: usize,
}

/// A place that is taken, and free again when this is dropped.
struct Permit {
    taken: Arc<Mutex<Taken>>,
    link: LinkId,
}

impl Permit {
    /// A place for a conversation that came over `link`, if there is one.
    fn take(taken: &Arc<Mutex<Taken>>, link: LinkId) -> Option<Self> {
        let mut places = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let here = places.links.get(&link).copied().unwrap_or(0);
        if places.all >= PLACES || here >= SHARE {
            return None;
        }
        places.all += 1;
        places.links.insert(link, here + 1);
        Some(Self { taken: Arc::clone(taken), link })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut places = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        places.all = places.all.saturating_sub(1);
        // Links come and go, so one without conversations must leave nothing behind.
        match places.links.remove(&self.link) {
            Some(here @ 2..) => drop(places.links.insert(self.link, here - 1)),
            Some(_) | None => {}
        }
    }
}

/// A place among the conversations with services.
pub(crate) struct Place {
    _permit: Permit,
    timer: AbortHandle,
    fail: Fail,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Place")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

/// The engine's end of a conversation with a service.
pub(crate) type Served = (DuplexStream, Arc<Place>);

/// Who serves, and how many conversations that may be.
pub(crate) struct Services {
    calls: Option<mpsc::Sender<ServiceCall>>,
    taken: Arc<Mutex<Taken>>,
}

impl Services {
    /// Hands calls to `calls`; without it, or when its receiver is gone, there is no service.
    pub(crate) fn new(calls: Option<mpsc::Sender<ServiceCall>>) -> Self {
        Self { calls, taken: Arc::default() }
    }

    /// Begins a conversation that came over `link`, which `fail` ends when its time is over or whoever serves wants that. What is answered
    /// otherwise is told to the client.
    pub(crate) fn begin(&self, service: Service, link: LinkId, fail: Fail) -> Result<Served, EndReason> {
        let calls = self.calls.as_ref().filter(|calls| !calls.is_closed()).ok_or(EndReason::NoService)?;
        let permit = Permit::take(&self.taken, link).ok_or(EndReason::Busy)?;
        let late = Arc::clone(&fail);
        let timer = tokio::spawn(async move {
            tokio::time::sleep(TIME).await;
            late(EndReason::TimedOut, None);
        });
        let place = Arc::new(Place { _permit: permit, timer: timer.abort_handle(), fail });
        let (engines, servers) = duplex(PIPE);
        let call = ServiceCall { service, stream: servers, place: Arc::clone(&place) };
        match calls.try_send(call) {
            Ok(()) => Ok((engines, place)),
            Err(mpsc::error::TrySendError::Full(_)) => Err(EndReason::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(EndReason::NoService),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin_over(services: &Services, link: u16) -> Result<Served, EndReason> {
        services.begin(Service::Phonebook, LinkId::new(link, 1), Arc::new(|_, _| ()))
    }

    fn begin(services: &Services) -> Result<Served, EndReason> {
        begin_over(services, 1)
    }

    #[tokio::test]
    async fn without_anybody_who_serves_there_is_no_service() {
        assert_eq!(begin(&Services::new(None)).unwrap_err(), EndReason::NoService);
        let (calls, serving) = mpsc::channel(1);
        let services = Services::new(Some(calls));
        assert!(begin(&services).is_ok());
        drop(serving);
        assert_eq!(begin(&services).unwrap_err(), EndReason::NoService);
    }

    #[tokio::test]
    async fn a_place_is_free_again_when_both_sides_have_let_go() {
        let (calls, mut serving) = mpsc::channel(2 * PLACES);
        let services = Services::new(Some(calls));
        let mut engine = Vec::new();
        let mut servers = Vec::new();
        for _ in 0..SHARE {
            engine.push(begin(&services).unwrap());
            servers.push(serving.recv().await.unwrap());
        }
        assert_eq!(begin(&services).unwrap_err(), EndReason::Busy);
        drop(engine.pop());
        assert_eq!(begin(&services).unwrap_err(), EndReason::Busy, "it is still being served");
        drop(servers.pop());
        engine.push(begin(&services).unwrap());
        servers.push(serving.recv().await.unwrap());
        drop(servers.pop());
        assert_eq!(begin(&services).unwrap_err(), EndReason::Busy, "its answer is still on its way");
        drop(engine.pop());
        assert!(begin(&services).is_ok());
    }

    #[tokio::test]
    async fn one_link_does_not_take_every_place() {
        let (calls, mut serving) = mpsc::channel(2 * PLACES);
        let services = Services::new(Some(calls));
        let mut held = Vec::new();
        for link in 0..4 {
            held.extend((0..SHARE).map(|_| begin_over(&services, link).unwrap()));
            assert_eq!(begin_over(&services, link).unwrap_err(), EndReason::Busy);
        }
        assert_eq!(begin_over(&services, 4).unwrap_err(), EndReason::Busy, "all are taken");
        drop(serving.recv().await);
        drop(held.remove(0));
        let later = services.begin(Service::Phonebook, LinkId::new(4, 2), Arc::new(|_, _| ()));
        assert!(later.is_ok(), "a place, and the link has its share");
        drop((held, later));
        while serving.try_recv().is_ok() {}
        let taken = services.taken.lock().unwrap();
        assert_eq!((taken.all, taken.links.len()), (0, 0), "nothing is left of links that are gone");
    }

    #[tokio::test]
    async fn calls_that_nobody_takes_are_refused() {
        let (calls, _serving) = mpsc::channel(1);
        let services = Services::new(Some(calls));
        let _first = begin(&services).unwrap();
        assert_eq!(begin(&services).unwrap_err(), EndReason::Busy);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_conversation_that_goes_on_can_be_late() {
        let (calls, mut serving) = mpsc::channel(2);
        let services = Services::new(Some(calls));
        let (late, mut heard) = mpsc::unbounded_channel();
        let report = |number| -> Fail {
            let late = late.clone();
            Arc::new(move |reason, _| late.send((number, reason)).unwrap())
        };
        let ended = services.begin(Service::Phonebook, LinkId::new(1, 1), report(1)).unwrap();
        drop((ended, serving.recv().await));
        let _slow = services.begin(Service::Phonebook, LinkId::new(1, 1), report(2)).unwrap();
        assert_eq!(heard.recv().await, Some((2, EndReason::TimedOut)));
        assert!(heard.try_recv().is_err(), "and nobody else");
    }
}
