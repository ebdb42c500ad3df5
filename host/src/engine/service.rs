//! Conversations with services inside this node: each is a pipe, handed to whoever serves. Bounded in number and in time, because any
//! stranger may ask.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::wire::{EndReason, Service};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Conversations with services at one time; at most some 6 MiB of pipes and answers. Those that had to go for others have no answers, and are gone as soon as
/// engine and service have heard of it.
pub(crate) const PLACES: usize = 128;
/// Of these, such as came over one link, so that no neighbour takes all. A quarter, because a relay's link carries the requests of many: an
/// honest one takes a second or two, so this many are 16 each second from one neighbour. As silence costs nothing, whoever has not said all gives
/// way to a newcomer: else a few links would keep everybody out.
const SHARE: usize = PLACES / 4;
/// How long one of them may take in all: whoever takes nothing must not keep a place from others.
const TIME: Duration = Duration::from_secs(30);
/// Bytes that wait between the engine and whoever serves, each way.
const PIPE: usize = 16 * 1024;

/// A conversation that a client has begun with a service of this node.
///
/// What the client says is read from the stream; what is written is its answer, and shutting down ends that. When the client goes, after
/// half a minute, or when there are too many and this one was not said to be [`heard`](Self::heard), reading ends and writing fails, so a
/// request has to say itself whether it is whole.
pub struct ServiceCall {
    /// Which service is asked.
    pub service: Service,
    /// The conversation.
    pub stream: DuplexStream,
    /// The place is free again when neither side holds it: whoever serves may work on when the client has long gone.
    place: Arc<Place>,
}

impl ServiceCall {
    /// The request is whole: from now on the conversation keeps its place. Until then it is ended when a newcomer finds none and nobody has been
    /// silent for longer.
    pub fn heard(&self) {
        self.place.permit.keep();
    }

    /// Ends the conversation with this reason instead of an answer; what was written so far may or may not be heard.
    pub fn refuse(self, reason: EndReason) {
        (self.place.fail)(reason, Some(self.stream));
    }
}

/// Ends a conversation with a reason. The stream, if there is one, is let go of behind that: its end must not come first.
pub(crate) type Fail = Arc<dyn Fn(EndReason, Option<DuplexStream>) + Send + Sync>;

/// The places that are taken.
#[derive(Default)]
struct Taken {
    /// By the links over which their conversations came.
    links: HashMap<LinkId, usize>,
    all: usize,
    /// Conversations whose request is not whole, by their numbers and so in the order in which they began: where they came from, and how to end them.
    unheard: BTreeMap<u64, (LinkId, Fail)>,
    /// Those that have lost their place and were not let go of yet.
    leaving: HashSet<u64>,
    /// How many have begun.
    begun: u64,
}

impl Taken {
    fn here(&self, link: LinkId) -> usize {
        self.links.get(&link).copied().unwrap_or(0)
    }

    fn free(&mut self, link: LinkId) {
        self.all = self.all.saturating_sub(1);
        // Links come and go, so one without conversations must leave nothing behind.
        if let Some(here @ 2..) = self.links.remove(&link) {
            self.links.insert(link, here - 1);
        }
    }

    /// Takes the place from the conversation that has been silent for longest; with `link`, of those that came over it. Not while as many as there are places
    /// are still on their way out: their pipes are there yet.
    fn evict(&mut self, link: Option<LinkId>) -> Option<Fail> {
        if self.leaving.len() >= PLACES {
            return None;
        }
        let mut unheard = self.unheard.iter();
        let (&number, _) = unheard.find(|(_, (from, _))| link.is_none_or(|link| link == *from))?;
        let (from, fail) = self.unheard.remove(&number)?;
        self.free(from);
        self.leaving.insert(number);
        Some(fail)
    }
}

/// A place that is taken, and free again when this is dropped.
struct Permit {
    taken: Arc<Mutex<Taken>>,
    link: LinkId,
    number: u64,
}

impl Permit {
    /// A place for a conversation that came over `link` and that `fail` ends, if there is one; and how to end the one that it is taken from, if it
    /// is.
    fn take(taken: &Arc<Mutex<Taken>>, link: LinkId, fail: &Fail) -> Option<(Self, Option<Fail>)> {
        let mut places = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let evicted = match places.here(link) {
            SHARE.. => Some(places.evict(Some(link))?),
            _ if places.all >= PLACES => Some(places.evict(None)?),
            _ => None,
        };
        let (here, number) = (places.here(link), places.begun);
        places.links.insert(link, here + 1);
        places.all += 1;
        places.begun += 1;
        places.unheard.insert(number, (link, Arc::clone(fail)));
        Some((Self { taken: Arc::clone(taken), link, number }, evicted))
    }

    fn keep(&self) {
        let mut places = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        places.unheard.remove(&self.number);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut places = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if !places.leaving.remove(&self.number) {
            places.unheard.remove(&self.number);
            places.free(self.link);
        }
    }
}

/// A place among the conversations with services.
pub(crate) struct Place {
    permit: Permit,
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
        let calls = self.calls.as_ref().ok_or(EndReason::NoService)?;
        // First, because nobody should have to go for one that cannot be served.
        let served = calls.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => EndReason::Busy,
            mpsc::error::TrySendError::Closed(()) => EndReason::NoService,
        })?;
        let (permit, evicted) = Permit::take(&self.taken, link, &fail).ok_or(EndReason::Busy)?;
        if let Some(end) = evicted {
            end(EndReason::Busy, None);
        }
        let late = Arc::clone(&fail);
        let timer = tokio::spawn(async move {
            tokio::time::sleep(TIME).await;
            late(EndReason::TimedOut, None);
        });
        let place = Arc::new(Place { permit, timer: timer.abort_handle(), fail });
        let (engines, servers) = duplex(PIPE);
        let call = ServiceCall { service, stream: servers, place: Arc::clone(&place) };
        served.send(call);
        Ok((engines, place))
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

    /// A conversation whose request is whole.
    async fn heard(serving: &mut mpsc::Receiver<ServiceCall>) -> ServiceCall {
        let call = serving.recv().await.unwrap();
        call.heard();
        call
    }

    #[tokio::test]
    async fn a_place_is_free_again_when_both_sides_have_let_go() {
        let (calls, mut serving) = mpsc::channel(2 * PLACES);
        let services = Services::new(Some(calls));
        let mut engine = Vec::new();
        let mut servers = Vec::new();
        for _ in 0..SHARE {
            engine.push(begin(&services).unwrap());
            servers.push(heard(&mut serving).await);
        }
        assert_eq!(begin(&services).unwrap_err(), EndReason::Busy);
        drop(engine.pop());
        assert_eq!(begin(&services).unwrap_err(), EndReason::Busy, "it is still being served");
        drop(servers.pop());
        engine.push(begin(&services).unwrap());
        servers.push(heard(&mut serving).await);
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
            for _ in 0..SHARE {
                held.push((begin_over(&services, link).unwrap(), heard(&mut serving).await));
            }
            assert_eq!(begin_over(&services, link).unwrap_err(), EndReason::Busy);
        }
        assert_eq!(begin_over(&services, 4).unwrap_err(), EndReason::Busy, "all are taken");
        drop(held.remove(0));
        let later = services.begin(Service::Phonebook, LinkId::new(4, 2), Arc::new(|_, _| ()));
        assert!(later.is_ok(), "a place, and the link has its share");
        drop((held, later));
        while serving.try_recv().is_ok() {}
        let taken = services.taken.lock().unwrap();
        assert_eq!((taken.all, taken.links.len()), (0, 0), "nothing is left of links that are gone");
        assert_eq!((taken.unheard.len(), taken.leaving.len()), (0, 0));
    }

    #[tokio::test]
    async fn whoever_says_nothing_keeps_nobody_out() {
        let (calls, mut serving) = mpsc::channel(4 * PLACES);
        let services = Services::new(Some(calls));
        let (ended, mut endings) = mpsc::unbounded_channel();
        let begin = |number: usize, link: u16| {
            let ended = ended.clone();
            let fail: Fail = Arc::new(move |reason, _| ended.send((number, reason)).unwrap());
            services.begin(Service::Phonebook, LinkId::new(link, 1), fail)
        };
        let mut held = Vec::new();
        for number in 0..PLACES {
            let served = begin(number, (number / SHARE) as u16).unwrap();
            let call = serving.recv().await.unwrap();
            // Of the first link all but one have said all that they have to say.
            if number < SHARE && number != 7 {
                call.heard();
            }
            held.push((served, call));
        }
        assert!(endings.try_recv().is_err());
        let mut newcomers = Vec::new();
        for (number, link, gives_way) in [
            (200, 9, 7),         // Whoever has been silent for longest.
            (201, 2, 2 * SHARE), // One of the same link, which has its share.
            (202, 2, 2 * SHARE + 1),
            (203, 10, SHARE),
        ] {
            newcomers.push((begin(number, link).unwrap(), serving.recv().await.unwrap()));
            assert_eq!(endings.try_recv(), Ok((gives_way, EndReason::Busy)), "{number}");
        }
        // Those who gave way are let go of, and their places are not free a second time.
        for number in [2 * SHARE + 1, 2 * SHARE, SHARE, 7] {
            drop(held.remove(number));
        }
        assert_eq!(services.taken.lock().unwrap().all, PLACES);
        held.iter().chain(&newcomers).for_each(|(_, call)| call.heard());
        assert_eq!(begin(300, 11).unwrap_err(), EndReason::Busy, "whoever is heard stays");
        assert!(endings.try_recv().is_err());
        drop((held, newcomers));
        let taken = services.taken.lock().unwrap();
        assert_eq!((taken.all, taken.links.len(), taken.unheard.len(), taken.leaving.len()), (0, 0, 0, 0));
    }

    #[tokio::test]
    async fn those_on_their_way_out_are_no_more_than_there_are_places() {
        let (calls, mut serving) = mpsc::channel(4 * PLACES);
        let services = Services::new(Some(calls));
        let mut held = Vec::new();
        for number in 0..2 * PLACES {
            held.push((begin_over(&services, (number / SHARE) as u16).unwrap(), serving.recv().await.unwrap()));
        }
        assert_eq!(begin_over(&services, 99).unwrap_err(), EndReason::Busy);
        drop(held.remove(0));
        assert!(begin_over(&services, 99).is_ok());
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
