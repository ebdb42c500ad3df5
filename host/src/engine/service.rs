//! Conversations with services inside this node: each is a pipe, handed to whoever serves. Bounded in number and in time, because any
//! stranger may ask.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulbil_core::circuit::LinkId;
use bulbil_core::wire::{EndReason, Service};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Conversations with services at one time; at most some 6 MiB of pipes and answers. Those that had to go for others have no answers, and are gone as soon as
/// engine and service have heard of it.
pub(crate) const PLACES: usize = 128;
/// Of these, such as came over one link, so that no neighbour takes all. A quarter, because a relay's link carries the requests of many: an
/// honest one takes a second or two, so this many are 16 each second from one neighbour. As silence costs nothing, whoever has not said all gives
/// way to a newcomer: else a few links would keep everybody out.
const SHARE: usize = PLACES / 4;
/// How long one of them may take in all: whoever takes nothing must not keep a place from others.
const TIME: Duration = Duration::from_secs(30);
/// Whoever is silent for longer gives way before those who have long been heard.
const QUICK: Duration = Duration::from_secs(1);
/// So long after its request was whole a conversation keeps its place whoever else comes: several times what an answer takes.
const ENOUGH: Duration = Duration::from_secs(5);
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
    /// The request is whole: for five seconds from now on the conversation keeps its place. Until this is said, and again after that time, it may be
    /// ended when a newcomer finds no place: first of all those who have been silent for a while go, then those who take their answers slowly.
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
    /// By their numbers, and so in the order in which they began.
    held: BTreeMap<u64, Held>,
    /// Those that have lost their place and were not let go of yet.
    leaving: HashSet<u64>,
    /// How many have begun.
    begun: u64,
}

/// A conversation that has a place.
struct Held {
    link: LinkId,
    /// Ends it.
    fail: Fail,
    begun: Instant,
    /// Since when its request is whole.
    heard: Option<Instant>,
}

impl Taken {
    fn here(&self, link: LinkId) -> usize {
        self.held.values().filter(|held| held.link == link).count()
    }

    /// Takes the place from a conversation: one that has been silent for a while, or else one that has long been heard, or else any that is
    /// silent; with `link`, of those that came over it. Not while as many as there are places are still on their way out: their pipes are there yet.
    fn evict(&mut self, link: Option<LinkId>) -> Option<Fail> {
        if self.leaving.len() >= PLACES {
            return None;
        }
        let silent = || self.longest_silent(link);
        let number = silent().filter(|number| self.held.get(number).is_some_and(|held| held.begun.elapsed() >= QUICK));
        let number = number.or_else(|| self.longest_heard(link)).or_else(silent)?;
        let held = self.held.remove(&number)?;
        self.leaving.insert(number);
        Some(held.fail)
    }

    /// The one that has been silent for longest, of the link that holds most such places: whoever begins many pushes out his own.
    fn longest_silent(&self, link: Option<LinkId>) -> Option<u64> {
        let silent = || self.held.iter().filter(|(_, held)| held.heard.is_none());
        let count = |link: LinkId| silent().filter(|(_, held)| held.link == link).count();
        // Of equals the last one counts: from the youngest to the oldest.
        let link = link.or_else(|| silent().rev().map(|(_, held)| held.link).max_by_key(|&link| count(link)))?;
        silent().find(|(_, held)| held.link == link).map(|(&number, _)| number)
    }

    /// The one that was heard longest ago, if that is longer than an answer needs.
    fn longest_heard(&self, link: Option<LinkId>) -> Option<u64> {
        let held = self.held.iter().filter(|(_, held)| link.is_none_or(|link| link == held.link));
        let heard = held.filter_map(|(&number, held)| Some((held.heard?, number)));
        heard.min().filter(|(since, _)| since.elapsed() >= ENOUGH).map(|(_, number)| number)
    }
}

/// A place that is taken, and free again when this is dropped.
struct Permit {
    taken: Arc<Mutex<Taken>>,
    number: u64,
}

impl Permit {
    /// A place for a conversation that came over `link` and that `fail` ends, if there is one; and how to end the one that it is taken from, if it
    /// is.
    fn take(taken: &Arc<Mutex<Taken>>, link: LinkId, fail: &Fail) -> Option<(Self, Option<Fail>)> {
        let mut places = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let evicted = match places.here(link) {
            SHARE.. => Some(places.evict(Some(link))?),
            _ if places.held.len() >= PLACES => Some(places.evict(None)?),
            _ => None,
        };
        let number = places.begun;
        places.begun += 1;
        places.held.insert(number, Held { link, fail: Arc::clone(fail), begun: Instant::now(), heard: None });
        Some((Self { taken: Arc::clone(taken), number }, evicted))
    }

    fn keep(&self) {
        let mut places = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = places.held.get_mut(&self.number) {
            held.heard.get_or_insert_with(Instant::now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut places = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        places.leaving.remove(&self.number);
        // Let go of outside of the lock: nobody knows what it holds.
        let held = places.held.remove(&self.number);
        drop(places);
        drop(held);
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

    #[tokio::test(start_paused = true)]
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

    #[tokio::test(start_paused = true)]
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
        assert_eq!((taken.held.len(), taken.leaving.len()), (0, 0), "nothing is left of links that are gone");
    }

    #[tokio::test(start_paused = true)]
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
            (200, 9, SHARE),     // Whoever has been silent for longest, of a link that holds most.
            (201, 2, 2 * SHARE), // One of the same link, which has its share.
            (202, 2, 2 * SHARE + 1),
            (203, 10, 2 * SHARE + 2),
        ] {
            newcomers.push((begin(number, link).unwrap(), serving.recv().await.unwrap()));
            assert_eq!(endings.try_recv(), Ok((gives_way, EndReason::Busy)), "{number}");
        }
        // Those who gave way are let go of, and their places are not free a second time.
        for number in [2 * SHARE + 2, 2 * SHARE + 1, 2 * SHARE, SHARE] {
            drop(held.remove(number));
        }
        assert_eq!(services.taken.lock().unwrap().held.len(), PLACES);
        held.iter().chain(&newcomers).for_each(|(_, call)| call.heard());
        assert_eq!(begin(300, 11).unwrap_err(), EndReason::Busy, "whoever is heard stays");
        assert!(endings.try_recv().is_err());
        drop((held, newcomers));
        let taken = services.taken.lock().unwrap();
        assert_eq!((taken.held.len(), taken.leaving.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_no_answer_keeps_nobody_out() {
        let (calls, mut serving) = mpsc::channel(2 * PLACES);
        let services = Services::new(Some(calls));
        let mut held = Vec::new();
        for number in 0..PLACES {
            held.push((begin_over(&services, (number / SHARE) as u16).unwrap(), heard(&mut serving).await));
            if number == SHARE {
                tokio::time::advance(ENOUGH / 2).await;
            }
        }
        assert_eq!(begin_over(&services, 9).unwrap_err(), EndReason::Busy, "they have only just been heard");
        tokio::time::advance(ENOUGH / 2).await;
        // Those of the first link, and one of the second.
        for _ in 0..=SHARE {
            held.push((
                begin_over(&services, 9).unwrap_or_else(|_| begin_over(&services, 10).unwrap()),
                heard(&mut serving).await,
            ));
        }
        let links: Vec<_> = [0, 1, 2, 3].map(|link| services.taken.lock().unwrap().here(LinkId::new(link, 1))).into();
        assert_eq!(links, [0, SHARE - 1, SHARE, SHARE]);
        assert_eq!(begin_over(&services, 11).unwrap_err(), EndReason::Busy);
    }

    #[tokio::test(start_paused = true)]
    async fn between_links_with_one_each_the_longest_silent_gives_way() {
        let (calls, mut serving) = mpsc::channel(4 * PLACES);
        let services = Services::new(Some(calls));
        let mut held = Vec::new();
        for link in 0..PLACES + 3 {
            held.push((begin_over(&services, link as u16).unwrap(), serving.recv().await.unwrap()));
        }
        let left = |link: u16| services.taken.lock().unwrap().here(LinkId::new(link, 1));
        assert_eq!([0, 1, 2, 3, PLACES as u16].map(left), [0, 0, 0, 1, 1]);
        // Whoever is slow to take his answer goes before whoever has only just come.
        for (_, call) in &held[3..PLACES] {
            call.heard();
        }
        tokio::time::advance(ENOUGH).await;
        held.push((begin_over(&services, 500).unwrap(), serving.recv().await.unwrap()));
        assert_eq!([PLACES as u16, 3].map(left), [0, 1], "silent for as long");
        for (_, call) in &held[PLACES..PLACES + 3] {
            call.heard();
        }
        held.push((begin_over(&services, 501).unwrap(), serving.recv().await.unwrap()));
        assert_eq!([500, 3].map(left), [1, 0], "it has only just come");
    }

    #[tokio::test]
    async fn whoever_begins_many_pushes_out_his_own() {
        let (calls, mut serving) = mpsc::channel(8 * PLACES);
        let services = Services::new(Some(calls));
        let mut held = Vec::new();
        let honest = begin_over(&services, 1).unwrap();
        held.push((honest, serving.recv().await.unwrap()));
        for number in 0..2 * PLACES {
            let begun = begin_over(&services, 2 + (number % 8) as u16);
            // Those who had to go have been let go of.
            held.retain(|((_, place), _)| !services.taken.lock().unwrap().leaving.contains(&place.permit.number));
            held.push((begun.unwrap(), serving.recv().await.unwrap()));
        }
        assert_eq!(services.taken.lock().unwrap().here(LinkId::new(1, 1)), 1);
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
